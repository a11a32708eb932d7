"""Logged values of a step, and the checks of losses, gradients and features."""

import math
import sys

import pytest
import torch
from mmengine.hooks import Hook

from bootmae_mm.engine.hooks import MonitorHook
from bootmae_mm.visualization import read_scalars
from tests.conftest import tiny_config
from tests.engine.test_hooks import make_runner


def test_scalars_of_every_interval(tmp_path, image_folder):
    runner = make_runner(tmp_path, image_folder)
    runner.train()
    scalars = read_scalars(tmp_path / 'work')
    assert [entry['step'] for entry in scalars] == list(range(1, 7))
    names = {
        'loss',
        'pixel_loss',
        'feature_loss',
        'feature_weight',
        'ema_decay',
        'lr',
        'grad_norm',
        'feature_pred_norm',
        'feature_target_norm',
        'feature_target_std',
        'data_time',
        'time',
        'memory',
    }
    for entry in scalars:
        assert names <= set(entry), names - set(entry)
        assert all(math.isfinite(entry[name]) for name in names)
    assert scalars[0]['loss'] == pytest.approx(
        scalars[0]['pixel_loss'] + scalars[0]['feature_weight'] * scalars[0]['feature_loss'], rel=1e-5
    )
    assert [entry['ema_decay'] for entry in scalars] == pytest.approx([0.5, 0.5, 0.7, 0.7, 0.9, 0.9])
    assert 'eta:' in next((tmp_path / 'work').glob('*/*.log')).read_text()


def test_values_are_fetched_once_per_interval(tmp_path, image_folder, monkeypatch):
    runner = make_runner(
        tmp_path, image_folder, {'default_hooks.logger.interval': 2, 'default_hooks.reconstruction': None}, batch_size=2
    )
    fetched = []

    def watched(method):
        def call(self):
            # Optimizers read their step counters, which are always on the CPU.
            if 'torch/optim' not in sys._getframe(1).f_code.co_filename:
                fetched.append(method.__name__)
            return method(self)

        return call

    for name in ('item', 'tolist', 'cpu', 'numpy', '__float__', '__bool__', '__int__'):
        monkeypatch.setattr(torch.Tensor, name, watched(getattr(torch.Tensor, name)), raising=False)

    class Count(Hook):
        priority = 'LOWEST'

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            fetched.clear()

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            counts.append(len(fetched))

    counts = []
    runner.register_hook(Count())
    runner.train()
    assert len(counts) == 12
    assert set(counts[0::2]) == {0}  # no wait for the device between log lines
    assert set(counts[1::2]) == {1}
    scalars = read_scalars(tmp_path / 'work')
    assert len(scalars) == 6


class Poison(Hook):
    """Sets a weight to NaN before an iteration."""

    priority = 'LOWEST'

    def __init__(self, iteration):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.iteration:
            with torch.no_grad():
                runner.model.neck.decoders['pixel'].embed.weight[0, 0] = float('nan')


def test_non_finite_loss_stops_the_run(tmp_path, image_folder):
    runner = make_runner(tmp_path, image_folder)
    runner.register_hook(Poison(4))
    with pytest.raises(
        FloatingPointError,
        match=r'loss and grad_norm not finite at iteration 4: loss nan, pixel_loss nan, feature_loss \d.*epoch_1.pth',
    ):
        runner.train()


def test_non_finite_gradient_stops_the_run(tmp_path, image_folder):
    runner = make_runner(tmp_path, image_folder)

    class PoisonGradient(Hook):
        def before_train(self, runner):
            weight = runner.model.pixel_head.projection.weight
            weight.register_hook(lambda g: g * float('inf') if runner.iter == 2 else g)

    runner.register_hook(PoisonGradient())
    with pytest.raises(FloatingPointError, match='grad_norm not finite at iteration 3'):
        runner.train()


def test_no_checkpoint_is_written_after_a_non_finite_loss(tmp_path, image_folder):
    options = {'default_hooks.logger.interval': 100, 'default_hooks.logger.ignore_last': False}
    runner = make_runner(tmp_path, image_folder, options, epochs=2)
    runner.register_hook(Poison(3))
    with pytest.raises(FloatingPointError, match='at iteration 3'):
        runner.train()
    assert not (tmp_path / 'work/epoch_2.pth').exists()


def test_the_history_of_a_logged_value_is_bounded(tmp_path, image_folder):
    """mmengine copies the whole history in every iteration."""
    runner = make_runner(tmp_path, image_folder, {'default_hooks.runtime_info.history': 2})
    runner.train()
    for name, buffer in runner.message_hub.log_scalars.items():
        assert len(buffer.data[0]) <= 3, name
    assert len(runner.message_hub.get_scalar('train/loss').data[0]) == 2
    with pytest.raises(ValueError, match='^history must be greater than or equal to 1, but is 0$'):
        MonitorHook(history=0)


