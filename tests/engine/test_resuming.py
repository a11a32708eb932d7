"""A run that is resumed with another config follows that config."""

import math

import pytest
import torch

from bootmae_mm.engine.resuming import config_differences
from bootmae_mm.validation import ConfigError
from tests.engine.test_checkpoint import make_runner
from tests.engine.test_loops import BY_ITERATION, seen


def log_of(folder):
    return sorted((folder / 'work').glob('*/*.log'))[-1].read_text()


def rates(runner):
    """Train; return the learning rate of each iteration."""
    values = []
    step = runner.model.train_step

    def train_step(data, optim_wrapper):
        values.append(optim_wrapper.get_lr()['lr'][0])
        return step(data, optim_wrapper)

    runner.model.train_step = train_step
    runner.train()
    return values


def lr_at(iteration, warmup, end, peak, low=1e-5):
    """Linear warm-up and cosine, in closed form."""
    if iteration < warmup:
        return peak * (1e-6 + (1 - 1e-6) * iteration / (warmup - 1))
    return low + (peak - low) * (1 + math.cos(math.pi * (iteration - warmup) / (end - warmup))) / 2


def test_a_longer_run_and_another_lr(tmp_path, image_folder):
    """Four iterations per epoch; from the iteration of the resume on, the schedule is that of the longer run."""
    make_runner(tmp_path, image_folder, {}, batch_size=2, epochs=2).train()
    options = {'load_from': str(tmp_path / 'work/epoch_2.pth'), 'resume': True, 'optim_wrapper.optimizer.lr': 2e-3}
    found = rates(make_runner(tmp_path, image_folder, options, batch_size=2, epochs=6))
    assert len(found) == 16
    assert found == pytest.approx([lr_at(i, 4, 24, 2e-3) for i in range(8, 24)], rel=1e-6)
    log = log_of(tmp_path)
    assert 'resume: train_cfg.max_epochs was 2, is 6' in log
    assert 'resume: optim_wrapper.optimizer.lr was 0.001, is 0.002' in log


def test_the_same_config_is_resumed_with_the_saved_schedule(tmp_path, image_folder):
    make_runner(tmp_path, image_folder, {}, batch_size=2, epochs=3).train()
    options = {'load_from': str(tmp_path / 'work/epoch_1.pth'), 'resume': True}
    make_runner(tmp_path, image_folder, options, batch_size=2, epochs=3).train()
    log = log_of(tmp_path)
    assert 'schedules are those' not in log and ' was ' not in log


def test_decay_and_betas_of_the_config(tmp_path, image_folder):
    make_runner(tmp_path, image_folder, {}, epochs=1).train()
    options = {
        'load_from': str(tmp_path / 'work/epoch_1.pth'),
        'resume': True,
        'optim_wrapper.optimizer.weight_decay': 0.3,
        'optim_wrapper.optimizer.betas': (0.8, 0.9),
    }
    runner = make_runner(tmp_path, image_folder, options, epochs=2)
    runner.train()
    groups = runner.optim_wrapper.optimizer.param_groups
    assert [group['weight_decay'] for group in groups] == [0.3, 0.0]
    assert all(group['betas'] == (0.8, 0.9) for group in groups)


@pytest.mark.parametrize(('batch', 'length', 'first'), [(4, 2, 1), (1, 8, 6)])
def test_another_batch_inside_an_epoch(tmp_path, image_folder, batch, length, first):
    """Three iterations of two images are done: the next image is the seventh, with any batch size."""
    make_runner(tmp_path, image_folder, BY_ITERATION, batch_size=2, epochs=2).train()
    options = {**BY_ITERATION, 'load_from': str(tmp_path / 'work/iter_3.pth'), 'resume': True}
    runner = make_runner(tmp_path, image_folder, options, batch_size=batch, epochs=2)
    found = rates(runner)
    assert len(found) == 2 * length - first and runner.iter == 2 * length
    assert found[-1] == pytest.approx(lr_at(2 * length - 1, length, 2 * length, 1e-3), rel=1e-5)
    assert runner.message_hub.get_scalar('train/ema_decay').current() == pytest.approx(0.7)


def test_twice_the_batch_at_the_end_of_an_epoch(tmp_path, image_folder):
    make_runner(tmp_path, image_folder, {}, batch_size=2, epochs=2).train()
    options = {'load_from': str(tmp_path / 'work/epoch_1.pth'), 'resume': True}
    runner = make_runner(tmp_path, image_folder, options, batch_size=4, epochs=2)
    assert len(rates(runner)) == 2
    state = torch.load(tmp_path / 'work/epoch_2.pth', weights_only=False)
    assert (state['meta']['epoch'], state['meta']['iter']) == (2, 4)
    assert (state['meta']['iters_per_epoch'], state['meta']['images_per_iter']) == (2, 4)


def test_the_scaled_lr_of_auto_scale_lr(tmp_path, image_folder):
    make_runner(tmp_path, image_folder, {}, batch_size=2, epochs=2).train()
    scale = {'auto_scale_lr': dict(enable=True, base_batch_size=1)}
    options = {'load_from': str(tmp_path / 'work/epoch_1.pth'), 'resume': True, **scale}
    found = rates(make_runner(tmp_path, image_folder, options, batch_size=2, epochs=2))
    assert found[0] == pytest.approx(2e-3)


