"""A short form of tools/demo.py."""

import json

import numpy as np
import pytest
from mmengine import Config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import ROOT


@pytest.mark.program
def test_a_short_demo(tmp_path, run_tool):
    status, out, message = run_tool('demo.py', '--work-dir', tmp_path / 'demo', '--epochs', 3, '--finetune-steps', 5)
    assert status == 0, message
    summary = json.loads((tmp_path / 'demo/summary.json').read_text())
    accuracy = summary['accuracy_percent']
    assert set(accuracy) == {'raw pixels', 'encoder, random weights', 'encoder, pretrained'}
    assert accuracy['raw pixels']['knn'] > 95  # known accuracy of raw pixels on these digits
    for row in accuracy.values():
        assert set(row) == {'knn', 'linear_10_labels', 'linear_all_labels'}
        assert all(10 < value <= 100 for value in row.values())
    assert summary['steps'] == 60 and summary['images'] == dict(train=1297, test=500)
    assert summary['losses']['last']['pixel_loss'] < summary['losses']['first']['pixel_loss']
    few = summary['few_labels_percent']
    assert list(few) == ['pretrained, fine-tuned', 'from scratch', 'raw pixels, linear']
    assert all(list(row) == ['1', '2', '5', '10'] and all(len(v) == 3 for v in row.values()) for row in few.values())
    assert 84 < np.mean(few['raw pixels, linear']['10']) < 90  # known, as above
    for name in ('few_labels.png', 'reconstruction.png', 'curves.png'):
        assert (tmp_path / 'demo' / name).stat().st_size > 5000
        assert name in out
    assert 'tools/train.py' in out

    events = EventAccumulator(str(next((tmp_path / 'demo').glob('*/vis_data')))).Reload()
    assert events.Tags()['images'] == ['reconstruction', 'features']
    assert {'loss', 'pixel_loss', 'feature_loss', 'lr', 'ema_decay', 'grad_norm'} <= set(events.Tags()['scalars'])
    assert [event.step for event in events.Scalars('loss')] == [20, 40, 60]


def test_a_demo_without_epochs(tmp_path, run_tool):
    status, _, message = run_tool('demo.py', '--work-dir', tmp_path / 'demo', '--epochs', 0)
    assert status == 1 and message == 'error: --epochs must be at least 1, but is 0'


def test_the_demo_config_has_both_decoders_and_the_teacher():
    cfg = Config.fromfile(ROOT / 'configs/pretrain/bootmae_vitt_digits.py')
    assert cfg.model.neck.pixel.context_block == 0 and cfg.model.neck.feature.context_block == -1
    assert cfg.model.pixel_head.normalize == 'none'
    assert cfg.train_dataloader.num_workers >= 1
    assert cfg.default_hooks.ema.type == 'bootmae_mm.BootMAEEMAHook'
