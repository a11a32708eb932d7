"""Shared by all tests: a tiny model, tiny configs, image folders."""

from __future__ import annotations

import gc
import os
import runpy
import subprocess
import sys
from pathlib import Path

# Before torch is imported: tests run on two cores, and tiny tensors gain nothing from threads.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np
import pytest
import torch

import bootmae_mm  # noqa: F401  before anything of OpenMMLab, for the operators

ROOT = Path(__file__).resolve().parent.parent
TINY_ARCH = dict(embed_dims=24, num_layers=3, num_heads=3, feedforward_channels=48)


def pytest_addoption(parser):
    parser.addoption('--soak-minutes', type=float, default=60.0, help='length of the soak test in minutes')


def pytest_configure(config):
    """Hide GPUs except for `-m gpu`: a Runner would use one, and all other tests check values on a CPU."""
    if config.option.markexpr != 'gpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''


def pytest_collection_finish():
    """Leave what the imports made out of garbage collection: mmengine collects for every data set, 0.5 s of each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='session', autouse=True)
def unformatted_config_texts():
    """Leave the texts of configs as they are: mmengine formats them for every log, checkpoint and copy of a run.

    That would be a third of the time of tiny runs. In processes of their own, runs format them.
    """
    with pytest.MonkeyPatch.context() as patch:
        # The second is where the original mmengine has it.
        for name in ('yapf.yapflib.yapf_api.FormatCode', 'mmengine.config.config.FormatCode'):
            patch.setattr(name, lambda text, **options: (text, True), raising=False)
        yield


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    np.random.seed(0)


def tiny_config(**changes) -> dict:
    """Config of a tiny BootMAE: 32 x 48 pixels in patches of 8, a grid of 4 x 6."""
    config = dict(
        type='bootmae_mm.BootMAE',
        data_preprocessor=dict(type='bootmae_mm.BootMAEDataPreprocessor'),
        backbone=dict(type='bootmae_mm.BootMAEViT', arch=dict(TINY_ARCH), img_size=(32, 48), patch_size=8),
        neck=dict(type='bootmae_mm.BootMAENeck', pixel=dict(width=16), feature=dict()),
        pixel_head=dict(type='bootmae_mm.BootMAEPixelHead'),
        feature_head=dict(type='bootmae_mm.BootMAEFeatureHead'),
    )
    config.update(changes)
    return config


def build(config: dict):
    """Build and initialize a model, with nonzero biases, so that nothing cancels by accident."""
    from bootmae_mm.registry import MODELS

    model = MODELS.build(config)
    model.init_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and not name.startswith('teacher.'):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def model_info(**changes):
    """Facts of a model with 2 x 3 patches of 4 pixels, with images in -1..1."""
    from bootmae_mm.models.targets import ModelInfo

    facts = dict(
        patch_size=4,
        grid_size=(2, 3),
        in_channels=3,
        mean=torch.full((3,), 127.5),
        std=torch.full((3,), 127.5),
        teacher_dims=8,
        teacher_layers=3,
    )
    return ModelInfo(**{**facts, **changes})


@pytest.fixture
def model():
    return build(tiny_config())


def random_batch(batch: int = 3, patches: int = 24, masked: int = 17, size: tuple = (32, 48)) -> dict:
    """Normalized images and a mask of their patches."""
    ids = torch.rand(batch, patches).argsort(dim=1)
    return dict(
        inputs=torch.randn(batch, 3, *size), ids_keep=ids[:, : patches - masked], ids_mask=ids[:, patches - masked :]
    )


@pytest.fixture
def batch():
    return random_batch()


def write_images(folder: Path, count: int, size: tuple[int, int] = (40, 60)) -> Path:
    """Write small images that are not flat, in subfolders; return the folder."""
    from PIL import Image

    rng = np.random.RandomState(0)
    for index in range(count):
        place = folder / f'part{index % 2}'
        place.mkdir(parents=True, exist_ok=True)
        coarse = rng.randint(0, 255, (4, 6, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(place / f'image {index}.png')
    return folder


@pytest.fixture
def image_folder(tmp_path):
    return write_images(tmp_path / 'images', 8)


def run_without_rights(imports: str, statement: str, folder: Path, *arguments) -> subprocess.CompletedProcess:
    """Run a statement as a user without the rights of root: another user if the tests run as root."""
    change = ''
    if os.getuid() == 0:
        for place in [folder, *folder.parents]:
            if 'pytest-' in str(place):
                place.chmod(0o755)
        change = 'import os; os.setuid(65534); '
    command = [sys.executable, '-c', f'import sys; {imports}; {change}{statement}', *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


RUN_CONFIG = """
_base_ = '{root}/configs/_base_/runtime/pretrain.py'
data_root = {data!r}
model = {model!r}
train_pipeline = [
    dict(type='bootmae_mm.LoadImage'),
    dict(type='bootmae_mm.RandomResizedCrop', scale=(32, 48), crop_ratio_range=(0.2, 1.0)),
    dict(type='bootmae_mm.RandomFlip', prob=0.5),
    dict(type='bootmae_mm.PackImage'),
]
masking = dict(grid_size=(4, 6), ratio=0.75, min_block=2, max_block=6, roll={roll})
train_dataloader = dict(
    batch_size={batch_size}, num_workers={workers}, persistent_workers={workers} > 0, drop_last=True,
    sampler=dict(type='bootmae_mm.SeededSampler', shuffle=True),
    collate_fn=dict(type='bootmae_mm.collate'),
    dataset=dict(type='bootmae_mm.ImageFolder', data_root=data_root, pipeline=train_pipeline, masking=masking))
