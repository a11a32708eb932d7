"""Iterations wait for the device only where they log."""

import pytest
import torch
from mmengine.hooks import Hook
from torch.utils._python_dispatch import TorchDispatchMode

from tests.engine.test_hooks import make_runner

# Operators whose result, or its shape, depends on values on the device.
WAITING = ('_local_scalar_dense', 'nonzero', 'is_nonzero', 'masked_select', 'unique', '_unique2', 'equal', 'bincount')
# Methods that copy to the host; on a CPU they call no operator.
COPYING = ('tolist', 'numpy', 'cpu')


class Waits(TorchDispatchMode):
    """Records, for every iteration, the calls that would wait if the tensors were on a GPU."""

    def __init__(self):
        super().__init__()
        self.runner, self.found = None, {}

    def note(self, name):
        if self.runner is not None:
            self.found.setdefault(self.runner.iter, []).append(name)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split('::')[1]
        if name in WAITING:
            self.note(name)
        return func(*args, **(kwargs or {}))


class Steps(Hook):
    """Enables the record during the step: from the loaded batch to the request for the next one."""

    priority = 'LOWEST'

    def __init__(self, waits):
        self.waits = waits

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.waits.runner = runner

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.waits.runner = None


def test_only_the_iterations_that_log_wait(tmp_path, image_folder, monkeypatch):
    options = {
        'default_hooks.logger.interval': 4,
        'train_cfg.max_epochs': 3,
        'optim_wrapper.optimizer.fused': True,
        'default_hooks.checkpoint.interval': 10,
        'default_hooks.curves': None,
        'default_hooks.reconstruction': None,
    }
    runner = make_runner(tmp_path, image_folder, options, batch_size=1)
    waits = Waits()
    for name in COPYING:
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *a, _f=original, _n=name, **k: (waits.note(_n), _f(self, *a, **k))[1]
        )
    runner.register_hook(Steps(waits))
    with waits:
        runner.train()
    # Eight images, so eight iterations per epoch; two of them log.
    assert runner.iter == 24
    logged = {iteration for iteration in range(24) if iteration % 4 == 3}
    # (The last hook runs before the iteration is counted.)
    assert waits.found.keys() == logged, waits.found
    assert all(set(names) == {'tolist'} for names in waits.found.values()), waits.found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU: make test-gpu')
def test_cuda_agrees(tmp_path, image_folder):
    class Forbid(Hook):
        priority = 'LOWEST'

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter > 2 and runner.iter % 4 != 3:
                torch.cuda.set_sync_debug_mode('error')

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            torch.cuda.set_sync_debug_mode('default')

    options = {'default_hooks.logger.interval': 4, 'optim_wrapper.optimizer.fused': True}
    runner = make_runner(tmp_path, image_folder, options, batch_size=1)
    runner.register_hook(Forbid())
    runner.train()  # a forbidden wait is an error
    assert runner.iter == 24
