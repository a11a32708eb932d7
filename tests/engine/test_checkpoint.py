"""Checkpoints of a Runner in this process: kept, refused, resumed mid-epoch."""

import signal
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook

from bootmae_mm.engine import CheckpointHook, InterruptionHook
from bootmae_mm.engine.hooks.interruption import Interrupted
from bootmae_mm.engine.launch import prepare, read_config
from bootmae_mm.engine.recovery import latest_checkpoint
from bootmae_mm.engine.runner import Runner
from bootmae_mm.validation import ConfigError
from tests.conftest import run_config


def make_runner(tmp_path, image_folder, options, **arguments):
    config = run_config(tmp_path / 'config.py', image_folder, **arguments)
    cfg = read_config(str(config), {'default_hooks.curves': None, **options}, str(tmp_path / 'work'))
    cfg.experiment_name = f'{tmp_path.name}_{len(list(tmp_path.iterdir()))}'
    prepare(cfg)
    return Runner.from_cfg(cfg)


def names(folder):
    return sorted(path.name for path in Path(folder).glob('*.pth'))


def test_the_newest_and_the_milestones_are_kept(tmp_path, image_folder):
    options = {'default_hooks.checkpoint.max_keep_ckpts': 2, 'default_hooks.checkpoint.keep_every': 3}
    make_runner(tmp_path, image_folder, options, epochs=7).train()
    assert names(tmp_path / 'work') == ['epoch_3.pth', 'epoch_6.pth', 'epoch_7.pth']
    assert latest_checkpoint(tmp_path / 'work') == tmp_path / 'work/epoch_7.pth'


def test_weights_that_are_not_finite_are_not_saved(tmp_path, image_folder):
    runner = make_runner(tmp_path, image_folder, {}, epochs=2)

    class Break(CheckpointHook):
        def before_train_epoch(self, runner):
            if runner.epoch == 1:
                runner.model.teacher.ln1.weight.data[3] = float('nan')

    runner.register_hook(Break())
    with pytest.raises(FloatingPointError, match=r'not finite at iteration'):
        runner.train()
    assert names(tmp_path / 'work') == ['epoch_1.pth']


def test_a_full_disk_is_an_error_before_training(tmp_path, image_folder, monkeypatch):
    runner = make_runner(tmp_path, image_folder, {})
    monkeypatch.setattr('shutil.disk_usage', lambda path: type('Usage', (), dict(free=1000)))
    (tmp_path / 'work').mkdir(exist_ok=True)
    left = tmp_path / 'work/.interrupted_7.pth.part'  # of a killed run
    left.write_bytes(b'half')
    with pytest.raises(OSError, match='a checkpoint takes .* MiB, but .* has 0.0 free'):
        runner.train()
    assert not left.exists()
    assert runner.iter == 0


def test_hooks_see_the_remaining_iterations(tmp_path, image_folder):
    """Epoch, index in the epoch and iteration are those of the uninterrupted run."""
    options = {'default_hooks.checkpoint.by_epoch': False, 'default_hooks.checkpoint.interval': 3}

    def seen(**start):
        runner = make_runner(tmp_path, image_folder, {**options, **start}, batch_size=2, epochs=3)
        numbers = []

        class Look(Hook):
            def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
                numbers.append((runner.epoch, batch_idx, runner.iter))

        runner.register_hook(Look())
        runner.train()
        return numbers

    whole = seen()
    assert whole[6] == (1, 2, 6) and len(whole) == 12
    assert seen(load_from=str(tmp_path / 'work/iter_6.pth'), resume=True) == whole[6:]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(signals=('SIGNONE',)), r"signals\.0 must be 'SIGTERM', .* but is 'SIGNONE'"),
        (dict(grace=0), 'grace must be greater than 0, but is 0'),
        (dict(interval=0), 'interval must be greater than or equal to 1, but is 0'),
        (dict(interval=1.5), 'interval must be a valid integer, but is 1.5'),
        (dict(status=0), 'status must be greater than or equal to 1, but is 0'),
        (dict(status=200), 'status must be less than or equal to 125, but is 200'),
    ],
)
def test_impossible_interruptions(options, message):
    with pytest.raises(ConfigError, match=f'^{message}$'):
        InterruptionHook(**options)


