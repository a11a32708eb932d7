"""Real processes that are killed, told to end, or find their checkpoints damaged."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bootmae_mm.engine.recovery import latest_checkpoint, lock
from tests.conftest import ROOT, run_config
from tests.tools.test_tools import ENVIRONMENT, free_port

STEPS = 24  # 8 images in batches of 2, 6 epochs
OPTIONS = [
    'default_hooks.checkpoint.by_epoch=False',
    'default_hooks.checkpoint.interval=2',
    'default_hooks.checkpoint.max_keep_ckpts=3',
]


@pytest.fixture
def config(tmp_path, image_folder):
    return run_config(tmp_path / 'config.py', image_folder, batch_size=2, workers=2, accumulate=2, epochs=6)


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
    """The last iteration that the newest log has."""
    logs = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    lines = logs[-1].read_text().splitlines() if logs else []
    return max((json.loads(line).get('step', 0) for line in lines if line.endswith('}')), default=0)


def wait_for(process, work_dir, step, logs=0, limit=120):
    """Wait until a run has logged an iteration; ``logs`` is how many logs there were before it."""
    end = time.monotonic() + limit
    over = False
    while not over:
        over = time.monotonic() > end or process.poll() is not None  # looked at once more after that
        if len(list(Path(work_dir).glob('*/vis_data/scalars.json'))) > logs and steps_logged(work_dir) >= step:
            return
        time.sleep(0.002)
    process.kill()
    said = process.stdout.read()[-3000:] if process.stdout else ''
    pytest.fail(f'iteration {step} was not reached, but {steps_logged(work_dir)}; status {process.poll()}\n{said}')


def ranks(launcher):
    """The processes that torchrun started: children of a child of the script, not workers of their loaders."""

    def children(pid):
        return [int(child) for child in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]

    (torchrun,) = (pid for pid in children(launcher.pid) if 'torch' in Path(f'/proc/{pid}/cmdline').read_text())
    return [pid for pid in children(torchrun) if 'train.py' in Path(f'/proc/{pid}/cmdline').read_text()]


def assert_equal(one, other):
    """Two checkpoints hold the same bits: student, teacher, optimizer, schedules."""
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
    """How often a fault is tried: `make test-faults` asks for the long form."""
    return pytest.mark.parametrize(
        'number', [pytest.param(i, marks=[] if i < short else [pytest.mark.long]) for i in range(long)]
    )


@pytest.fixture(scope='session')
def uninterrupted(tmp_path_factory):
    """The end of a run that nothing happened to, for one and two processes: made once."""
    from tests.conftest import write_images

    folder = tmp_path_factory.mktemp('uninterrupted')
    images = write_images(folder / 'images', 8)
    made = {}

    def end(processes):
        if processes not in made:
            config = run_config(
                folder / f'config{processes}.py', images, batch_size=2, workers=2, accumulate=2, epochs=6 * processes
            )
            status, said = run(config, folder / f'work{processes}', processes=processes)
            assert status == 0, said[-3000:]
            made[processes] = config, folder / f'work{processes}/iter_{STEPS}.pth'
        return made[processes]

    return end


def kill_and_resume(process, config, work_dir, wanted):
    """Kill a run now; the same command with --resume then ends with the bits of the run that was not killed."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (work_dir / f'iter_{STEPS}.pth').exists(), 'it was too fast to be killed'
    left = list(work_dir.glob('.iter_*.part'))
    status, said = run(config, work_dir, '--resume')
    assert status == 0, said[-3000:]
    assert_equal(wanted, work_dir / f'iter_{STEPS}.pth')
    assert not list(work_dir.glob('.*.part'))
    return left


@pytest.mark.fault
@tries(short=1, long=20)
def test_killed_at_a_random_moment(tmp_path, uninterrupted, number):
    """Inside an epoch, with workers and accumulation."""
    config, wanted = uninterrupted(1)
    dice = random.Random(number)
    process = start(config, tmp_path / 'work')
    wait_for(process, tmp_path / 'work', dice.randint(1, STEPS - 5))
    time.sleep(dice.uniform(0, 0.05))
    kill_and_resume(process, config, tmp_path / 'work', wanted)


@pytest.mark.fault
@tries(short=1, long=5)
def test_killed_while_a_checkpoint_is_written(tmp_path, uninterrupted, number):
    """Half a file is there, and the name that it would have got is not."""
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
    wait_for(process, tmp_path / 'work', 4 * (number + 1))  # the last of an epoch is logged
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
    ('name', 'processes', 'whom'),
    [
        ('SIGTERM', 1, 'group'),
        pytest.param('SIGTERM', 1, 'process', marks=pytest.mark.long),
        pytest.param('SIGINT', 1, 'process', marks=pytest.mark.long),
        ('SIGTERM', 2, 'process'),
        ('SIGTERM', 2, 'launcher'),
        pytest.param('SIGINT', 2, 'launcher', marks=pytest.mark.long),
    ],
)
def test_told_to_end(tmp_path, uninterrupted, name, processes, whom):
    """A checkpoint right there, status 75, and the next start goes on from it.

    The signal goes to the process alone, to its workers too (as schedulers do), or to torchrun, which sends it on to
    all of them.
    """
    if processes > 1 and torch.cuda.is_available():
        pytest.skip('runs gloo processes on a machine without GPUs')
    config, wanted = uninterrupted(processes)
    work_dir = tmp_path / 'work'
    # The processes look often whether another one was told: the run is short.
    options = [*OPTIONS, 'default_hooks.interruption.interval=0.05']
    process = start(config, work_dir, processes=processes, options=options)
    wait_for(process, work_dir, 5)
    number = signal.Signals[name]
    if whom == 'group':
        os.killpg(process.pid, number)
    elif whom == 'launcher':
        os.kill(int(Path(f'/proc/{ranks(process)[0]}/stat').read_text().rsplit(')')[1].split()[1]), number)
    elif processes == 1:
        process.send_signal(number)
    else:  # to one of the two
        os.kill(ranks(process)[-1], number)
    said, _ = process.communicate(timeout=100)
    if processes == 1:
        assert process.returncode == 75, said[-3000:]
    assert 'go on with --resume from' in said
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
    """torchrun ends the other one, starts both again, and they end as if nothing had happened."""
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
    """No hang: the launcher ends, and names the rank and the signal."""
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
    """It is named and skipped, and the one before is used."""
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
        other.kill()  # not what it forked
    try:
        assert status == 1
        assert message.startswith(f'error: another run (process {other.pid} on '), message
        assert 'name another --work-dir' in message
        lock(tmp_path / 'work').close()  # free again, though nobody tidied up and a worker still lives
    finally:
        os.killpg(other.pid, signal.SIGKILL)
