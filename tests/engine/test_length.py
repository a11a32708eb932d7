"""Schedules are scaled to the length of a run."""

import pytest

from bootmae_mm.engine.checks import check_settings
from bootmae_mm.engine.launch import read_config
from tests.conftest import ROOT

PRETRAIN = str(ROOT / 'configs/pretrain/bootmae_vitb.py')


def spans(cfg):
    return [(s.get('begin', 0), s.get('end'), s.get('by_epoch', True)) for s in cfg.param_scheduler]


def test_a_new_length_scales_warmup_cosine_and_decay():
    cfg = read_config(PRETRAIN, {'train_cfg.max_epochs': 80})
    assert spans(cfg) == [(0, 4.0, True), (4.0, 80.0, True)]
    assert cfg.default_hooks.ema.decay == [(0, 0.999), (10.0, 0.9999), (40.0, 0.99999)]


@pytest.mark.parametrize('name', ['bootmae_vitb', 'bootmae_vitl', 'bootmae_vitb_100e', 'bootmae_vitl_300e'])
def test_a_schedule_stated_with_its_length_is_kept(name):
    cfg = read_config(str(ROOT / f'configs/pretrain/{name}.py'))
    end = cfg.train_cfg.max_epochs
    assert cfg.param_scheduler[1].end == end and cfg.param_scheduler[0].end in (20, 40)
    assert cfg.default_hooks.ema.decay[:2] == [(0, 0.999), (100, 0.9999)]
    assert cfg.default_hooks.ema.decay[-1][0] <= end


def test_a_child_config_that_changes_the_length(tmp_path):
    child = tmp_path / 'child.py'
    child.write_text(f'_base_ = {PRETRAIN!r}\ntrain_cfg = dict(max_epochs=400)\n')
    assert spans(read_config(str(child))) == [(0, 20.0, True), (20.0, 400.0, True)]
    # Its own schedule is kept.
    child.write_text(
        f"_base_ = {PRETRAIN!r}\ntrain_cfg = dict(max_epochs=400)\nparam_scheduler = [dict(type='ConstantLR', end=9)]\n"
    )
    assert read_config(str(child)).param_scheduler[0].end == 9


def test_a_schedule_on_the_command_line_is_kept():
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


def test_a_length_in_the_wrong_unit(tmp_path):
    with pytest.raises(ValueError, match='max_iters has no effect in this run of 800 epochs.*by_epoch=False too'):
        read_config(PRETRAIN, {'train_cfg.max_iters': 1000})
    with pytest.raises(ValueError, match='max_epochs has no effect in this run of 160000 iterations.*use max_iters'):
        read_config(str(ROOT / 'configs/seg/bootmae_vitb_upernet_ade20k.py'), {'train_cfg.max_epochs': 5})
    child = tmp_path / 'child.py'
    child.write_text(f'_base_ = {PRETRAIN!r}\ntrain_cfg = dict(max_iters=1000)\n')
    with pytest.raises(ValueError, match='max_iters has no effect'):
        read_config(str(child))
    child.write_text(f'_base_ = {PRETRAIN!r}\ntrain_cfg = dict(by_epoch=False, max_iters=1000)\n')
    assert dict(read_config(str(child)).train_cfg) == dict(by_epoch=False, max_iters=1000)


