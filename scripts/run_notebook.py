"""Runs the code cells of a notebook in order, and stores their printed text and figures in the file.

    python scripts/run_notebook.py docs/tutorial.ipynb

The cells run in a temporary folder, whose path is left out of the output, with matplotlib's Agg backend. An
error stops the script and leaves the file as it is. Standard output and open figures are stored; progress bars
and values of expressions are not.
"""

import argparse
import base64
import contextlib
import copy
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

Notebook = dict[str, Any]


def code_of(cell: dict[str, Any]) -> str:
  """Returns the source of a code cell; '' for other cells."""
  return ''.join(cell['source']) if cell['cell_type'] == 'code' else ''


def executed(notebook: Notebook, folder: Path) -> tuple[Notebook, dict[str, Any]]:
  """Runs all code cells in `folder`. Returns: the notebook with its outputs, and the names defined.

  notebook: the JSON of nbformat 4. Raises: whatever a cell raises.
  """
  import matplotlib

  matplotlib.use('Agg')
  made, names = copy.deepcopy(notebook), {'__name__': '__main__'}
  cells = [cell for cell in made['cells'] if cell['cell_type'] == 'code']
  with contextlib.chdir(folder):
    for number, cell in enumerate(cells, 1):
      printed = io.StringIO()
      with contextlib.redirect_stdout(printed):
        exec(compile(code_of(cell), f'code cell {number}', 'exec'), names)
      text = printed.getvalue().replace(f'{Path.cwd()}/', '')
      cell |= {'execution_count': number, 'outputs': [*text_of(text), *figures()]}
  return made, names


def text_of(printed: str) -> list[dict[str, Any]]:
  """Returns the output of printed text, if there is any."""
  lines = printed.splitlines(keepends=True)
  return [{'output_type': 'stream', 'name': 'stdout', 'text': lines}] if lines else []


def figures() -> list[dict[str, Any]]:
  """Returns the outputs of all open figures, and closes them."""
  import matplotlib.pyplot as plt

  outputs = []
  for number in plt.get_fignums():
    png = io.BytesIO()
    plt.figure(number).savefig(png, format='png', dpi=72, bbox_inches='tight')
    data = {'image/png': base64.b64encode(png.getvalue()).decode(), 'text/plain': ['<Figure>']}
    outputs.append({'output_type': 'display_data', 'data': data, 'metadata': {}})
  plt.close('all')
  return outputs


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('notebook', type=Path)
  path = parser.parse_args().notebook
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  with tempfile.TemporaryDirectory() as folder:
    made, _ = executed(json.loads(path.read_text()), Path(folder))
  path.write_text(json.dumps(made, indent=1, ensure_ascii=False) + '\n')
  print(f'{path}: {path.stat().st_size:,} bytes')


if __name__ == '__main__':
  main()
