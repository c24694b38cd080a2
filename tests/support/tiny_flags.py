"""The smallest training, as flags of main.py."""

TINY = {
  'data.workers': 1,
  'model.dit.depth': 1,
  'model.dit.hidden_size': 16,
  'model.dit.num_heads': 2,
  'optimizer.warmup_steps': 2,
  'train.num_steps': 4,
  'train.batch_size': 16,
  'train.log_every_steps': 2,
  'train.holdout_every_steps': 1000,
  'train.preview_every_steps': 4,
  'checkpoint.every_steps': 2,
  'checkpoint.keep_newest': 2,
  'sample.num_samples': 20,
  'sample.batch_size': 16,
  'sample.num_steps': 2,
  'sample.grid_columns': 2,
  'sample.gif_frames': 2,
  'eval.features.name': 'pixels',
}


def tiny_flags(data, workdir, **changes):
  """data: the folder of prepared data. changes: flattened fields, as {'train.num_steps': 8}."""
  fields = {'data.dir': data, **TINY, **changes}
  flags = [f'--config.{name}={value}' for name, value in fields.items()]
  return ['--config=configs/quickstart.py', f'--workdir={workdir}', *flags]
