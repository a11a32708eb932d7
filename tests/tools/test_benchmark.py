"""tools/benchmark.py from the command line, on tiny models."""

import json

import pytest
from PIL import Image

from tests.conftest import run_config


@pytest.fixture
def config(tmp_path, image_folder):
    return run_config(tmp_path / 'config.py', image_folder)


def test_step(config, run_tool, tmp_path):
    status, out, message = run_tool(
        'benchmark.py',
        'step',
        config,
        '--batch',
        2,
        '--repeats',
        2,
        '--json',
        tmp_path / 'step.json',
        '--picture',
        tmp_path / 'step.png',
    )
    assert status == 0, message
    assert Image.open(tmp_path / 'step.png').width > 1000
    content = json.loads((tmp_path / 'step.json').read_text())
    assert content['what'] == 'step' and content['dtype'] == 'float32' and 'threads' in content['device']
    assert 'images/s' in out and f'{content["step_ms"]:,.1f}' in out
    status, _, message = run_tool('benchmark.py', 'step', config, '--against', 'mae')
    assert status == 1 and 'the config has another encoder' in message
    status, _, message = run_tool('benchmark.py', 'step', config, '--against', 'authors')
    assert status == 1 and '--against authors needs --authors-path' in message


def test_loader_and_train(config, image_folder, run_tool, tmp_path):
    images = ('--images', image_folder)
    arguments = ('--workers', 1, '--seconds', 0.1, '--repeats', 1, '--json', tmp_path / 'loader.json')
    status, out, message = run_tool('benchmark.py', 'loader', config, *images, *arguments)
    assert status == 0, message
    assert 'mmpretrain MAE' in out and '1 workers' in out and 'masks:' in out
    assert json.loads((tmp_path / 'loader.json').read_text())['pipelines'][0]['ratio'] == 1
    status, out, message = run_tool('benchmark.py', 'train', config, *images, '--batch', 2, '--repeats', 2)
    assert status == 0 and 'waiting for data, %' in out, message
    status, _, message = run_tool('benchmark.py', 'loader', config, '--images', tmp_path / 'none')
    assert status == 1 and 'no folder' in message


@pytest.mark.program
def test_scale(config, run_tool, tmp_path):
    options = ('--batches', 1, 2, '--sizes', 64, '--processes', 1, 2, '--batch', 2, '--repeats', 2)
    status, out, message = run_tool('benchmark.py', 'scale', config, *options, '--json', tmp_path / 'scale.json')
    assert status == 0, message
    content = json.loads((tmp_path / 'scale.json').read_text())
    assert [item['batch'] for item in content['growth']] == [1, 2, 1] and content['growth'][2]['img_size'] == 64
    assert [item['processes'] for item in content['processes']] == [1, 2]
    assert content['processes'][0]['efficiency'] == 1 and content['processes'][1]['efficiency'] > 0
