"""Runs whose weights and losses become not finite."""

import pytest
import torch

from tests.conftest import run_config, write_images
from tests.faults.runs import run

DIVERGES = [
    'optim_wrapper.optimizer.lr=1e30',
    'param_scheduler.0.start_factor=1.0',
    'default_hooks.checkpoint.by_epoch=False',
    'default_hooks.checkpoint.interval=1',
    'default_hooks.logger.interval=5',
]


@pytest.mark.fault
@pytest.mark.parametrize('arguments', [(), ('--amp',)], ids=['float32', 'bfloat16'])
def test_a_loss_that_is_not_finite(tmp_path, arguments):
    config = run_config(tmp_path / 'config.py', write_images(tmp_path / 'images', 8), epochs=5)
    status, said = run(config, tmp_path / 'work', *arguments, options=DIVERGES)
    last = said.strip().splitlines()[-1]
    assert status == 1 and 'not finite at iteration' in last and 'Last good checkpoint: ' in last, said[-3000:]
    assert 'pixel_loss' in last and 'Traceback' not in said
    kept = list((tmp_path / 'work').glob('*.pth'))
    assert kept and f'Last good checkpoint: {tmp_path}' in last
    for path in kept:
        state = torch.load(path, weights_only=False)['state_dict']
        assert all(value.isfinite().all() for value in state.values())


@pytest.mark.fault
def test_steps_that_are_not_finite_are_skipped_and_counted(tmp_path):
    config = run_config(tmp_path / 'config.py', write_images(tmp_path / 'images', 8), epochs=5)
    options = [*DIVERGES, 'default_hooks.runtime_info.max_skipped=2', 'default_hooks.checkpoint.interval=100']
    status, said = run(config, tmp_path / 'work', options=options)
    assert status == 1 and said.count('step skipped, ') == 2, said[-3000:]
    assert 'after 2 skipped steps; max_skipped=2' in said.strip().splitlines()[-1]
