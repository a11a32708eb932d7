"""Disks that are full, or become so."""

import os
import resource
import subprocess
from pathlib import Path

import pytest
import torch

from tests.faults.runs import STEPS, assert_equal, run, start, steps_logged, wait_for


@pytest.mark.fault
def test_disk_full_while_saving(tmp_path, uninterrupted):
    """Training goes on with errors in the log; the last good checkpoint stays and is named; later ones are written."""
    config, wanted = uninterrupted(1)
    work_dir = tmp_path / 'work'
    process = start(config, work_dir)
    wait_for(process, work_dir, 5)
    # No file may grow beyond 50 KB from here on: to the process the disk is full.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    wait_for(process, work_dir, 15)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said[-3000:]
    assert 1 <= said.count('could not be written, training goes on') <= 8
    assert_equal(wanted, work_dir / f'iter_{STEPS}.pth')
    assert (work_dir / 'last_checkpoint').read_text() == str(work_dir / f'iter_{STEPS}.pth')
    assert not list(work_dir.glob('.*.part'))


@pytest.fixture
def small_disk(tmp_path):
    """Of a size: a folder, and a command to run things in a space of mounts where that folder is a disk of its own."""

    def make(size):
        folder = tmp_path / 'disk'
        folder.mkdir()
        mount = f'mount -t tmpfs -o size={size} tmpfs {folder} && exec "$@"'
        prefix = ['unshare', '--mount', '--map-root-user', 'sh', '-c', mount, 'sh']
        if subprocess.run([*prefix, 'true'], capture_output=True, check=False).returncode:
            pytest.skip('this machine allows no mounts of its own; test_disk_full_while_saving stands for it')
        return folder, prefix

    return make


@pytest.mark.fault
@pytest.mark.parametrize(
    ('size', 'message'),
    [('16k', 'No space left'), ('600k', 'a checkpoint takes 0.7 MiB, but '), ('1m', 'the training is over, but ')],
    ids=['anything', 'first', 'last'],
)
def test_disk_too_small(uninterrupted, small_disk, size, message):
    """For anything; for a checkpoint; for the run's second and last one: an end with status 1 and one line."""
    config, _ = uninterrupted(1)
    folder, prefix = small_disk(size)
    options = ['default_hooks.checkpoint.interval=3', 'default_hooks.checkpoint.max_keep_ckpts=1']
    status, said = run(config, folder / 'work', prefix=prefix, options=options)
    last = said.splitlines()[-1]
    assert status == 1 and last.startswith('error: ') and message in last, said[-3000:]


@pytest.mark.fault
@pytest.mark.parametrize('processes', [pytest.param(1, marks=pytest.mark.long), 2])
def test_disk_without_a_byte(tmp_path, uninterrupted, small_disk, processes):
    """Neither checkpoints nor log, scalars and pictures can be written for a while; the run goes on to the same end."""
    if processes > 1 and torch.cuda.is_available():
        pytest.skip('runs gloo processes on a machine without GPUs')
    config, wanted = uninterrupted(processes)
    folder, prefix = small_disk('40m')
    # As the configs of this project have it: TensorBoard, too.
    backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    heir = tmp_path / 'heir.py'
    heir.write_text(f'_base_ = {str(config)!r}\nvisualizer = dict(vis_backends={backends})\n')
    process = start(heir, folder / 'work', prefix=prefix, processes=processes)
    # The first process of the command becomes the run: its root shows its mounts.
    work_dir = Path(f'/proc/{process.pid}/root{folder}/work')
    wait_for(process, work_dir, 5)
    filler = work_dir / 'filler'
    with open(filler, 'wb', buffering=0) as file, pytest.raises(OSError, match='No space left'):
        while True:
            file.write(bytes(4096))
    lines = []
    while sum('training goes on' in line for line in lines) < 5 and process.poll() is None:
        lines.append(process.stdout.readline())
    assert process.poll() is None, ''.join(lines)
    filler.unlink()
    kept = os.open(work_dir, os.O_RDONLY)  # the disk is gone with the process else
    said, _ = process.communicate(timeout=200)
    work_dir = Path(f'/proc/self/fd/{kept}')
    try:
        assert process.returncode == 0, said[-3000:]
        # TensorBoard's own thread leaves one traceback as it ends, in each process that has one.
        assert (''.join(lines) + said).count('Traceback') <= 1
        assert_equal(wanted, work_dir / f'iter_{STEPS}.pth')
        # What there is room for is written again.
        assert steps_logged(work_dir) == STEPS
        (log,) = work_dir.glob('*/*.log')
        assert f'Saving checkpoint at {STEPS} iterations' in log.read_text()
    finally:
        os.close(kept)