test_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='bootmae_mm.SeededSampler', shuffle=False),
    collate_fn=dict(type='bootmae_mm.collate'),
    dataset=dict(
        type='bootmae_mm.ImageFolder', data_root=data_root, masking=masking,
        pipeline=[train_pipeline[0], dict(type='CenterCrop', crop_size=(48, 32)), train_pipeline[-1]]))
test_evaluator = dict(type='bootmae_mm.PretrainLoss')
test_cfg = dict()
optim_wrapper = dict(
    type='OptimWrapper', accumulative_counts={accumulate}, constructor='bootmae_mm.GroupedOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=1, end={epochs}, convert_to_iter_based=True)]
train_cfg = dict(by_epoch=True, max_epochs={epochs})
default_hooks = dict(
    ema=dict(decay=[(0, 0.5), (2, 0.9)]), feature_weight=dict(weight=0.7, ramp=0.5), logger=dict(interval=1),
    checkpoint=dict(interval=1, max_keep_ckpts=-1), reconstruction=dict(interval=2, num_images=2),
    {summary})
visualizer = dict(type='Visualizer', vis_backends=[dict(type='bootmae_mm.LocalVisBackend')])
"""


def run_config(path: Path, data: Path, model: dict | None = None, summary: bool = False, **options) -> Path:
    """Write the config of a tiny run, which draws curves and a report only with ``summary``; return its path."""
    values = dict(roll=4, batch_size=4, workers=0, accumulate=1, epochs=3)
    values.update(options)
    values.update(model=model or tiny_config(), summary='' if summary else 'curves=None, report=None')
    path.write_text(RUN_CONFIG.format(root=ROOT, data=str(data), **values))
    return path


@pytest.fixture
def run_tool(monkeypatch, capsys):
    """Run a script of tools/ in this process; return its exit status, standard output and error message."""

    def run(name: str, *arguments) -> tuple[int, str, str]:
        monkeypatch.setattr('sys.argv', [name, *map(str, arguments)])
        # Restored afterwards, as the tool changes them for its own process.
        monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
        monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '0')
        capsys.readouterr()
        status, message = 0, ''
        try:
            runpy.run_path(str(ROOT / 'tools' / name), run_name='__main__')
        except SystemExit as end:
            status, message = (end.code, '') if isinstance(end.code, int) else (1, str(end.code or ''))
            status = 0 if end.code is None else status
        captured = capsys.readouterr()
        return status, captured.out, message

    return run
