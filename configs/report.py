"""All runs below a folder in one report: tables, plots, and a panel of their samples being denoised.

    python main.py --config=configs/report.py --workdir=runs --mode=report

A run is a folder, at any depth below runs/, with config.json and eval/*.json: what --mode=train and
--mode=evaluate leave. The report is runs/report/: table.md and table.csv, with the published numbers of
the eight systems beside ours; scatter*.png (FID against IS); curves-*.png (loss and metrics against
training steps); each plot as .pdf too; panel*.png and panel*.gif (all models denoising the same
classes). Numbers of different protocols stand in different tables. Nothing is computed again, so neither
data nor an accelerator is needed. Larger panels: --config.report.num_classes=10
--config.report.num_snapshots=8.
"""

from diffusion_jax.configs import base


def get_config():
  """base, of whose sections only `report` is used; without an objective --mode=report alone takes it."""
  config = base.get_config()
  config.objective.name = ''
  return config
