"""The hooks in real runs of mmengine's Runner."""

import json
import math
import random
import sys

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from bootmae_mm.engine.hooks import BootMAEEMAHook, FeatureWeightHook, MonitorHook, ReconstructionHook
from bootmae_mm.engine.hooks.teacher import ema_update
from bootmae_mm.engine.launch import prepare, read_config
from bootmae_mm.engine.schedules import feature_weight, piecewise_linear
from bootmae_mm.visualization import read_scalars
from tests.conftest import build, run_config, tiny_config


def make_runner(tmp_path, image_folder, options=None, **changes):
    config = run_config(tmp_path / 'config.py', image_folder, **changes)
    cfg = read_config(str(config), options or {}, str(tmp_path / 'work'))
    cfg.experiment_name = tmp_path.name
    prepare(cfg)
    return Runner.from_cfg(cfg)


class Witness(Hook):
    """Follows the teacher by hand, from what the optimizer leaves."""

    priority = 'HIGHEST'  # before the EMA hook

    def __init__(self):
        self.steps, self.log = 0, []

    def before_train(self, runner):
        self.teacher = {k: v.clone() for k, v in runner.model.backbone.state_dict().items()}
        runner.optim_wrapper.optimizer.register_step_post_hook(self.stepped)
        self.model = runner.model
        self.fresh = False

    def stepped(self, *_):
        self.steps += 1
        self.fresh = True

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        epoch = runner.epoch
        if self.fresh:
            decay = piecewise_linear(epoch, [(0, 0.5), (2, 0.9)])
            for name, value in self.model.backbone.state_dict().items():
                self.teacher[name] = decay * self.teacher[name] + (1 - decay) * value
            self.fresh = False
        self.log.append((epoch, self.model.feature_weight))


@pytest.mark.parametrize('accumulate', [1, 2])
def test_teacher_follows_optimizer_steps_only(tmp_path, image_folder, accumulate):
    runner = make_runner(tmp_path, image_folder, accumulate=accumulate)
    witness = Witness()
    runner.register_hook(witness)
    runner.train()
    assert witness.steps == 6 / accumulate  # 8 images, batches of 4, 3 epochs
    teacher = runner.model.teacher.state_dict()
    for name, value in witness.teacher.items():
        torch.testing.assert_close(teacher[name], value, rtol=1e-5, atol=1e-7)
    assert not torch.equal(teacher['layers.0.attn.qkv.weight'], runner.model.backbone.layers[0].attn.qkv.weight)
    for epoch, weight in witness.log:
        assert weight == pytest.approx(feature_weight(epoch, 3, 0.7, 0.5))
    # The checkpoint holds student and teacher.
    state = torch.load(tmp_path / 'work/epoch_3.pth', weights_only=True)['state_dict']
    assert torch.equal(state['teacher.cls_token'], runner.model.teacher.cls_token)


def test_teacher_is_a_copy_of_loaded_weights_at_a_fresh_start(tmp_path, image_folder):
    source = build(tiny_config())
    state = {k: v for k, v in source.state_dict().items() if not k.startswith('teacher.')}
    torch.save(dict(state_dict=state), tmp_path / 'student.pth')
    runner = make_runner(tmp_path, image_folder, dict(load_from=str(tmp_path / 'student.pth')), epochs=2)
    seen = {}

    class Look(Hook):
        priority = 'LOW'

        def before_train(self, runner):
            seen.update({k: v.clone() for k, v in runner.model.teacher.state_dict().items()})

    runner.register_hook(Look())
    runner.train()
    for name, value in source.backbone.state_dict().items():
        assert torch.equal(seen[name], value), name


def test_ema_update_by_hand_and_exact_where_equal():
    teacher, student = (
        [torch.tensor([1.0, 2.0]), torch.tensor([[0.3]])],
        [torch.tensor([3.0, 2.0]), torch.tensor([[0.3]])],
    )
    ema_update(teacher, student, 0.9)
    torch.testing.assert_close(teacher[0], torch.tensor([1.2, 2.0]))
    assert torch.equal(teacher[1], student[1])


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


