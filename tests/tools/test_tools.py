"""The command line tools as a user runs them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bootmae_mm.visualization import read_scalars
from tests.conftest import ROOT, build, run_config, tiny_config

ENVIRONMENT = {**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'}


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return str(s.getsockname()[1])


def shell(*command, **environment):
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        env={**ENVIRONMENT, **environment},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    'script',
    [
        'train.py',
        'test.py',
        'benchmark.py',
        'check_parity.py',
        'pack_dataset.py',
        'convert_official.py',
        'reconstruct.py',
        'browse_dataset.py',
        'demo.py',
        'install.py',
        'dist_train.sh',
        'dist_test.sh',
        'slurm_train.sh',
    ],
)
def test_help_has_an_example(script):
    command = [ROOT / 'tools' / script] if script.endswith('.sh') else [sys.executable, ROOT / 'tools' / script]
    status, out, err = shell(*command, '--help')
    assert status == 0, err
    assert 'xample' in out


@pytest.mark.parametrize('script', ['train.py', 'test.py', 'benchmark.py', 'pack_dataset.py'])
def test_help_imports_no_heavy_module(script):
    code = f"""
import runpy, sys
sys.argv = ['{script}', '--help']
try:
    runpy.run_path({str(ROOT / 'tools' / script)!r}, run_name='__main__')
except SystemExit:
    pass