def test_helper_names_for_the_length_are_not_scaled_twice(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(
        f'_base_ = {PRETRAIN!r}\nmax_epochs = 80\ntrain_cfg = dict(max_epochs=max_epochs)\n'
        "param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs)]\n"
    )
    cfg = read_config(str(config), {'max_epochs': 40})
    assert cfg.train_cfg.max_epochs == 40 and spans(cfg) == [(0, 40, True)]
    assert cfg.default_hooks.ema.decay == [(0, 0.999), (5.0, 0.9999), (20.0, 0.99999)]


def test_a_run_by_iterations_keeps_given_intervals(tmp_path):
    options = {'train_cfg.by_epoch': False, 'train_cfg.max_iters': 8000}
    cfg = read_config(PRETRAIN, {**options, 'default_hooks.checkpoint.interval': 50})
    assert (cfg.default_hooks.checkpoint.by_epoch, cfg.default_hooks.checkpoint.interval) == (False, 50)
    cfg = read_config(PRETRAIN, {**options, 'default_hooks.checkpoint.max_keep_ckpts': 5})
    assert (cfg.default_hooks.checkpoint.by_epoch, cfg.default_hooks.checkpoint.interval) == (False, 100)
    child = tmp_path / 'child.py'
    child.write_text(
        f'_base_ = {PRETRAIN!r}\ntrain_cfg = dict(by_epoch=False, max_iters=8000)\n'
        'default_hooks = dict(checkpoint=dict(interval=50), ema=dict(decay=[(0, 0.9), (1000, 0.99)]))\n'
    )
    cfg = read_config(str(child))
    assert (cfg.default_hooks.checkpoint.by_epoch, cfg.default_hooks.checkpoint.interval) == (False, 50)
    assert cfg.default_hooks.ema.by_epoch is False and cfg.default_hooks.ema.decay[1][0] == 1000


def test_downstream_runs_by_iterations():
    """Validation at each twelfth of the run; a warm-up of 500 iterations is kept."""
    config = str(ROOT / 'configs/det/bootmae_vitb_mask_rcnn_1x_coco.py')
    cfg = read_config(config, {'train_cfg.by_epoch': False, 'train_cfg.max_iters': 12000})
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == 1000
    assert (cfg.param_scheduler[0].end, cfg.param_scheduler[1].milestones) == (500, [8000, 11000])


def test_a_schedule_that_is_changed_in_place_is_kept(tmp_path):
    child = tmp_path / 'child.py'
    child.write_text(
        f'_base_ = {PRETRAIN!r}\n_base_.param_scheduler[0].end = 20\n_base_.param_scheduler[1].begin = 20\n'
        '_base_.param_scheduler[1].end = 400\ntrain_cfg = dict(max_epochs=400)\n'
    )
    assert spans(read_config(str(child))) == [(0, 20, True), (20, 400, True)]


def test_an_option_that_is_no_position_does_not_stop_the_scaling():
    cfg = read_config(PRETRAIN, {'train_cfg.max_epochs': 80, 'param_scheduler.1.eta_min': 0.0})
    assert spans(cfg) == [(0, 4.0, True), (4.0, 80.0, True)]


def test_json_and_lazy_configs(tmp_path):
    (tmp_path / 'child.json').write_text(f'{{"_base_": "{PRETRAIN}", "train_cfg": {{"max_epochs": 400}}}}')
    assert spans(read_config(str(tmp_path / 'child.json'))) == [(0, 20.0, True), (20.0, 400.0, True)]
    (tmp_path / 'lazy_base.py').write_text(
        'train_cfg = dict(by_epoch=True, max_epochs=100)\n'
        "param_scheduler = [dict(type='PolyLR', by_epoch=True, end=100)]\n"
    )
    (tmp_path / 'lazy.py').write_text(
        'from mmengine.config import read_base\nwith read_base():\n    from .lazy_base import *\n'
        'train_cfg = dict(by_epoch=True, max_epochs=10)\n'
    )
    assert read_config(str(tmp_path / 'lazy.py')).param_scheduler[0].end == 10


def test_positions_that_are_no_numbers(tmp_path):
    """The scaling leaves them, and check_settings names them."""
    child = tmp_path / 'child.py'
    child.write_text(
        f"_base_ = {PRETRAIN!r}\nparam_scheduler = [dict(type='LinearLR', begin=None, end='abc'), 4]\n"
        'train_cfg = dict(max_epochs=800)\n'
    )
    for end, message in (
        ("'abc'", r'^param_scheduler\.0\.(begin|end) must be a valid number'),
        ('9', r'^param_scheduler\.0\.begin must be a valid number, but is None'),
    ):
        child.write_text(child.read_text().replace("'abc'", end))
        cfg = read_config(str(child), {'train_cfg.max_epochs': 5})
        with pytest.raises(ValueError, match=message):
            check_settings(cfg)
