"""A short transfer demo, and its checkpoints in the inferencers of OpenMMLab."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine import Config
from mmengine.registry import init_default_scope
from PIL import Image

from bootmae_mm.checkpoints.reading import allow_mmengine_checkpoints, load_file
from bootmae_mm.registry import MODELS
from tests.conftest import ROOT

pytestmark = pytest.mark.program


@pytest.fixture
def checkpoint(tmp_path):
    """A pretraining checkpoint of the demo's model with initial weights."""
    cfg = Config.fromfile(ROOT / 'configs/pretrain/bootmae_vitt_digits.py')
    model = MODELS.build(cfg.model)
    model.init_weights()
    path = tmp_path / 'epoch_1.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(cfg=cfg.pretty_text)), path)
    return path


@pytest.fixture
def demo(checkpoint, tmp_path):
    work_dir = tmp_path / 'demo'
    done = subprocess.run(
        [
            sys.executable,
            ROOT / 'tools/demo_transfer.py',
            '--quick',
            '--work-dir',
            work_dir,
            '--checkpoint',
            checkpoint,
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return work_dir, done.stdout + done.stderr


def check_summary_and_pictures(demo):
    work_dir, output = demo
    summary = json.loads((work_dir / 'summary.json').read_text())
    assert set(summary['tasks']) == {'classification', 'segmentation', 'detection'}
    for task, result in summary['tasks'].items():
        for start in ('pretrained', 'from scratch'):
            assert all(0 <= value <= 100 for value in result[start]['metrics'].values()), task
        assert np.asarray(Image.open(work_dir / result['picture'])).std() > 20
    # Only the pretrained runs load the checkpoint.
    assert output.count('52 of 52 pretrained weights loaded') == 3


def image_of(work_dir):
    return str(work_dir / 'forms_quick/images/validation/validation_00000.png')


def fine_tuned(work_dir, task):
    folder = work_dir / f'{task}_pretrained'
    (config,) = folder.glob('*.py')
    return str(config), (folder / 'last_checkpoint').read_text()


def check_classification_inferencer(demo):
    from mmpretrain import ImageClassificationInferencer

    allow_mmengine_checkpoints()
    config, weights = fine_tuned(demo[0], 'classification')
    init_default_scope('mmpretrain')  # other tests may have set another scope
    inferencer = ImageClassificationInferencer(config, pretrained=weights, device='cpu')
    (result,) = inferencer(image_of(demo[0]))
    assert result['pred_class'] in '0123456789' and abs(sum(result['pred_scores']) - 1) < 1e-4
    state = load_file(weights)['state_dict']
    assert torch.equal(inferencer.model.state_dict()['backbone.ln2.weight'], state['backbone.ln2.weight'])


def check_segmentation_inferencer(demo):
    from mmseg.apis import MMSegInferencer

    allow_mmengine_checkpoints()
    config, weights = fine_tuned(demo[0], 'segmentation')
    inferencer = MMSegInferencer(config, weights, device='cpu')
    result = inferencer(image_of(demo[0]), show=False)
    assert result['predictions'].shape == (64, 64) and result['predictions'].max() <= 10
    state = load_file(weights)['state_dict']
    key = 'backbone.layers.0.attn.rel_pos_bias.relative_position_bias_table'
    assert torch.equal(inferencer.model.state_dict()[key], state[key])


def check_detection_inferencer(demo):
    from mmdet.apis import DetInferencer

    allow_mmengine_checkpoints()
    config, weights = fine_tuned(demo[0], 'detection')
    inferencer = DetInferencer(config, weights, device='cpu')
    (result,) = inferencer(image_of(demo[0]), no_save_vis=True)['predictions']
    assert len(result['bboxes']) == len(result['labels']) > 0 and set(result['labels']) <= set(range(10))
    state = load_file(weights)['state_dict']
    key = 'backbone.layers.3.attn.qkv.weight'
    assert torch.equal(inferencer.model.state_dict()[key], state[key])


def check_knn(demo, checkpoint, run_tool, tmp_path):
    arguments = ('knn.py', ROOT / 'configs/cls/bootmae_vitt_digits_knn.py', checkpoint)
    options = ('--cfg-options', f'data_root={demo[0] / "forms_quick"}')
    status, out, message = run_tool(*arguments, '--k', 1, 5, '--out', tmp_path / 'knn.json', *options)
    assert status == 0, message
    result = json.loads((tmp_path / 'knn.json').read_text())
    pieces = len(list((demo[0] / 'forms_quick/digits/training').rglob('*.png')))
    assert result['train_images'] == pieces and set(result['accuracy']) == {'1', '5'}
    assert 'k =   1' in out and 0.05 < result['accuracy']['5'] < 1
    status, _, message = run_tool(*arguments[:2], tmp_path / 'none.pth', *options)
    assert status == 1 and 'no checkpoint' in message


def test_a_quick_demo_and_what_reads_its_checkpoints(demo, checkpoint, run_tool, tmp_path):
    """One test: the demo takes minutes, and would run once for each process of pytest."""
    check_summary_and_pictures(demo)
    check_classification_inferencer(demo)
    check_segmentation_inferencer(demo)
    check_detection_inferencer(demo)
    check_knn(demo, checkpoint, run_tool, tmp_path)
    command = [sys.executable, ROOT / 'tools/demo_transfer.py', '--quick', '--data', 'scenes', '--tasks']
    command += ['classification', '--work-dir', tmp_path / 'other', '--checkpoint', checkpoint]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads((tmp_path / 'other/summary.json').read_text())
    assert summary['data'] == 'scenes' and summary['images'] == dict(training=32, validation=8)
    assert summary['tasks']['classification']['config'] == 'cls/bootmae_vitt_digits_ft.py'


def test_scenes_from_the_command_line(run_tool, tmp_path):
    arguments = ('make_digit_scenes.py', tmp_path / 'scenes', '--training', 2, '--validation', 1)
    status, out, _ = run_tool(*arguments)
    assert status == 0 and 'training: 2 images' in out and (tmp_path / 'scenes/instances_training.json').is_file()
    status, _, message = run_tool(*arguments)
    assert status == 1 and 'is not empty' in message
    status, out, _ = run_tool(*arguments[:1], tmp_path / 'forms', *arguments[2:], '--kind', 'forms')
    pixels = np.asarray(Image.open(tmp_path / 'forms/images/training/training_00000.png'))
    assert status == 0 and np.median(pixels) == 0  # a black background
