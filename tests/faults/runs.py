"""Runs of tools/train.py: start, wait, compare."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.tools.test_tools import ENVIRONMENT, free_port

STEPS = 24  # 8 images in batches of 2, 6 epochs
OPTIONS = [
    'default_hooks.checkpoint.by_epoch=False',
    'default_hooks.checkpoint.interval=2',
    'default_hooks.checkpoint.max_keep_ckpts=3',
]


def command(config, work_dir, *arguments, processes=1, options=OPTIONS):
    tool = [sys.executable, ROOT / 'tools/train.py', config]
    if processes > 1:
        tool = [ROOT / 'tools/dist_train.sh', config, processes]
    return [str(part) for part in (*tool, '--work-dir', work_dir, *arguments, '--cfg-options', *options)]


def start(*arguments, restarts=0, stdout=subprocess.PIPE, environment=None, prefix=(), **options):
    return subprocess.Popen(
        [*prefix, *command(*arguments, **options)],
        cwd=ROOT,
        env={**ENVIRONMENT, 'PORT': free_port(), 'MAX_RESTARTS': str(restarts), **(environment or {})},
        stdout=stdout,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(*arguments, **options):
    process = start(*arguments, **options)
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def steps_logged(work_dir):
    """Last iteration in the newest log."""
    logs = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    lines = logs[-1].read_text().splitlines() if logs else []
    return max((json.loads(line).get('step', 0) for line in lines if line.endswith('}')), default=0)


def wait_for(process, work_dir, step, logs=0, limit=120):
    """Wait until a run has logged an iteration; ``logs`` is the number of logs before its start."""
    end = time.monotonic() + limit
    over = False
    while not over:
        over = time.monotonic() > end or process.poll() is not None  # checked once more after that
        if len(list(Path(work_dir).glob('*/vis_data/scalars.json'))) > logs and steps_logged(work_dir) >= step:
            return
        time.sleep(0.002)
    process.kill()
    said = process.stdout.read()[-3000:] if process.stdout else ''
    pytest.fail(f'iteration {step} was not reached, but {steps_logged(work_dir)}; status {process.poll()}\n{said}')


def children(pid, command='train.py'):
    """Child processes whose command line contains ``command``, oldest first.

    Others are ignored, such as git, which mmengine runs at each checkpoint.
    """
    found = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
    return [int(child) for child in found if command in command_line(child)]


def command_line(pid):
    try:
        return Path(f'/proc/{pid}/cmdline').read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return ''


def ranks(launcher):
    """Processes started by torchrun, which is a child of the script; not the workers of their loaders."""
    (torchrun,) = children(launcher.pid, 'torch')
    return children(torchrun)


def assert_equal(one, other):
    """Check that two checkpoints are bit-identical: student, teacher, optimizer, schedules."""
    one, other = (torch.load(path, weights_only=False) for path in (one, other))
    assert one['state_dict'].keys() == other['state_dict'].keys()
    for name, value in one['state_dict'].items():
        assert torch.equal(other['state_dict'][name], value), name
    assert one['optimizer']['param_groups'] == other['optimizer']['param_groups']
    for index, values in one['optimizer']['state'].items():
        for name, value in values.items():
            assert torch.equal(other['optimizer']['state'][index][name], value), (index, name)
    assert one['param_schedulers'] == other['param_schedulers']
    assert all(one['meta'][name] == other['meta'][name] for name in ('epoch', 'iter'))


def tries(short, long):
    """Number of tries of a fault in the short and the long form; `make test-faults` runs the long one."""
    return pytest.mark.parametrize(
        'number', [pytest.param(i, marks=[] if i < short else [pytest.mark.long]) for i in range(long)]
    )