@pytest.mark.parametrize(
    ('several', 'interval', 'checks'), [(False, 3, [2, 4, 6, 8, 10]), (True, 1, [2, 4, 6, 8, 10]), (True, 3, [6])]
)
def test_the_interval_of_interruptions_counts_optimizer_steps(several, interval, checks):
    """Only several processes wait for the interval; no check in the last iteration of the run."""
    hook, found = InterruptionHook(interval=interval), []
    hook._group = object() if several else None
    hook._agreed = lambda: bool(found.append(runner.iter + 1))
    runner = SimpleNamespace(max_iters=12, optim_wrapper=SimpleNamespace(_accumulative_counts=2))
    for runner.iter in range(12):
        hook.after_train_iter(runner, 0)
    assert found == checks


def test_impossible_milestones():
    with pytest.raises(ConfigError, match='^keep_every must be greater than or equal to 1, but is 0$'):
        CheckpointHook(keep_every=0)


def test_milestones_are_kept_if_fewer_checkpoints_are_kept_after_a_resume(tmp_path, image_folder):
    options = {'default_hooks.checkpoint.max_keep_ckpts': 5, 'default_hooks.checkpoint.keep_every': 2}
    make_runner(tmp_path, image_folder, options, epochs=5).train()
    options |= {'load_from': str(tmp_path / 'work/epoch_5.pth'), 'resume': True}
    options['default_hooks.checkpoint.max_keep_ckpts'] = 1
    make_runner(tmp_path, image_folder, options, epochs=6).train()
    assert names(tmp_path / 'work') == ['epoch_2.pth', 'epoch_4.pth', 'epoch_6.pth']


@pytest.mark.parametrize('metrics', [['loss'], ['loss', 'error']])
def test_the_best_is_removed_after_a_better_one_is_written(tmp_path, image_folder, metrics, monkeypatch):
    """One that cannot be written neither ends the run nor replaces the one before."""
    runner = make_runner(tmp_path, image_folder, {}, epochs=2)
    runner.train()
    hook = CheckpointHook(save_best=metrics if len(metrics) > 1 else metrics[0], rule='less')
    hook.before_train(runner)
    folder = tmp_path / 'work'

    def best(loss):
        runner.train_loop._epoch += 1
        hook.after_val_epoch(runner, dict.fromkeys(metrics, loss))
        return sorted(path.name for path in folder.glob('best_*.pth'))

    assert best(0.5) == sorted(f'best_{metric}_epoch_3.pth' for metric in metrics)
    assert best(0.7) == sorted(f'best_{metric}_epoch_3.pth' for metric in metrics)

    def full(part, path):
        assert list(folder.glob('best_loss_epoch_3.pth')), 'removed too early'
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr('bootmae_mm.engine.runner.replace_atomically', full)
        assert best(0.3) == sorted(f'best_{metric}_epoch_3.pth' for metric in metrics)
    assert best(0.4) == sorted(f'best_{metric}_epoch_6.pth' for metric in metrics)


def test_a_full_disk_while_the_last_checkpoint_is_recorded(tmp_path, image_folder, monkeypatch):
    """Checkpoints are written, the oldest is removed, and a later start finds the newest."""
    runner = make_runner(tmp_path, image_folder, {'default_hooks.checkpoint.max_keep_ckpts': 2}, epochs=3)
    recorded = []

    def full(work_dir, path):
        recorded.append(path.name)
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('bootmae_mm.engine.hooks.checkpoint.write_last', full)
    runner.train()
    assert recorded == ['epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth'] and runner.epoch == 3
    assert names(tmp_path / 'work') == ['epoch_2.pth', 'epoch_3.pth']
    assert latest_checkpoint(tmp_path / 'work') == tmp_path / 'work/epoch_3.pth'


@pytest.mark.parametrize(('saved', 'status'), [(None, 1), (Path('interrupted_3.pth'), 75)])
def test_the_status_after_the_grace_time_tells_whether_a_checkpoint_was_saved(
    tmp_path, image_folder, monkeypatch, saved, status
):
    runner = make_runner(tmp_path, image_folder, {}, epochs=2)
    hook = InterruptionHook(grace=0.01)
    hook.before_train(runner)
    ended = []
    monkeypatch.setattr('os._exit', ended.append)
    hook._saved = saved
    signal.raise_signal(signal.SIGTERM)
    limit = time.monotonic() + 10
    while not ended and time.monotonic() < limit:
        time.sleep(0.01)
    hook.after_train(runner)
    assert ended == [status]


