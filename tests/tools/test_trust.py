"""A checkpoint with code in it is refused by every tool and option that reads it, unless it is trusted."""

import os
import pickle

import pytest
import torch
from mmengine.logging import HistoryBuffer

from bootmae_mm.checkpoints.trust import SAFE, TRUSTED, data_only
from examples.digit_scenes import write_scenes
from tests.conftest import ROOT, run_config, write_images

DIGITS = ROOT / 'configs/cls/bootmae_vitt_digits_knn.py'
FINE_TUNED = ROOT / 'configs/cls/bootmae_vitt_digits_ft.py'


class MakesFolder:
    """Harmless code: creates a folder when unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.makedirs, (self.path, 0o777, True)


@pytest.fixture
def made(tmp_path):
    return tmp_path / 'made'


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Config and checkpoint of a run of one epoch."""
    from bootmae_mm.engine.launch import prepare, read_config
    from bootmae_mm.engine.runner import Runner

    folder = tmp_path_factory.mktemp('trained')
    config = run_config(folder / 'config.py', write_images(folder / 'images', 8), epochs=1)
    config.write_text(config.read_text().replace('begin=1, end=1', 'begin=0, end=1'))
    cfg = read_config(str(config), {}, str(folder / 'work'))
    prepare(cfg)
    Runner.from_cfg(cfg).train()
    return config, folder / 'work/epoch_1.pth'


@pytest.fixture
def harmful(trained, made, tmp_path):
    """The checkpoint of ``trained`` with code in it."""
    checkpoint = torch.load(trained[1], weights_only=False)
    path = tmp_path / 'harmful.pth'
    torch.save({**checkpoint, 'extra': MakesFolder(made)}, path)
    return path