def poisoned(tmp_path, image_folder, iterations, **options):
    """A runner whose gradient of one weight is NaN at some iterations, and a list of its states after each one."""
    options = {f'default_hooks.runtime_info.{name}': value for name, value in options.items()}
    runner = make_runner(tmp_path, image_folder, options)
    weight = runner.model.backbone.layers[1].ffn.layers[1].weight
    weight.register_hook(lambda gradient: gradient * (math.nan if runner.iter + 1 in iterations else 1.0))
    states = []

    class Look(Hook):
        priority = 'VERY_LOW'

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            states.append({name: value.clone() for name, value in runner.model.state_dict().items()})

    runner.register_hook(Look())
    return runner, states


def test_a_step_with_a_gradient_that_is_not_finite_is_skipped_and_counted(tmp_path, image_folder):
    """Weights, teacher and optimizer do not change; checkpoints hold the count."""
    runner, states = poisoned(tmp_path, image_folder, [3, 5], max_skipped=2)
    runner.train()
    for iteration in range(2, 7):
        before, after = states[iteration - 2], states[iteration - 1]
        same = all(torch.equal(before[name], value) for name, value in after.items())
        assert same == (iteration in (3, 5)), iteration
    assert all(state['step'] == 4 for state in runner.optim_wrapper.optimizer.state_dict()['state'].values())
    saved = torch.load(tmp_path / 'work/epoch_3.pth', weights_only=False)
    assert saved['message_hub']['runtime_info']['skipped_steps'] == 2
    assert all(math.isfinite(entry['grad_norm']) for entry in read_scalars(tmp_path / 'work') if 'grad_norm' in entry)


def test_more_skipped_steps_than_allowed_stop_the_run(tmp_path, image_folder):
    runner, _ = poisoned(tmp_path, image_folder, [3, 5], max_skipped=1)
    with pytest.raises(
        FloatingPointError, match=r'iteration 5, first of backbone.layers.1.ffn.layers.1.weight, after 1'
    ):
        runner.train()
    (tmp_path / 'again').mkdir()
    runner, _ = poisoned(tmp_path / 'again', image_folder, [3])
    with pytest.raises(FloatingPointError, match='grad_norm not finite at iteration 3'):
        runner.train()


def test_a_collapse_is_logged(tmp_path, image_folder):
    runner = make_runner(tmp_path, image_folder, {'default_hooks.runtime_info.min_target_std': 0.1})
    runner.model.feature_head.statistics = lambda prediction, target: dict(target_std=torch.tensor(0.05))
    runner.train()
    (log,) = (tmp_path / 'work').glob('*/*.log')
    assert log.read_text().count('feature_target_std is 0.05 at iteration 1, below 0.1') == 1
    assert log.read_text().count('have collapsed') == 1
    with pytest.raises(ValueError, match='^max_skipped must be greater than or equal to 0, but is -1$'):
        MonitorHook(max_skipped=-1)


def test_no_collapse_of_what_the_teacher_does_not_give(tmp_path, image_folder):
    """Flat images have equal histograms, which says nothing about the teacher."""
    head = dict(type='bootmae_mm.BootMAEHead', target=dict(type='bootmae_mm.HOGTarget'))
    options = {'default_hooks.runtime_info.min_target_std': 0.1}
    runner = make_runner(tmp_path, image_folder, options, model=tiny_config(feature_head=head))
    runner.model.feature_head.statistics = lambda prediction, target: dict(target_std=torch.tensor(0.05))
    runner.train()
    (log,) = (tmp_path / 'work').glob('*/*.log')
    assert 'feature_target_std: 0.05' in log.read_text() and 'collapsed' not in log.read_text()


def test_norms_before_and_after_clipping_are_logged(tmp_path, image_folder):
    """mmengine logs only the norm before clipping."""
    runner = make_runner(tmp_path, image_folder, {'optim_wrapper.clip_grad': dict(max_norm=0.1)})
    runner.train()
    logged = {
        name: runner.message_hub.get_scalar(f'train/{name}')._log_history for name in ('grad_norm', 'clipped_grad_norm')
    }
    assert len(logged['grad_norm']) == len(logged['clipped_grad_norm']) == 6
    assert min(logged['grad_norm']) > 0.2
    assert logged['clipped_grad_norm'] == pytest.approx([0.1] * 6, rel=1e-4)
