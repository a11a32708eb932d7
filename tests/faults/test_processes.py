"""Workers and processes that die, hang, lose their network, or have different configs or data."""

import os
import random
import signal
import subprocess
import time

import pytest
import torch

from tests.conftest import ROOT, run_config
from tests.faults.runs import OPTIONS, children, ranks, start, tries, wait_for
from tests.tools.test_tools import ENVIRONMENT, free_port

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason='runs gloo processes on a machine without GPUs')
FOREVER = dict(batch_size=2, workers=2, epochs=100_000)
TIMEOUT = 10
WITH_TIMEOUT = [*OPTIONS, f'env_cfg.dist_cfg.timeout={TIMEOUT}']


def finish(process, seconds):
    """Output of a process that must end within a number of seconds."""
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        pytest.fail(f'still running after {seconds} s:\n{said[-3000:]}')
    return said


@pytest.mark.fault
@tries(short=1, long=5)
def test_worker_of_the_loader_killed(tmp_path, image_folder, number):
    """At any moment; while it sends a batch, the pipe closes before torch knows the reason."""
    config = run_config(tmp_path / 'config.py', image_folder, **FOREVER)
    process = start(config, tmp_path / 'work')
    wait_for(process, tmp_path / 'work', 5)
    time.sleep(random.Random(number).uniform(0, 0.05))
    os.kill(children(process.pid)[1], signal.SIGKILL)
    said = finish(process, 30)
    assert process.returncode == 1
    last = said.splitlines()[-1]
    assert last.startswith('error: ') and 'a worker of the loader died' in last, said


@pytest.mark.fault
def test_worker_of_the_loader_hangs(tmp_path, image_folder):
    """An image that is a pipe without a writer, like a file on a file system that does not respond."""
    os.mkfifo(image_folder / 'part0/pipe.png')
    config = run_config(tmp_path / 'config.py', image_folder, **FOREVER)
    process = start(config, tmp_path / 'work', options=[*OPTIONS, 'train_dataloader.timeout=5'])
    said = finish(process, 90)
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith('error: DataLoader timed out after 5 seconds'), said[-2000:]


@pytest.mark.fault
@on_cpu
def test_one_process_of_two_stands_still(tmp_path, image_folder):
    """The other one reports the timeout, and the launcher ends both."""
    config = run_config(tmp_path / 'config.py', image_folder, **FOREVER)
    process = start(config, tmp_path / 'work', processes=2, options=WITH_TIMEOUT)
    wait_for(process, tmp_path / 'work', 5)
    both = ranks(process)
    os.kill(both[1], signal.SIGSTOP)
    said = finish(process, TIMEOUT + 60)
    assert process.returncode == 1
    assert 'error: another process died, or did not respond in time' in said, said[-3000:]
    assert not any(os.path.exists(f'/proc/{pid}') for pid in both)


@pytest.mark.fault
@on_cpu
def test_sigterm_while_waiting_for_another_process(tmp_path, image_folder):
    """Python does not run signal handlers meanwhile; the process exits after the grace time, without a checkpoint."""
    config = run_config(tmp_path / 'config.py', image_folder, **FOREVER)
    options = [*OPTIONS, 'default_hooks.interruption.grace=3']
    process = start(config, tmp_path / 'work', processes=2, options=options)
    wait_for(process, tmp_path / 'work', 5)
    stopped, waiting = ranks(process)
    os.kill(stopped, signal.SIGSTOP)
    time.sleep(2)
    os.kill(waiting, signal.SIGTERM)
    start_time = time.monotonic()
    while os.path.exists(f'/proc/{waiting}') and time.monotonic() < start_time + 30:
        time.sleep(0.01)
    seconds = time.monotonic() - start_time
    os.kill(stopped, signal.SIGKILL)
    said = finish(process, 60)
    assert 2.9 < seconds < 8
    assert 'SIGTERM: no checkpoint was written within 3 s; ending now' in said, said[-3000:]


