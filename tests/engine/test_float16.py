"""float16 with a loss scaler: steps that overflow are skipped; a run in which all overflow stops.

mmengine's AmpOptimWrapper requires a GPU; here its autocast and scaler are replaced by those of the CPU.
"""

from functools import partial

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import amp

from bootmae_mm.engine.launch import read_config
from bootmae_mm.engine.runner import Runner
from tests.conftest import run_config


@pytest.fixture
def make_runner(tmp_path, image_folder, monkeypatch):
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', partial(torch.amp.GradScaler, 'cpu'))
    monkeypatch.setattr(amp, 'autocast', lambda dtype: torch.autocast('cpu', dtype))

    def make(**changes):
        config = run_config(tmp_path / 'config.py', image_folder, epochs=8)
        options = {
            'default_hooks.curves': None,
            'default_hooks.reconstruction': None,
            'default_hooks.logger.interval': 1,
            'optim_wrapper.type': 'AmpOptimWrapper',
            'optim_wrapper.dtype': 'float16',
            **changes,
        }
        return Runner.from_cfg(read_config(str(config), options, str(tmp_path / 'work')))

    return make


class Overflow(Hook):
    """Makes the gradients of some iterations not finite; records the weights after each step."""

    priority = 'LOWEST'

    def __init__(self, first, last):
        self.bad = range(first, last + 1)
        self.seen = []

    def before_train(self, runner):
        weight = runner.model.pixel_head.projection.weight
        weight.register_hook(lambda grad: grad * float('inf') if runner.iter + 1 in self.bad else grad)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        student = runner.model.backbone.layers[0].attn.qkv.weight.detach().clone()
        teacher = runner.model.teacher.layers[0].attn.qkv.weight.detach().clone()
        self.seen.append((student, teacher, runner.optim_wrapper.loss_scaler.get_scale()))


def test_an_overflow_is_skipped(make_runner):
    """Student and teacher do not change in that step, the scale is halved, and training continues."""
    runner = make_runner(**{'train_cfg.max_epochs': 3, 'optim_wrapper.loss_scale': dict(init_scale=1024.0)})
    look = Overflow(3, 4)
    runner.register_hook(look)
    runner.train()
    students, teachers, scales = zip(*look.seen, strict=True)
    assert scales == (1024, 1024, 512, 256, 256, 256)
    for values in (students, teachers):
        moved = [not torch.equal(a, b) for a, b in zip(values, values[1:], strict=False)]
        assert moved == [True, False, False, True, True]


@pytest.mark.parametrize('fused', [False, True])
def test_the_logged_norm_does_not_depend_on_the_loss_scale(make_runner, fused):
    """A fused optimizer divides by the scale inside its step, after the norm is computed."""

    class Look(Hook):
        priority = 'VERY_LOW'
        norms = ()

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            self.norms += (runner.message_hub.get_scalar('train/grad_norm').current(),)

    norms = []
    for scale in (1.0, 1024.0):
        options = {'optim_wrapper.loss_scale': dict(init_scale=scale), 'optim_wrapper.optimizer.fused': fused}
        runner = make_runner(**options, **{'train_cfg.max_epochs': 1, 'randomness.seed': 0})
        runner.register_hook(look := Look())
        runner.train()
        norms.append(look.norms)
    assert len(norms[0]) == 2 and norms[1] == pytest.approx(norms[0], rel=0.05)


def test_a_run_in_which_every_step_overflows_stops(make_runner):
    runner = make_runner(**{'optim_wrapper.loss_scale': dict(init_scale=2.0**-10)})
    runner.register_hook(Overflow(3, 100))
    with pytest.raises(FloatingPointError, match='loss scale of float16 has fallen to 3.05e-05 at iteration 7'):
        runner.train()
