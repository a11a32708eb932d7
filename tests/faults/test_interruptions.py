"""Processes that are killed or interrupted, and damaged checkpoints."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bootmae_mm.engine.recovery import latest_checkpoint, lock
from tests.conftest import ROOT, run_config
from tests.faults.runs import STEPS, assert_equal, ranks, run, start, tries, wait_for


@pytest.fixture
def config(tmp_path, image_folder):
    return run_config(tmp_path / 'config.py', image_folder, batch_size=2, workers=2, accumulate=2, epochs=6)


def kill_and_resume(process, config, work_dir, wanted):
    """Kill a run; the same command with --resume is then bit-identical to an uninterrupted run."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (work_dir / f'iter_{STEPS}.pth').exists(), 'the run ended before it was killed'
    left = list(work_dir.glob('.iter_*.part'))
    status, said = run(config, work_dir, '--resume')
    assert status == 0, said[-3000:]
    assert_equal(wanted, work_dir / f'iter_{STEPS}.pth')
    assert not list(work_dir.glob('.*.part'))
    return left


@pytest.mark.fault
@tries(short=1, long=20)
def test_killed_at_a_random_moment(tmp_path, uninterrupted, number):
    """Mid-epoch, with workers and accumulation."""
    config, wanted = uninterrupted(1)
    dice = random.Random(number)
    process = start(config, tmp_path / 'work')
    wait_for(process, tmp_path / 'work', dice.randint(1, STEPS - 5))
    time.sleep(dice.uniform(0, 0.05))
    kill_and_resume(process, config, tmp_path / 'work', wanted)


@pytest.mark.fault
@tries(short=1, long=5)
def test_killed_while_a_checkpoint_is_written(tmp_path, uninterrupted, number):
    """A partial file is left, under its temporary name."""
    config, wanted = uninterrupted(1)
    work_dir = tmp_path / 'work'
    process = start(config, work_dir)
    wait_for(process, work_dir, 2 + 4 * number)
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        if list(work_dir.glob('.iter_*.part')):
            os.killpg(process.pid, signal.SIGSTOP)
            if list(work_dir.glob('.iter_*.part')):  # not renamed in between
                break
            os.killpg(process.pid, signal.SIGCONT)
    (left,) = kill_and_resume(process, config, work_dir, wanted)
    assert left.name.startswith('.iter_')


@pytest.mark.fault
@tries(short=0, long=5)
def test_killed_between_epochs(tmp_path, uninterrupted, number):
    config, wanted = uninterrupted(1)
    process = start(config, tmp_path / 'work')
    wait_for(process, tmp_path / 'work', 4 * (number + 1))  # the last iteration of an epoch is logged
    kill_and_resume(process, config, tmp_path / 'work', wanted)


@pytest.mark.fault
@pytest.mark.skipif(torch.cuda.is_available(), reason='runs gloo processes on a machine without GPUs')
@tries(short=1, long=20)
def test_two_processes_killed_together(tmp_path, uninterrupted, number):
    config, wanted = uninterrupted(2)
    dice = random.Random(number)
    process = start(config, tmp_path / 'work', processes=2)
    wait_for(process, tmp_path / 'work', dice.randint(1, STEPS - 4))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    subprocess.run(['pkill', '-KILL', '-f', str(tmp_path / 'work')], check=False)
    status, said = run(config, tmp_path / 'work', '--resume', processes=2)
    assert status == 0, said[-3000:]
    assert_equal(wanted, tmp_path / f'work/iter_{STEPS}.pth')


