"""scripts/run_notebook.py runs cells in order and stores what they print and draw."""

import base64
import io
import json
import sys

import pytest
from PIL import Image

from scripts import run_notebook

MARKDOWN = {'cell_type': 'markdown', 'metadata': {}, 'source': ['# Two cells']}


def notebook(*sources):
  code = {'cell_type': 'code', 'metadata': {}, 'execution_count': None, 'outputs': []}
  cells = [{**code, 'source': source.splitlines(keepends=True)} for source in sources]
  return {'cells': [MARKDOWN, *cells], 'metadata': {}, 'nbformat': 4, 'nbformat_minor': 4}


def test_text_and_figures_are_stored_without_the_folder(tmp_path):
  first = 'from pathlib import Path\nx = Path("made.txt").absolute()\nprint(x)'
  second = 'import matplotlib.pyplot as plt\nx.write_text("!")\nplt.figure(figsize=(2, 1))'
  given = notebook(first, second, 'pass')
  made, names = run_notebook.executed(given, tmp_path)
  markdown, text, figure, nothing = made['cells']
  assert markdown == MARKDOWN and nothing['outputs'] == [] and names['x'].read_text() == '!'
  assert text['outputs'] == [{'output_type': 'stream', 'name': 'stdout', 'text': ['made.txt\n']}]
  assert (tmp_path / 'made.txt').exists() and figure['execution_count'] == 2
  png = base64.b64decode(figure['outputs'][0]['data']['image/png'])
  assert Image.open(io.BytesIO(png)).format == 'PNG'
  assert given['cells'][1]['outputs'] == []  # The given notebook is not changed.


def test_the_script_writes_the_file_and_an_error_leaves_it(tmp_path, monkeypatch):
  path = tmp_path / 'a.ipynb'
  monkeypatch.setattr(sys, 'argv', ['run_notebook.py', str(path)])
  path.write_text(json.dumps(notebook('print(6 * 7)')))
  run_notebook.main()
  before = path.read_text()
  assert json.loads(before)['cells'][1]['outputs'][0]['text'] == ['42\n']
  path.write_text(before.replace('6 * 7', '6 * seven'))
  before = path.read_text()
  with pytest.raises(NameError):
    run_notebook.main()
  assert path.read_text() == before