class Reaches:
    """Calls ``getattr``, which mmengine's list of safe functions allows, for more than a statistic."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


SMALL = (
    '--work-dir {work} --cfg-options data_root={scenes} train_cfg.max_epochs=1 train_dataloader.batch_size=4 '
    'train_dataloader.num_workers=0'
)
# Commands that read a checkpoint; {config} is a pretraining config, {harmful} the checkpoint, {work} a folder.
WAYS = {
    'load_from': 'train.py {config} --work-dir {work} --cfg-options load_from={harmful}',
    'resume': 'train.py {config} --work-dir {work} --resume {harmful} --cfg-options train_cfg.max_epochs=2',
    'test': 'test.py {config} {harmful} --work-dir {work}',
    'reconstruct': 'reconstruct.py {harmful} {images} --out {work}/picture.png',
    'export': 'export.py {harmful} --to mmpretrain --out {work}/exported',
    'convert': 'convert_official.py {harmful} {work}/converted.pth --to official',
    'benchmark': 'benchmark.py step {config} --repeats 1 --warmup 0 --cfg-options '
    'model.pixel_head.init_cfg.type=Pretrained model.pixel_head.init_cfg.checkpoint={harmful}',
    'knn': f'knn.py {DIGITS} {{harmful}} --cfg-options work_dir={{work}}',
    # BootMAEViT reads its own weights; other modules read them through mmengine.
    'Pretrained': f'train.py {FINE_TUNED} {SMALL} model.backbone.init_cfg.checkpoint={{harmful}}',
    'Pretrained by mmengine': f'train.py {FINE_TUNED} {SMALL} model.backbone.init_cfg=None '
    'model.head.init_cfg.type=Pretrained model.head.init_cfg.checkpoint={harmful} model.head.init_cfg._delete_=True',
}


def command(way, trained, harmful, tmp_path):
    config, _ = trained
    scenes = config.parent / 'scenes'
    if '{scenes}' in WAYS[way] and not scenes.exists():
        write_scenes(scenes, dict(training=8, validation=1), size=48)
    values = dict(
        config=config, harmful=harmful, work=tmp_path / 'work', images=config.parent / 'images', scenes=scenes
    )
    (tmp_path / 'work').mkdir()
    return WAYS[way].format(**values).split()


@pytest.mark.parametrize('way', WAYS)
def test_refused_everywhere(way, trained, harmful, made, tmp_path, run_tool):
    status, _, message = run_tool(*command(way, trained, harmful, tmp_path))
    assert status == 1 and not made.exists()
    assert message.startswith('error: ') and '\n' not in message, message
    assert 'loads safely' in message or 'load safely' in message, message
    assert 'makedirs' in message and '--trust-checkpoint' in message


@pytest.mark.parametrize('resume', [False, True])
def test_a_runner_without_a_tool_refuses_code(resume, trained, harmful, made, tmp_path, monkeypatch):
    """The Runner does not depend on the variables that the tools set."""
    from bootmae_mm.checkpoints.reading import reason_of
    from bootmae_mm.engine.launch import prepare, read_config
    from bootmae_mm.engine.runner import Runner

    for name in (SAFE, TRUSTED):
        monkeypatch.delenv(name, raising=False)
    cfg = read_config(str(trained[0]), dict(load_from=str(harmful), resume=resume), str(tmp_path / 'work'))
    prepare(cfg)
    with pytest.raises(pickle.UnpicklingError) as caught:
        Runner.from_cfg(cfg).load_or_resume()
    assert 'makedirs' in reason_of(caught.value)
    assert not made.exists() and SAFE not in os.environ
    with pytest.raises(pickle.UnpicklingError), data_only():
        torch.load(harmful, weights_only=False)
    torch.load(harmful, weights_only=False)  # torch's own loading is unchanged
    assert made.exists()


@pytest.mark.parametrize('way', ['load_from', 'Pretrained', 'Pretrained by mmengine'])
def test_getattr_is_refused(way, trained, made, tmp_path, run_tool):
    torch.save(dict(state_dict={}, extra=Reaches()), tmp_path / 'reaches.pth')
    status, _, message = run_tool(*command(way, trained, tmp_path / 'reaches.pth', tmp_path))
    assert status == 1 and "the file asks for '__init__'" in message, message


@pytest.mark.parametrize('times', [1, 2])
def test_mmengine_reads_its_own_checkpoints(trained, times):
    """With the log history, also a second time."""
    from mmengine.runner import load_checkpoint

    from bootmae_mm.checkpoints.reading import allow_mmengine_checkpoints

    allow_mmengine_checkpoints()
    for _ in range(times):
        checkpoint = load_checkpoint(torch.nn.Linear(1, 1), str(trained[1]), map_location='cpu')
    assert checkpoint['message_hub']['log_scalars']['train/loss'].mean() > 0


@pytest.mark.parametrize('way', ['load_from', 'resume', 'test', 'reconstruct', 'convert'])
def test_a_trusted_checkpoint_is_read(way, trained, harmful, made, tmp_path, run_tool):
    name, *arguments = command(way, trained, harmful, tmp_path)
    status, _, message = run_tool(name, '--trust-checkpoint', *arguments)
    assert status == 0, message
    assert made.exists()


def test_auto_resume_skips_a_checkpoint_with_code(trained, harmful, made, tmp_path, run_tool):
    config, good = trained
    work = tmp_path / 'work'
    work.mkdir()
    (work / 'epoch_1.pth').write_bytes(good.read_bytes())
    (work / 'epoch_2.pth').write_bytes(harmful.read_bytes())
    arguments = [config, '--work-dir', work, '--resume', '--cfg-options', 'train_cfg.max_epochs=2']
    status, _, message = run_tool('train.py', *arguments)
    assert status == 0, message
    assert not made.exists()


def test_no_code_of_a_config_in_a_checkpoint_is_run(trained, made, tmp_path, run_tool):
    """mmengine would run the text that MMCV's old runners wrote, and import and call any dotted type."""
    config, good = trained
    checkpoint = torch.load(good, weights_only=False)
    checkpoint['meta']['config'] = f'import os\nos.makedirs({str(made)!r})'
    torch.save(checkpoint, tmp_path / 'old.pth')
    options = ['--work-dir', tmp_path / 'work', '--resume', tmp_path / 'old.pth']
    status, _, message = run_tool('train.py', config, *options, '--cfg-options', 'train_cfg.max_epochs=2')
    assert status == 0 and not made.exists(), message
    for kind in ('os.makedirs', 'mmengine.mkdir_or_exist', 'antigravity', '_scope_'):
        asked = dict(type='LN', _scope_='evil') if kind == '_scope_' else dict(type=kind, name=str(made))
        model = dict(type='bootmae_mm.BootMAE', backbone=dict(type='bootmae_mm.BootMAEViT', norm_cfg=[asked]))
        checkpoint['meta']['cfg'] = f'model = {model!r}'
        path, out = tmp_path / 'typed.pth', tmp_path / 'out'
        torch.save(checkpoint, path)
        for tool, *arguments in (
            ['reconstruct.py', path, config.parent / 'images'],
            ['export.py', path, '--to', 'timm'],
        ):
            status, _, message = run_tool(tool, *arguments, '--out', out)
            assert status == 1 and not made.exists() and 'which could execute arbitrary code' in message, (
                tool,
                kind,
                message,
            )