def node(rank, config, work_dir, address, port, *prefix, **variables):
    """Start one of two nodes, with one process."""
    options = [f'env_cfg.dist_cfg.timeout={TIMEOUT}', *OPTIONS]
    command = [*prefix, ROOT / 'tools/dist_train.sh', config, 1, '--work-dir', work_dir, '--cfg-options', *options]
    variables |= dict(NNODES='2', NODE_RANK=str(rank), MASTER_ADDR=address, PORT=port)
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env={**ENVIRONMENT, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.fault
@on_cpu
def test_one_node_of_two_dies(tmp_path, image_folder):
    """With its launcher; the other node ends and reports the reason."""
    config = run_config(tmp_path / 'config.py', image_folder, **FOREVER)
    port = free_port()
    nodes = [node(rank, config, tmp_path / 'work', '127.0.0.1', port) for rank in range(2)]
    wait_for(nodes[0], tmp_path / 'work', 5)
    processes = ranks(nodes[1])
    for pid in [nodes[1].pid, *children(nodes[1].pid), *processes]:
        os.kill(pid, signal.SIGKILL)
    nodes[1].communicate()
    said = finish(nodes[0], TIMEOUT + 60)
    assert nodes[0].returncode == 1
    assert 'error: another process died, or did not respond in time' in said, said[-3000:]


def ip(*arguments):
    return subprocess.run(['ip', *arguments], capture_output=True, text=True, check=False).returncode == 0


@pytest.fixture
def two_networks():
    """Two network namespaces, connected by a virtual cable."""
    names = [f'bootmae{os.getpid()}{side}' for side in 'ab']
    ends = ['bootmaea', 'bootmaeb']
    try:
        made = all(ip('netns', 'add', name) for name in names) and ip(
            'link', 'add', ends[0], 'netns', names[0], 'type', 'veth', 'peer', 'name', ends[1], 'netns', names[1]
        )
        if not made:
            pytest.skip('network namespaces are not allowed here; see test_one_node_of_two_dies')
        for number, (name, end) in enumerate(zip(names, ends), 1):
            ip('-n', name, 'address', 'add', f'10.77.0.{number}/24', 'dev', end)
            ip('-n', name, 'link', 'set', 'lo', 'up')
            ip('-n', name, 'link', 'set', end, 'up')
        yield names, ends
    finally:
        for name in names:
            ip('netns', 'delete', name)


@pytest.mark.fault
@pytest.mark.long
@on_cpu
def test_cable_between_two_nodes_pulled(tmp_path, image_folder, two_networks):
    """No connection is closed, but no data arrive: both nodes end after the timeout."""
    names, ends = two_networks
    config = run_config(tmp_path / 'config.py', image_folder, **FOREVER)
    port, inside = free_port(), ('ip', 'netns', 'exec')
    nodes = [
        # Otherwise gloo uses the address of the host name, which is the loopback.
        node(rank, config, tmp_path / 'work', '10.77.0.1', port, *inside, name, GLOO_SOCKET_IFNAME=ends[rank])
        for rank, name in enumerate(names)
    ]
    wait_for(nodes[0], tmp_path / 'work', 5)
    assert ip('-n', names[1], 'link', 'set', ends[1], 'down')
    start_time = time.monotonic()
    for process in nodes:
        said = finish(process, TIMEOUT + 120)
        assert process.returncode == 1
        assert 'error: another process died, or did not respond in time' in said, said[-3000:]
    assert time.monotonic() - start_time < TIMEOUT + 120


@pytest.mark.fault
@on_cpu
@pytest.mark.parametrize('different', ['config', 'data'])
def test_processes_that_do_not_agree(tmp_path, image_folder, different):
    """Both processes end before the first iteration."""
    config = run_config(tmp_path / 'config.py', image_folder, **FOREVER)
    text = config.read_text()
    if different == 'config':
        # A config that differs between processes, such as an old version on one node.
        text += "import os\noptim_wrapper['optimizer']['lr'] = 1e-3 * (1 + int(os.environ['RANK']))\n"
    else:
        (tmp_path / 'fewer_here.py').write_text(
            'import os\n'
            'from bootmae_mm.data import ImageFolder\n'
            'from bootmae_mm.registry import DATASETS\n'
            '@DATASETS.register_module()\n'
            'class FewerHere(ImageFolder):\n'
            '    def load_data_list(self):\n'
            "        return super().load_data_list()[int(os.environ['RANK']) :]\n"
        )
        text = text.replace(
            "type='bootmae_mm.ImageFolder', data_root=data_root, pipeline=train_pipeline",
            "type='bootmae_mm.FewerHere', data_root=data_root, pipeline=train_pipeline",
        )
        text += "custom_imports = dict(imports=['fewer_here'])\n"
    config.write_text(text)
    process = start(config, tmp_path / 'work', processes=2, environment=dict(PYTHONPATH=str(tmp_path)))
    said = finish(process, 90)
    assert process.returncode == 1
    wanted = {
        'config': 'error: process 1 of 2 has a config other than process 0: ',
        'data': "error: process 1 of 2 has a data set other than process 0: '7 images' instead of '8 images'",
    }[different]
    assert wanted in said, said[-3000:]
    assert different == 'data' or 'lr=0.002' in said
    assert not list((tmp_path / 'work').glob('*.pth'))