def test_values_are_fetched_once_an_interval(tmp_path, image_folder, monkeypatch):
    runner = make_runner(
        tmp_path, image_folder, {'default_hooks.logger.interval': 2, 'default_hooks.reconstruction': None}, batch_size=2
    )
    fetched = []

    def watched(method):
        def call(self):
            # The step counters that optimizers read live on the CPU, whatever the device of the weights.
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
    assert set(counts[0::2]) == {0}  # between two log lines nothing waits
    assert set(counts[1::2]) == {1}
    scalars = read_scalars(tmp_path / 'work')
    assert len(scalars) == 6


class Poison(Hook):
    """Makes the weights useless before an iteration."""

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


def resumed(tmp_path, image_folder, workers, accumulate):
    whole = make_runner(tmp_path, image_folder, workers=workers, accumulate=accumulate)
    whole.train()
    (tmp_path / 'work/epoch_1.pth').rename(tmp_path / 'stopped.pth')
    runner = make_runner(
        tmp_path,
        image_folder,
        dict(resume=True, load_from=str(tmp_path / 'stopped.pth')),
        workers=workers,
        accumulate=accumulate,
    )
    torch.manual_seed(1234)  # whatever happened in between
    runner.train()
    return whole, runner


@pytest.mark.parametrize(('workers', 'accumulate'), [(0, 1), (2, 2)])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, image_folder, workers, accumulate):
    whole, runner = resumed(tmp_path, image_folder, workers, accumulate)
    assert runner.iter == whole.iter == 6
    ours, theirs = runner.model.state_dict(), whole.model.state_dict()
    assert any(name.startswith('teacher.') for name in ours)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    a, b = runner.optim_wrapper.state_dict(), whole.optim_wrapper.state_dict()
    assert a['param_groups'] == b['param_groups']
    for index, state in b['state'].items():
        for key, value in state.items():
            assert torch.equal(a['state'][index][key], value), (index, key)
    for one, other in zip(runner.param_schedulers, whole.param_schedulers, strict=True):
        assert one.state_dict() == other.state_dict()


def test_iteration_based_run_shorter_than_an_epoch(tmp_path, image_folder):
    config = run_config(tmp_path / 'config.py', image_folder, batch_size=2)
    cfg = read_config(str(config), {}, str(tmp_path / 'work'))
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=3, val_interval=100)
    cfg.param_scheduler = []
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=2)
    cfg.log_processor = dict(by_epoch=False)
    cfg.experiment_name = tmp_path.name
    prepare(cfg)
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert [entry['step'] for entry in read_scalars(tmp_path / 'work')] == [1, 2, 3]
    assert (tmp_path / 'work/iter_2.pth').exists()
    assert len(list((tmp_path / 'work').glob('*/vis_data/vis_image/*'))) == 1
    assert runner.model.feature_weight == 0.7  # (0 + 1) / (0.5 * 3 / 4) is more than 1


def test_pictures_leave_random_numbers_as_they_were(tmp_path, image_folder):
    runner = make_runner(tmp_path, image_folder)
    runner.model.init_weights()
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    wanted = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    ReconstructionHook()._draw(runner, step=1)
    assert wanted == (random.random(), np.random.rand(), torch.rand(1))


def test_pictures_during_training(tmp_path, image_folder):
    runner = make_runner(tmp_path, image_folder)
    runner.train()
    pictures = sorted(path.name for path in (tmp_path / 'work').glob('*/vis_data/vis_image/*'))
    assert pictures == ['reconstruction_2.png', 'reconstruction_3.png']
    assert (tmp_path / 'work/curves.png').stat().st_size > 10_000
    assert runner.model.training


