"""Full disks."""

import os
import resource
import subprocess
from pathlib import Path

import pytest
import torch

from tests.faults.runs import STEPS, assert_equal, run, start, steps_logged, wait_for


@pytest.mark.fault
def test_disk_full_while_saving(tmp_path, uninterrupted):
    """Training continues with errors in the log; the last good checkpoint is kept, and later ones are written."""
    config, wanted = uninterrupted(1)
    work_dir = tmp_path / 'work'
    process = start(config, work_dir)
    wait_for(process, work_dir, 5)
    # No file may grow beyond 50 KB from now on, as on a full disk.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    wait_for(process, work_dir, 15)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said[-3000:]
    assert 1 <= said.count('could not be written, training continues') <= 8
    assert_equal(wanted, work_dir / f'iter_{STEPS}.pth')
    assert (work_dir / 'last_checkpoint').read_text() == str(work_dir / f'iter_{STEPS}.pth')
    assert not list(work_dir.glob('.*.part'))


@pytest.fixture
def small_disk(tmp_path):
    """A folder on its own tmpfs of the given size, and a command prefix that enters that mount namespace."""

    def make(size):
        folder = tmp_path / 'disk'
        folder.mkdir()
        mount = f'mount -t tmpfs -o size={size} tmpfs {folder} && exec "$@"'
        prefix = ['unshare', '--mount', '--map-root-user', 'sh', '-c', mount, 'sh']
        if subprocess.run([*prefix, 'true'], capture_output=True, check=False).returncode:
            pytest.skip('mount namespaces are not allowed here; see test_disk_full_while_saving')
        return folder, prefix

    return make


@pytest.mark.fault
@pytest.mark.parametrize(
    ('size', 'message'),
    [('16k', 'No space left'), ('600k', 'a checkpoint takes 0.7 MiB, but '), ('1m', 'training has finished, but ')],
    ids=['anything', 'first', 'last'],
)
def test_disk_too_small(uninterrupted, small_disk, size, message):
    """For any file; for a checkpoint; for the second and last checkpoint: status 1 and an error of one line."""
    config, _ = uninterrupted(1)
    folder, prefix = small_disk(size)
    options = ['default_hooks.checkpoint.interval=3', 'default_hooks.checkpoint.max_keep_ckpts=1']
    status, said = run(config, folder / 'work', prefix=prefix, options=options)
    last = said.splitlines()[-1]
    assert status == 1 and last.startswith('error: ') and message in last, said[-3000:]


@pytest.mark.fault
@pytest.mark.parametrize('processes', [pytest.param(1, marks=pytest.mark.long), 2])
def test_disk_without_a_byte(tmp_path, uninterrupted, small_disk, processes):
    """For a while, neither checkpoints nor log, scalars and pictures can be written; the weights are not affected."""
    if processes > 1 and torch.cuda.is_available():
        pytest.skip('runs gloo processes on a machine without GPUs')
    config, wanted = uninterrupted(processes)
    folder, prefix = small_disk('40m')
    # As in the configs of this project, with TensorBoard.
    backends = [dict(type='bootmae_mm.LocalVisBackend'), dict(type='bootmae_mm.TensorboardVisBackend')]
    child = tmp_path / 'child.py'
    child.write_text(f'_base_ = {str(config)!r}\nvisualizer = dict(vis_backends={backends})\n')
    process = start(child, folder / 'work', prefix=prefix, processes=processes)
    # The command prefix executes the run in the same process, so that its root has the mount.
    work_dir = Path(f'/proc/{process.pid}/root{folder}/work')
    wait_for(process, work_dir, 5)
    filler = work_dir / 'filler'
    with open(filler, 'wb', buffering=0) as file, pytest.raises(OSError, match='No space left'):
        while True:
            file.write(bytes(4096))
    lines = []
    while sum('training continues' in line for line in lines) < 5 and process.poll() is None:
        lines.append(process.stdout.readline())
    assert process.poll() is None, ''.join(lines)
    filler.unlink()
    kept = os.open(work_dir, os.O_RDONLY)  # keeps the disk after the process has ended
    said, _ = process.communicate(timeout=200)
    work_dir = Path(f'/proc/self/fd/{kept}')
    try:
        assert process.returncode == 0, said[-3000:]
        # TensorBoard's thread prints one traceback when it ends.
        assert (''.join(lines) + said).count('Traceback') <= 1
        assert_equal(wanted, work_dir / f'iter_{STEPS}.pth')
        # Log and scalars are written again.
        assert steps_logged(work_dir) == STEPS
        (log,) = work_dir.glob('*/*.log')
        assert f'Saving checkpoint at {STEPS} iterations' in log.read_text()
    finally:
        os.close(kept)