@pytest.mark.parametrize(
    ('options', 'epochs', 'message'),
    [
        (
            {'optim_wrapper.optimizer': dict(type='SGD', lr=0.1, _delete_=True)},
            3,
            "cannot change on resume.*optimizer.type was 'AdamW', and is 'SGD'",
        ),
        ({'randomness.seed': 5}, 3, 'cannot change on resume.*randomness.seed was 0, and is 5; .* use load_from'),
        ({}, 1, 'the checkpoint has finished 2 epochs: train_cfg.max_epochs must be at least 2'),
        (
            {'model.backbone.frozen_stages': 1},
            3,
            r'cannot change on resume.*frozen_stages.* was \[51, 100\], and is \[46, 90\]; .* use load_from',
        ),
    ],
)
def test_what_cannot_change_is_refused(tmp_path, image_folder, options, epochs, message):
    make_runner(tmp_path, image_folder, {}, epochs=2).train()
    options = {**options, 'load_from': str(tmp_path / 'work/epoch_2.pth'), 'resume': True}
    runner = make_runner(tmp_path, image_folder, options, epochs=epochs)
    with pytest.raises(ConfigError, match=message):
        runner.train()


def test_differences_of_configs():
    old = dict(a=dict(b=1, c=(1, 2)), work_dir='x', d=[dict(e=1)], f=None)
    new = dict(a=dict(b=2, c=[1, 2]), work_dir='y', d=[dict(e=1, g=3)])
    assert list(config_differences(old, new)) == [('a.b', 1, 2), ('d.0.g', None, 3)]
    steps = [dict(type='a'), dict(type='b')]
    (found,) = config_differences(dict(p=steps), dict(p=[steps[0], dict(type='c'), steps[1]]))
    assert found == ('p.1...', steps[1:], [dict(type='c'), steps[1]])


def test_auto_scale_lr_does_not_change_the_final_lr(tmp_path, image_folder):
    """The peak is scaled by 4, so eta_min_ratio is divided by 4; an absolute eta_min is kept."""
    ratio = [
        dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
        dict(
            type='CosineAnnealingLR',
            eta_min_ratio=0.1,
            by_epoch=True,
            begin=1,
            end=2,
            convert_to_iter_based=True,
        ),
    ]
    scale = {'auto_scale_lr': dict(enable=True, base_batch_size=1)}
    for options, low in (({'param_scheduler': ratio}, 1e-4), ({}, 1e-5)):
        runner = make_runner(tmp_path, image_folder, {**scale, **options}, batch_size=4, epochs=2)
        runner.train()
        cosine = runner.param_schedulers[1]
        end = cosine.eta_min if cosine.eta_min is not None else cosine.eta_min_ratio * cosine.base_values[0]
        assert cosine.base_values[0] == pytest.approx(4e-3) and end == pytest.approx(low)


def test_a_warm_up_of_one_iteration_has_no_effect(tmp_path, image_folder):
    """With mmengine alone, the lr would be a millionth of its peak during the whole run."""
    options = {'train_cfg': dict(_delete_=True, by_epoch=False, max_iters=4)}
    found = rates(make_runner(tmp_path, image_folder, options, batch_size=2, epochs=8))
    assert found[0] == pytest.approx(1e-3) and min(found) > 1e-5


@pytest.mark.parametrize('before', [True, False])
def test_a_scheduler_that_is_added(tmp_path, image_folder, before):
    """The lr is what it would have been with this scheduler from the start, with others or alone."""
    cosine = dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True, begin=0, end=4, convert_to_iter_based=True)
    warm = dict(type='LinearLR', start_factor=0.5, by_epoch=True, begin=0, end=2, convert_to_iter_based=True)
    first = {'param_scheduler': [warm] if before else None}
    make_runner(tmp_path, image_folder, first, batch_size=2, epochs=2).train()
    both = {'param_scheduler': [warm, cosine] if before else [cosine]}
    (tmp_path / 'other').mkdir()
    whole = rates(make_runner(tmp_path / 'other', image_folder, both, batch_size=2, epochs=4))
    options = {**both, 'load_from': str(tmp_path / 'work/epoch_2.pth'), 'resume': True}
    assert rates(make_runner(tmp_path, image_folder, options, batch_size=2, epochs=4)) == pytest.approx(whole[8:])


def test_another_batch_in_a_run_by_iterations(tmp_path, image_folder):
    """Six of the eight images of the first epoch are seen; the next one is the seventh, with any batch size."""
    options = {'train_cfg': dict(_delete_=True, by_epoch=False, max_iters=8), **BY_ITERATION}
    whole = sum(seen(make_runner(tmp_path, image_folder, options, batch_size=2)), [])
    options |= {'load_from': str(tmp_path / 'work/iter_3.pth'), 'resume': True}
    found = sum(seen(make_runner(tmp_path, image_folder, options, batch_size=1)), [])
    assert found == whole[6:11]