@pytest.mark.fault
@pytest.mark.parametrize(
    ('name', 'processes', 'target'),
    [
        ('SIGTERM', 1, 'group'),
        pytest.param('SIGTERM', 1, 'process', marks=pytest.mark.long),
        pytest.param('SIGINT', 1, 'process', marks=pytest.mark.long),
        ('SIGTERM', 2, 'process'),
        ('SIGTERM', 2, 'launcher'),
        pytest.param('SIGINT', 2, 'launcher', marks=pytest.mark.long),
    ],
)
def test_sigterm_and_ctrl_c(tmp_path, uninterrupted, name, processes, target):
    """The run saves a checkpoint, exits with status 75, and resumes from it.

    The signal is sent to the process alone, to its group with the workers (as schedulers do), or to torchrun, which
    forwards it to all processes.
    """
    if processes > 1 and torch.cuda.is_available():
        pytest.skip('runs gloo processes on a machine without GPUs')
    config, wanted = uninterrupted(processes)
    work_dir = tmp_path / 'work'
    process = start(config, work_dir, processes=processes)
    wait_for(process, work_dir, 5)
    number = signal.Signals[name]
    if target == 'group':
        os.killpg(process.pid, number)
    elif target == 'launcher':
        os.kill(int(Path(f'/proc/{ranks(process)[0]}/stat').read_text().rsplit(')')[1].split()[1]), number)
    elif processes == 1:
        process.send_signal(number)
    else:  # one of two
        os.kill(ranks(process)[-1], number)
    said, _ = process.communicate(timeout=100)
    if processes == 1:
        assert process.returncode == 75, said[-3000:]
    assert 'resume with --resume from' in said
    (saved,) = work_dir.glob('interrupted_*.pth')
    assert 5 <= int(saved.stem.split('_')[1]) < STEPS
    assert latest_checkpoint(work_dir) == saved
    status, said = run(config, work_dir, '--resume', processes=processes)
    assert status == 0 and f'Load checkpoint from {saved}' in said, said[-3000:]
    assert_equal(wanted, work_dir / f'iter_{STEPS}.pth')
    assert not saved.exists()


@pytest.mark.fault
@pytest.mark.skipif(torch.cuda.is_available(), reason='runs gloo processes on a machine without GPUs')
@tries(short=1, long=5)
def test_one_process_of_two_killed(tmp_path, uninterrupted, number):
    """torchrun ends the other one and restarts both; the result is bit-identical to an uninterrupted run."""
    config, wanted = uninterrupted(2)
    process = start(config, tmp_path / 'work', processes=2, restarts=1)
    wait_for(process, tmp_path / 'work', random.Random(number).randint(3, STEPS - 6))
    os.kill(ranks(process)[number % 2], signal.SIGKILL)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said[-3000:]
    assert '-9' in said and 'Load checkpoint from' in said
    assert_equal(wanted, tmp_path / f'work/iter_{STEPS}.pth')


@pytest.mark.fault
@pytest.mark.skipif(torch.cuda.is_available(), reason='runs gloo processes on a machine without GPUs')
def test_one_process_of_two_killed_without_restarts(tmp_path, uninterrupted):
    """The launcher does not hang: it ends, and reports the rank and the signal."""
    config, _ = uninterrupted(2)
    process = start(config, tmp_path / 'work', processes=2)
    wait_for(process, tmp_path / 'work', 5)
    os.kill(ranks(process)[1], signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert 'local_rank: 1' in said and 'SIGKILL' in said, said[-3000:]


@pytest.mark.fault
@pytest.mark.parametrize(
    'kind',
    ['flipped', *(pytest.param(kind, marks=pytest.mark.long) for kind in ('truncated', 'empty'))],
)
def test_damaged_latest_checkpoint(tmp_path, uninterrupted, kind):
    """It is logged and skipped, and the one before is used."""
    config, wanted = uninterrupted(1)
    status, said = run(config, tmp_path / 'work')
    assert status == 0, said[-3000:]
    last = tmp_path / f'work/iter_{STEPS}.pth'
    content = bytearray(last.read_bytes())
    if kind == 'truncated':
        last.write_bytes(content[:-1000])
    elif kind == 'flipped':
        content[len(content) // 2] ^= 4
        last.write_bytes(content)
    else:
        last.write_bytes(b'')
    assert latest_checkpoint(tmp_path / 'work') == last.with_name(f'iter_{STEPS - 2}.pth')
    status, said = run(config, tmp_path / 'work', '--resume')
    assert status == 0, said[-3000:]
    assert f'{last} is damaged and skipped' in said
    assert_equal(wanted, last)


def test_two_runs_in_one_folder(tmp_path, config, run_tool):
    code = (
        'import os, sys, time; from bootmae_mm.engine.recovery import lock; '
        'held = lock(sys.argv[1]); os.fork(); print(1, flush=True); time.sleep(60)'
    )
    held = subprocess.Popen(
        [sys.executable, '-c', code, tmp_path / 'work'], stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True
    )
    with held as other:
        while b'1' not in other.stdout.readline():
            pass
        status, _, message = run_tool('train.py', config, '--work-dir', tmp_path / 'work')
        other.kill()  # but not its child
    try:
        assert status == 1
        assert message.startswith(f'error: another run (process {other.pid} on '), message
        assert 'choose another --work-dir' in message
        lock(tmp_path / 'work').close()  # free, although there was no cleanup and a worker is still alive
    finally:
        os.killpg(other.pid, signal.SIGKILL)
