"""The notebook of examples/: its code runs from top to bottom in a new process, and it has no outputs."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

NOTEBOOK = ROOT / 'examples/own_images.ipynb'
RUN = """
import json, sys
space = {'__name__': '__main__'}
for number, source in enumerate(json.load(open(sys.argv[1]))):
    exec(compile(source, f'cell {number}', 'exec'), space)
json.dump({name: space[name] for name in ('knn', 'tuned', 'difference')}, open('found.json', 'w'))
"""


def cells():
    """Cells of the notebook, with their text joined."""
    return [dict(cell, source=''.join(cell['source'])) for cell in json.loads(NOTEBOOK.read_text())['cells']]


def code():
    return [cell['source'] for cell in cells() if cell['cell_type'] == 'code']


def test_is_committed_without_outputs():
    assert len(cells()) > 10
    for cell in cells():
        if cell['cell_type'] == 'code':
            assert cell['outputs'] == [] and cell['execution_count'] is None


def test_the_files_it_names_exist():
    for cell in cells():
        for word in cell['source'].replace('`', ' ').split():
            if word.startswith('docs/'):
                assert (ROOT / word.rstrip('.,:')).is_file(), word


@pytest.mark.program
def test_code_runs_from_top_to_bottom(tmp_path):
    """With a single epoch and fewer steps of fine-tuning; numbers are those of such a run."""
    sources = code()
    assert sources[0].count('EPOCHS = 90') == 1
    sources[0] = sources[0].replace('EPOCHS = 90', 'EPOCHS = 1')
    (tuning,) = [number for number, source in enumerate(sources) if 'epochs=50' in source]
    sources[tuning] = sources[tuning].replace('epochs=50', 'epochs=3')
    (tmp_path / 'cells.json').write_text(json.dumps(sources))
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    command = [sys.executable, '-c', RUN, 'cells.json']
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, 'PYTHONPATH': paths}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / 'found.json').read_text())
    # Neighbors among raw pixels do not depend on the training.
    assert found['knn']['pixels'] == pytest.approx(0.976, abs=0.004)
    assert all(0.2 < found['knn'][name] <= 1 for name in ('pretrained', 'random weights'))
    assert all(len(accuracies) == 3 for accuracies in found['tuned'].values())
    assert found['difference'] < 1e-4  # timm's features are ours
    assert len(list((tmp_path / 'digits').rglob('*.png'))) == 1797
    for name in ('run/epoch_1.pth', 'run/report.html', 'exported/model.safetensors', 'exported/config.json'):
        assert (tmp_path / name).is_file()