print('heavy:', [name for name in ('mmpretrain', 'mmdet', 'mmengine.runner', 'matplotlib') if name in sys.modules])
"""
    status, out, err = shell(sys.executable, '-c', code)
    assert status == 0 and 'heavy: []' in out, err


@pytest.mark.program
@pytest.mark.skipif(torch.cuda.is_available(), reason='runs gloo processes on a machine without GPUs')
@pytest.mark.parametrize('accumulate', [pytest.param(1, marks=pytest.mark.long), 2])
def test_two_processes_equal_one_with_twice_the_batch(tmp_path, image_folder, accumulate):
    one = run_config(tmp_path / 'one.py', image_folder, batch_size=4, roll=1, accumulate=accumulate)
    two = run_config(tmp_path / 'two.py', image_folder, batch_size=2, roll=1, accumulate=accumulate)
    status, _, err = shell(sys.executable, ROOT / 'tools/train.py', one, '--work-dir', tmp_path / 'a')
    assert status == 0, err[-2000:]
    status, _, err = shell(ROOT / 'tools/dist_train.sh', two, 2, '--work-dir', tmp_path / 'b', PORT=free_port())
    assert status == 0, err[-2000:]
    assert 'gloo' in err
    alone, together = read_scalars(tmp_path / 'a'), read_scalars(tmp_path / 'b')
    assert len(alone) == len(together) == 6
    for a, b in zip(alone, together, strict=True):
        names = {'loss', 'pixel_loss', 'feature_loss', 'lr', 'ema_decay'}
        # Only iterations with an optimizer step have a norm.
        for name in names | ({'grad_norm'} if a['step'] % accumulate == 0 else set()):
            assert b[name] == pytest.approx(a[name], rel=2e-4), (a['step'], name)
    states = [torch.load(tmp_path / folder / 'epoch_3.pth', weights_only=False)['state_dict'] for folder in 'ab']
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=2e-5, msg=name)
    # Evaluation of the same checkpoint on two processes.
    status, _, err = shell(
        ROOT / 'tools/dist_test.sh',
        two,
        tmp_path / 'b/epoch_3.pth',
        2,
        '--work-dir',
        tmp_path / 'c',
        '--out',
        tmp_path / 'metrics.json',
        PORT=free_port(),
    )
    assert status == 0, err[-2000:]
    assert json.loads((tmp_path / 'metrics.json').read_text())['pretrain/pixel_loss'] > 0


@pytest.mark.program
def test_train_resume_and_reconstruct(tmp_path, image_folder, run_tool):
    config = run_config(tmp_path / 'config.py', image_folder, summary=True, epochs=2)
    arguments = [config, '--work-dir', tmp_path / 'work', '--amp', '--auto-scale-lr']
    status, _, message = run_tool('train.py', *arguments)
    assert status == 1 and 'has no auto_scale_lr' in message
    config.write_text(config.read_text() + 'auto_scale_lr = dict(base_batch_size=8)\n')
    status, _, err = shell(sys.executable, ROOT / 'tools/train.py', *arguments)
    assert status == 0, err[-2000:]
    # Half the base batch: half the learning rate, 1e-3 in the config, at the end of the warm-up.
    assert read_scalars(tmp_path / 'work')[1]['lr'] == pytest.approx(5e-4)
    assert (tmp_path / 'work/curves.png').exists()
    # A checkpoint of another model is refused.
    torch.save(dict(state_dict={'other': torch.zeros(1)}), tmp_path / 'other.pth')
    for tool in (('train.py', config, '--resume', tmp_path / 'other.pth'), ('test.py', config, tmp_path / 'other.pth')):
        status, _, message = run_tool(*tool, '--work-dir', tmp_path / 'refused')
        assert status == 1 and 'does not fit the model' in message and '\n' not in message
    # The run is complete; with a longer schedule it resumes.
    status, _, err = shell(
        sys.executable, ROOT / 'tools/train.py', *arguments, '--resume', '--cfg-options', 'train_cfg.max_epochs=3'
    )
    assert status == 0, err[-2000:]
    assert (tmp_path / 'work/epoch_3.pth').exists()

    picture = tmp_path / 'out/picture.png'
    status, out, message = run_tool(
        'reconstruct.py', tmp_path / 'work/epoch_3.pth', image_folder, '--out', picture, '--max-images', 3
    )
    assert status == 0, message
    assert '3 images' in out
    assert np.asarray(Image.open(picture)).std() > 10


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['nowhere.py'], 'error: no config nowhere.py'),
        (['CONFIG', '--cfg-options', 'data_rot=x'], "nothing reads the key 'data_rot'"),
        (['CONFIG', '--cfg-options', 'data_root=/nowhere'], 'no folder /nowhere'),
        (['CONFIG', '--resume', 'nowhere.pth'], 'no checkpoint nowhere.pth'),
        (['CONFIG', '--cfg-options', 'load_from=nowhere.pth'], 'no checkpoint nowhere.pth'),
        (['CONFIG', '--cfg-options', 'model.backbone.arch=vast'], "unknown arch 'vast'"),
        (['CONFIG', '--cfg-options', 'train_dataloader.dataset.masking.ratio=1.0'], '0 < masked < 24'),
        (
            ['CONFIG', '--cfg-options', 'model.backbone.img_size=(30,48)'],
            'img_size 30x48 must be divisible by patch_size 8',
        ),
    ],
)
def test_errors_of_train_have_one_line(tmp_path, image_folder, run_tool, arguments, message):
    config = run_config(tmp_path / 'config.py', image_folder)
    arguments = [config if argument == 'CONFIG' else argument for argument in arguments]
    status, _, found = run_tool('train.py', *arguments, '--work-dir', tmp_path / 'work')
    assert status == 1
    assert message in found and '\n' not in found and found.startswith('error: ')


def test_errors_of_reconstruct_have_one_line(tmp_path, run_tool, image_folder):
    config = tmp_path / 'config.py'
    config.write_text(f'model = {tiny_config()!r}\n')
    torch.save(dict(state_dict=build(tiny_config()).state_dict()), tmp_path / 'x.pth')
    for arguments, message in (
        ((tmp_path / 'none.pth', image_folder), 'no checkpoint'),
        ((tmp_path / 'x.pth', image_folder), 'no config'),
        ((tmp_path / 'x.pth', tmp_path / 'none.jpg', '--config', config), 'no image or folder'),
    ):
        status, _, found = run_tool('reconstruct.py', *arguments)
        assert status == 1 and message in found and '\n' not in found


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], 'usage'),
        (['config.py'], 'usage'),
        (['config.py', 'eight'], 'positive integer'),
        (['config.py', '0'], 'positive integer'),
    ],
)
def test_errors_of_dist_train(arguments, message):
    status, _, err = shell(ROOT / 'tools/dist_train.sh', *arguments)
    assert status == 2 and message in err


def test_restarts_are_for_one_node():
    """Each node counts its own restarts: one could start from scratch while another resumes."""
    status, _, err = shell(ROOT / 'tools/dist_train.sh', 'config.py', 1, NNODES='2', MAX_RESTARTS='1')
    assert status == 2 and 'error: MAX_RESTARTS is for one node; on several, start again with --resume' in err


def fake_python(tmp_path, gpus):
    """Write an interpreter that reports a number of GPUs and prints its arguments; return its path."""
    path = tmp_path / 'python'
    path.write_text(f'#!/bin/bash\nif [[ $1 == -c ]]; then echo {gpus}; else echo "RUN $@"; fi\n')
    path.chmod(0o755)
    return str(path)


def test_dist_train_checks_the_number_of_gpus_and_forwards_nodes(tmp_path):
    python = fake_python(tmp_path, 4)
    status, _, err = shell(ROOT / 'tools/dist_train.sh', 'config.py', 8, PYTHON=python)
    assert status == 2 and 'error: 8 GPUs asked for, but this machine has 4' in err
    status, out, _ = shell(
        ROOT / 'tools/dist_train.sh',
        'config.py',
        4,
        '--amp',
        PYTHON=python,
        NNODES='2',
        NODE_RANK='1',
        MASTER_ADDR='10.0.0.1',
        PORT='1234',
    )
    assert status == 0
    for part in (
        '--nnodes=2',
        '--node_rank=1',
        '--master_addr=10.0.0.1',
        '--master_port=1234',
        '--nproc_per_node=4',
        'train.py --launcher pytorch config.py --amp',
    ):
        assert part in out


def test_slurm_train(tmp_path):
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/bash\necho "SRUN $@"\n')
    srun.chmod(0o755)
    path = f'{tmp_path}:{os.environ["PATH"]}'
    status, out, _ = shell(
        ROOT / 'tools/slurm_train.sh', 'part', 'job', 'config.py', 'work', '--amp', PATH=path, GPUS='16'
    )
    assert status == 0
    for part in (
        '--partition=part',
        '--ntasks=16',
        '--gres=gpu:8',
        'train.py config.py --work-dir work --launcher slurm --amp',
    ):
        assert part in out
    status, _, err = shell(ROOT / 'tools/slurm_train.sh', 'part', 'job', 'config.py', 'work', PATH=path, GPUS='12')
    assert status == 2 and 'not a multiple' in err


def test_tools_are_executable():
    for path in (ROOT / 'tools').iterdir():
        if path.suffix in ('.sh', '.py') and path.name != 'launch.sh':
            assert os.access(path, os.X_OK), path
    assert Path(ROOT / '.ci/run').stat().st_mode & 0o100