def test_curves_that_cannot_be_written_end_no_run(tmp_path, image_folder):
    runner = make_runner(tmp_path, image_folder)
    (tmp_path / 'work/curves.png').mkdir()
    runner.train()
    assert (tmp_path / 'work/epoch_3.pth').is_file()


def test_evaluation_on_held_out_images(tmp_path, image_folder):
    runner = make_runner(tmp_path, image_folder)
    runner.model.init_weights()
    metrics = runner.test()
    assert set(metrics) >= {'pretrain/pixel_loss', 'pretrain/feature_loss'}
    batches = list(runner.test_dataloader)
    losses = [
        runner.model(**runner.model.data_preprocessor(batch), mode='loss')['pixel_loss'].item() for batch in batches
    ]
    assert metrics['pretrain/pixel_loss'] == pytest.approx(sum(losses) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ('hook', 'options', 'message'),
    [
        (BootMAEEMAHook, dict(decay=[(0, 1.2)]), 'decay'),
        (BootMAEEMAHook, dict(decay=[(5, 0.5), (3, 0.6)]), 'rising'),
        (FeatureWeightHook, dict(weight=-1), 'weight'),
        (ReconstructionHook, dict(interval=0), 'interval'),
    ],
)
def test_impossible_options(hook, options, message):
    with pytest.raises(ValueError, match=message):
        hook(**options)


def test_hooks_are_idle_without_a_momentum_teacher(tmp_path, image_folder):
    config = tiny_config(feature_head=None)
    config['neck']['feature'] = None
    runner = make_runner(tmp_path, image_folder, model=config, epochs=2)
    runner.train()
    entry = read_scalars(tmp_path / 'work')[-1]
    assert 'ema_decay' not in entry and 'feature_weight' not in entry
    assert json.dumps(entry)


def test_the_history_of_a_logged_value_is_bounded(tmp_path, image_folder):
    """mmengine copies all of it in every iteration."""
    runner = make_runner(tmp_path, image_folder, {'default_hooks.runtime_info.history': 2})
    runner.train()
    for name, buffer in runner.message_hub.log_scalars.items():
        assert len(buffer.data[0]) <= 3, name
    assert len(runner.message_hub.get_scalar('train/loss').data[0]) == 2
    with pytest.raises(ValueError, match='history must be an int >= 1'):
        MonitorHook(history=0)


def poisoned(tmp_path, image_folder, iterations, **options):
    """A runner whose gradient of one weight is not a number at some iterations, and its state before and after each."""
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
    """Weights, teacher and optimizer stay; the count goes into checkpoints."""
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


def test_a_collapse_is_warned_of(tmp_path, image_folder):
    runner = make_runner(tmp_path, image_folder, {'default_hooks.runtime_info.min_target_std': 0.1})
    runner.model._feature_norms = lambda prediction, features, target: dict(feature_target_std=torch.tensor(0.05))
    runner.train()
    (log,) = (tmp_path / 'work').glob('*/*.log')
    assert log.read_text().count('feature_target_std is 0.05 at iteration 1, below 0.1') == 1
    assert log.read_text().count('have collapsed') == 1
    with pytest.raises(ValueError, match='must be a(n int| number) >= 0'):
        MonitorHook(max_skipped=-1)


def test_norms_of_clipped_gradients_have_names_of_their_own(tmp_path, image_folder):
    """mmengine logs the one before clipping."""
    runner = make_runner(tmp_path, image_folder, {'optim_wrapper.clip_grad': dict(max_norm=0.1)})
    runner.train()
    logged = {
        name: runner.message_hub.get_scalar(f'train/{name}')._log_history for name in ('grad_norm', 'clipped_grad_norm')
    }
    assert len(logged['grad_norm']) == len(logged['clipped_grad_norm']) == 6
    assert min(logged['grad_norm']) > 0.2
    assert logged['clipped_grad_norm'] == pytest.approx([0.1] * 6, rel=1e-4)
