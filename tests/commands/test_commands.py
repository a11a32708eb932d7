"""The console script: overview, configs, and the way from a folder of images to features and an export."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine import Config

import bootmae_mm
from bootmae_mm import commands
from bootmae_mm.commands.reconstruct import loading_step
from bootmae_mm.engine.training import as_text
from bootmae_mm.options import parse_value
from bootmae_mm.validation import ConfigError, MissingFileError
from tests.conftest import ROOT
from tests.engine.test_auto import tiny_options


@pytest.fixture
def bootmae(capfd, monkeypatch):
    """Run a command in this process; return its exit status, output, and error message."""
    for name in ('TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', 'OMP_WAIT_POLICY'):
        monkeypatch.setenv(name, '0')  # restored afterwards, as a command changes them for its own process

    def run(*arguments) -> tuple[int, str, str]:
        capfd.readouterr()
        status, message = 0, ''
        try:
            commands.main(list(map(str, arguments)))
        except SystemExit as end:
            status, message = (end.code or 0, '') if isinstance(end.code, (int, type(None))) else (1, str(end.code))
        return status, capfd.readouterr().out, message

    return run


def shell(*command, **options):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=500, **options)


def test_the_overview_lists_every_command_quickly():
    code = 'import sys; from bootmae_mm.commands import main; main([]); print("torch" in sys.modules)'
    done = shell(sys.executable, '-c', code)
    for name in (*commands.COMMANDS, 'bench'):
        assert f'  {name} ' in done.stdout
    assert done.stdout.strip().endswith('False')
    files = {path.stem for path in (ROOT / 'bootmae_mm/commands').glob('*.py')} - {'__init__', 'arguments'}
    assert files == set(commands.COMMANDS)


@pytest.mark.parametrize('name', commands.COMMANDS)
def test_every_command_has_help_with_an_example(name, bootmae):
    status, out, _ = bootmae(name, '--help')
    assert status == 0 and out.startswith(f'usage: bootmae {name}') and f'\n    bootmae {name}' in out


def test_unknown_commands_are_refused(bootmae):
    assert bootmae('pretrain') == (1, '', f'error: unknown command {"pretrain"!r}; commands: '
                                          f'{", ".join([*commands.COMMANDS, "bench"])}')  # fmt: skip
    assert bootmae('--version')[1].strip() == bootmae_mm.__version__


def test_configs_are_listed_printed_and_inherited(bootmae, tmp_path):
    names = bootmae('config')[1].split()
    assert 'pretrain/bootmae_vitb.py' in names and not any('_base_' in name for name in names)
    assert len(names) == len([path for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in str(path)])
    text = bootmae('config', 'pretrain/bootmae_vitb', '--cfg-options', 'masking.ratio=0.6')[1]
    assert 'ratio=0.6' in text and 'max_epochs=800' in text
    child = tmp_path / 'mine.py'
    assert bootmae('config', 'pretrain/bootmae_vitb.py', '--child', child)[0] == 0
    assert Config.fromfile(child).train_cfg.max_epochs == 800
    assert bootmae('config', 'pretrain/bootmae_vitb.py', '--child', child)[2] == f'error: {child} is there already'
    assert bootmae('config', 'pretrain/nothing')[2] == 'error: no config pretrain/nothing'
    assert 'lists those that come with the package' in bootmae('config', 'bootmae_mm::pretrain/nothing')[2]


@pytest.mark.slow
def test_from_a_folder_of_images_to_features_and_an_export(bootmae, image_folder, tmp_path, monkeypatch):
    """As in the README, whose lines another test runs in processes of their own."""
    monkeypatch.chdir(tmp_path)
    options = [f'{key}={value}' for key, value in tiny_options().items()]
    train = ['train', '--data', image_folder, '--out', 'run', '--epochs', 2, '--batch-size', 4]
    status, out, message = bootmae(*train, '--cfg-options', *options)
    assert status == 0, message
    assert 'Epoch(train) [2][2/2]' in out
    (log,) = Path('run').glob('*/*.log')
    assert 'chosen for 8 images' in log.read_text()
    status, _, message = bootmae(*train)
    assert status == 1 and 'run holds a run' in message
    status, out, _ = bootmae('embed', 'run', image_folder, '--to', 'features.npy', '--plot', 'map.png')
    assert status == 0 and out.strip().endswith('8 images, features (8, 24) -> features.npy')
    assert np.load('features.npy').std(axis=0).min() > 0 and Path('map.png').stat().st_size > 1000
    assert bootmae('export', 'run', '--to', 'timm')[0] == 0 and Path('run/epoch_2_timm/model.safetensors').is_file()
    for command in ('reconstruct', 'show'):
        status, out, _ = bootmae(command, 'run', image_folder, '--out', f'pictures/{command}.png')
        assert status == 0 and Path(f'pictures/{command}.png').stat().st_size > 1000


def test_images_with_five_bands_from_their_statistics_to_features(bootmae, tmp_path):
    (tmp_path / 'images').mkdir()
    for index in range(4):
        values = np.random.RandomState(index).randint(-500, 3000, (40, 48, 5)).astype(np.int16)
        np.save(tmp_path / f'images/{index}.npy', values)
    status, out, _ = bootmae('stats', tmp_path / 'images', '--out', tmp_path / 'mine.py')
    assert status == 0 and '4 with 5 channel(s) of int16' in out
    (tmp_path / 'list.csv').write_text('path\n' + ''.join(f'images/{index}.npy\n' for index in range(3)))
    options = {**tiny_options(), 'default_hooks.reconstruction.channels': [4, 2, 0]}
    last = bootmae_mm.pretrain(
        tmp_path / 'list.csv', tmp_path / 'run', epochs=1, batch_size=3, config=tmp_path / 'mine.py', options=options
    )
    saved = torch.load(last, weights_only=False)['state_dict']
    assert saved['backbone.patch_embed.projection.weight'].shape[1] == 5
    found = bootmae_mm.embed(tmp_path / 'run', tmp_path / 'images')
    assert found.features.shape == (4, 24) and found.features.std(axis=0).min() > 0
    encoder = bootmae_mm.load_encoder(tmp_path / 'run')
    tokens = encoder(np.load(tmp_path / 'images/2.npy')).mean.detach().numpy()
    np.testing.assert_allclose(tokens, found.features[2:3], rtol=1e-4, atol=1e-5)
    options = ['--channels', 4, 2, 0, '--out', tmp_path / 'picture.png']
    assert bootmae('reconstruct', tmp_path / 'run', tmp_path / 'images', *options)[0] == 0
    assert (
        bootmae('stats', tmp_path / 'images', '--out', 'x.txt')[2]
        == 'error: --out must be a config (.py), but is x.txt'
    )


def test_reconstruct_reads_files_as_older_runs_did():
    step = dict(type='bootmae_mm.LoadRGB', value_range=12, crop_size=8)
    cfg = Config(dict(train_dataloader=dict(dataset=dict(pipeline=[step]))))
    assert loading_step(cfg) == dict(type='bootmae_mm.LoadRGB', value_range=12)


def test_the_python_functions_do_the_same(image_folder, tmp_path):
    last = bootmae_mm.pretrain(image_folder, tmp_path / 'run', epochs=1, batch_size=4, options=tiny_options())
    assert last == tmp_path / 'run/epoch_1.pth'
    features = bootmae_mm.embed(tmp_path / 'run', image_folder).features
    encoder = bootmae_mm.load_encoder(tmp_path / 'run')
    images = sorted(image_folder.rglob('*.png'))
    np.testing.assert_allclose(encoder(images).mean.detach(), features, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match='holds a run'):
        bootmae_mm.pretrain(image_folder, tmp_path / 'run', options=tiny_options())
    longer = bootmae_mm.pretrain(
        image_folder, tmp_path / 'run', epochs=2, batch_size=4, resume=True, options=tiny_options()
    )
    assert longer == tmp_path / 'run/epoch_2.pth'


@pytest.mark.parametrize(
    'options, message',
    [
        (
            dict(model='resnet50'),
            "unknown model 'resnet50'; models: vit_tiny, vit_small, vit_base, vit_large, vit_huge",
        ),
        (dict(model='vit_small/15'), 'img_size 224x224 must be divisible by patch_size 15'),
        (dict(devices=0), 'devices must be at least 1'),
        (dict(epochs=0), 'train_cfg.max_epochs must be greater than or equal to 1'),
    ],
)
def test_wrong_arguments_are_refused(image_folder, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        bootmae_mm.pretrain(image_folder, tmp_path / 'run', **options)


def test_a_missing_folder_is_named(bootmae, tmp_path):
    with pytest.raises(MissingFileError, match='no folder nowhere'):
        bootmae_mm.pretrain('nowhere', tmp_path)
    assert bootmae('train', '--data', 'nowhere')[2] == 'error: no folder nowhere'
    assert bootmae('train')[2] == 'error: give a folder of images (--data FOLDER) or a config'


def test_names_of_the_package_resolve_in_mmengine(tmp_path):
    """In a new process, in another folder, with mmengine alone after the import."""
    child = tmp_path / 'child.py'
    child.write_text("_base_ = 'bootmae_mm::pretrain/bootmae_vitb.py'\nmodel = dict(backbone=dict(arch='s'))\n")
    code = (
        'import sys, bootmae_mm; assert "mmengine" not in sys.modules\n'
        'from mmengine.config import Config; from mmengine.hub import get_config\n'
        'cfg = Config.fromfile(sys.argv[1]); assert (cfg.model.backbone.arch, cfg.train_cfg.max_epochs) == ("s", 800)\n'
        'assert get_config("bootmae_mm::pretrain/bootmae_vitb.py").model.backbone.arch == "b"\n'
    )
    done = shell(sys.executable, '-c', code, child, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = shell(sys.executable, '-c', 'import sys, mmengine.config\n' + code.split('\n', 1)[1], child, cwd=tmp_path)
    assert done.returncode == 1 and 'does not support to load bootmae_mm' in done.stderr  # what the import is for
    done = shell(
        sys.executable, '-c', 'import mmengine.config, sys, bootmae_mm\n' + code.split('\n', 1)[1], child, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_a_config_that_imports_its_base_inherits_from_a_flat_copy(bootmae, tmp_path):
    (tmp_path / 'base.py').write_text(bootmae('config', 'pretrain/bootmae_vitb.py')[1])
    child = tmp_path / 'child.py'
    child.write_text(
        'from mmengine.config import read_base\n\nwith read_base():\n    from .base import *\n\n'
        "model.update(backbone=dict(type='bootmae_mm.BootMAEViT', arch='s', img_size=224, patch_size=16))\n"
    )
    cfg = Config.fromfile(child)
    assert cfg.model.backbone.arch == 's' and cfg.train_cfg.max_epochs == 800
    assert cfg.param_scheduler[1].end == 800


@pytest.mark.program
def test_several_processes(image_folder, tmp_path):
    """torchrun on the CPU, with options that are not text."""
    options = tiny_options() | {'model.pixel_head.normalize': 'none', 'auto_scale_lr': None}
    last = bootmae_mm.pretrain(image_folder, tmp_path / 'a run', epochs=2, devices=2, options=options)
    (log,) = (tmp_path / 'a run').rglob('*.log')
    assert last.name == 'epoch_2.pth' and '2 processes on this machine' in log.read_text()
    command = [sys.executable, '-m', 'bootmae_mm', 'embed', tmp_path / 'a run', image_folder, '--devices', 2]
    done = shell(*command, '--to', tmp_path / 'features.npy')
    assert done.returncode == 0 and '8 images, features (8, 24)' in done.stdout, done.stderr
    assert 'OMP_NUM_THREADS' not in done.stderr


def test_options_reach_other_processes_unchanged():
    for value in (
        'a b',
        "it's",
        '3',
        3,
        1e-3,
        True,
        None,
        [1, 2],
        (1, 2),
        {'a': [dict(type='x.Y')]},
        'C:\\x',
        Path('/a'),
    ):
        text = as_text(value)
        assert parse_value(text) == (str(value) if isinstance(value, Path) else value), text
    with pytest.raises(ConfigError, match='several processes cannot get the option'):
        as_text(object())


def test_several_processes_do_not_start_over_in_a_run(bootmae, image_folder, tmp_path):
    (tmp_path / 'epoch_3.pth').touch()
    status, _, message = bootmae('train', '--data', image_folder, '--out', tmp_path, '--devices', 2)
    assert status == 1 and 'holds a run' in message
