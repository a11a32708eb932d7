"""Schedules follow the length of a run."""

import pytest

from bootmae_mm.engine.launch import read_config
from tests.conftest import ROOT

PRETRAIN = str(ROOT / 'configs/pretrain/bootmae_vitb.py')


def spans(cfg):
    return [(s.get('begin', 0), s.get('end'), s.get('by_epoch', True)) for s in cfg.param_scheduler]


def test_the_length_alone_scales_warmup_cosine_and_decay():
    cfg = read_config(PRETRAIN, {'train_cfg.max_epochs': 80})
    assert spans(cfg) == [(0, 4.0, True), (4.0, 80.0, True)]
    assert cfg.default_hooks.ema.decay == [(0, 0.999), (10.0, 0.9999), (40.0, 0.99999)]


@pytest.mark.parametrize('name', ['bootmae_vitb', 'bootmae_vitl', 'bootmae_vitb_100e', 'bootmae_vitl_300e'])
def test_what_is_written_for_its_length_stays(name):
    cfg = read_config(str(ROOT / f'configs/pretrain/{name}.py'))
    end = cfg.train_cfg.max_epochs
    assert cfg.param_scheduler[1].end == end and cfg.param_scheduler[0].end in (20, 40)
    assert cfg.default_hooks.ema.decay[:2] == [(0, 0.999), (100, 0.9999)]
    assert cfg.default_hooks.ema.decay[-1][0] <= end


def test_a_child_config_that_changes_the_length(tmp_path):
    child = tmp_path / 'child.py'
    child.write_text(f'_base_ = {PRETRAIN!r}\ntrain_cfg = dict(max_epochs=400)\n')
    assert spans(read_config(str(child))) == [(0, 20.0, True), (20.0, 400.0, True)]
    # A schedule of its own is taken as it is.
    child.write_text(
        f"_base_ = {PRETRAIN!r}\ntrain_cfg = dict(max_epochs=400)\nparam_scheduler = [dict(type='ConstantLR', end=9)]\n"
    )
    assert read_config(str(child)).param_scheduler[0].end == 9


def test_a_schedule_on_the_command_line_is_taken_as_it_is():
    cfg = read_config(PRETRAIN, {'train_cfg.max_epochs': 80, 'param_scheduler.0.end': 10, 'param_scheduler.1.end': 80})
    assert spans(cfg) == [(0, 10, True), (40, 80, True)]
    assert cfg.default_hooks.ema.decay[-1][0] == 40


def test_iterations_from_a_config_by_epochs():
    cfg = read_config(PRETRAIN, {'train_cfg.by_epoch': False, 'train_cfg.max_iters': 8000})
    assert spans(cfg) == [(0, 400, False), (400, 8000, False)]
    assert 'max_epochs' not in cfg.train_cfg and not any('convert_to_iter_based' in s for s in cfg.param_scheduler)
    hooks = cfg.default_hooks
    assert hooks.ema.decay == [(0, 0.999), (1000, 0.9999), (4000, 0.99999)] and hooks.ema.by_epoch is False
    assert (hooks.checkpoint.by_epoch, hooks.checkpoint.interval) == (False, 100)
    assert (hooks.reconstruction.by_epoch, hooks.reconstruction.interval) == (False, 200)
    assert hooks.feature_weight.by_epoch is False and cfg.log_processor.by_epoch is False


def test_downstream_runs():
    cfg = read_config(str(ROOT / 'configs/cls/bootmae_vitb_ft_100e.py'), {'train_cfg.max_epochs': 10})
    assert spans(cfg) == [(0, 2.0, True), (2.0, 10.0, True)]
    cfg = read_config(str(ROOT / 'configs/det/bootmae_vitb_mask_rcnn_1x_coco.py'), {'train_cfg.max_epochs': 6})
    assert cfg.param_scheduler[0].end == 250 and cfg.param_scheduler[1].milestones == [4, 6]
    cfg = read_config(str(ROOT / 'configs/seg/bootmae_vitb_upernet_ade20k.py'), {'train_cfg.max_iters': 16000})
    assert [s.end for s in cfg.param_scheduler] == [150, 16000]