def test_an_interruption_waits_for_the_step_of_an_accumulation(tmp_path, image_folder):
    runner = make_runner(tmp_path, image_folder, {}, batch_size=2, accumulate=2, epochs=2)

    class Ask(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter + 1 == 3:
                signal.raise_signal(signal.SIGTERM)

    runner.register_hook(Ask())
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r'resume with --resume from .*interrupted_4.pth') as interrupted:
        runner.train()
    assert names(tmp_path / 'work') == ['interrupted_4.pth']
    assert interrupted.value.status == 75 and 60 < interrupted.value.left < 120
    # A program that called train() can continue: no handler is left, and no timer that ends the process.
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    hook = next(hook for hook in runner.hooks if isinstance(hook, InterruptionHook))
    hook._watch.join(10)
    assert not hook._watch.is_alive()


@pytest.mark.parametrize(('epoch', 'averaged'), [(1, False), (2, False), (1, True)])
def test_a_validation_is_abandoned(tmp_path, image_folder, epoch, averaged):
    """The run resumes after it, with the trained weights, not with their averages."""
    config = run_config(tmp_path / 'config.py', image_folder, epochs=2)
    with open(config, 'a', encoding='utf-8') as text:
        text.write('val_dataloader, val_evaluator, val_cfg = test_dataloader, test_evaluator, dict()\n')
        text.write("custom_hooks = [dict(type='EMAHook', momentum=0.5)]\n" if averaged else '')
    validated = []

    class Ask(Hook):
        def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            validated.append((runner.epoch, batch_idx))
            if runner.epoch == epoch:
                signal.raise_signal(signal.SIGTERM)

    def train(work, asked=False, **options):
        cfg = read_config(str(config), {'default_hooks.curves': None, **options}, str(tmp_path / work))
        cfg.experiment_name = f'{tmp_path.name}_{work}_{asked}'
        prepare(cfg)
        runner = Runner.from_cfg(cfg)
        if asked:
            runner.register_hook(Ask())
        runner.train()

    with pytest.raises(Interrupted) as interrupted:
        train('a', asked=True)
    assert validated[-1] == (epoch, 0)
    saved = tmp_path / f'a/interrupted_{2 * epoch}.pth'
    assert saved.is_file() and str(interrupted.value).endswith(str(saved))
    train('a', load_from=str(saved), resume=True)
    assert names(tmp_path / 'a') == ['epoch_1.pth', 'epoch_2.pth'] + [saved.name] * (epoch == 2)
    train('b')
    end, wanted = (torch.load(tmp_path / work / 'epoch_2.pth', weights_only=False) for work in 'ab')
    assert end['meta']['iter'] == 4
    for part in ('state_dict', 'ema_state_dict')[: 1 + averaged]:
        for name, value in wanted[part].items():
            assert torch.equal(end[part][name], value), (part, name)


def test_a_validation_without_training_runs(tmp_path, image_folder):
    runner = make_runner(tmp_path, image_folder, {})
    runner._val_dataloader, runner._val_evaluator = runner._test_dataloader, runner._test_evaluator
    runner._val_loop = dict()
    metrics = runner.val()
    assert metrics and min(metrics.values()) > 0, metrics


@pytest.mark.parametrize('fails', [False, True])
def test_signal_handlers_are_restored(tmp_path, image_folder, fails):
    before = signal.getsignal(signal.SIGTERM)
    runner = make_runner(tmp_path, image_folder, {}, epochs=2)

    class Fail(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            assert signal.getsignal(signal.SIGTERM) is not before
            if fails:
                raise FloatingPointError('on purpose')

    runner.register_hook(Fail())
    with pytest.raises(FloatingPointError, match='on purpose') if fails else nullcontext():
        runner.train()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_checkpoint_holds_the_weights_of_the_model(tmp_path, image_folder):
    runner = make_runner(tmp_path, image_folder, {}, epochs=2)
    runner.train()
    state = torch.load(tmp_path / 'work/epoch_2.pth', weights_only=False)['state_dict']
    assert all(torch.equal(value, state[name]) for name, value in runner.model.state_dict().items())
