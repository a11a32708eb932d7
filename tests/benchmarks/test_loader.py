"""The measured loaders are those of training."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import loader
from benchmarks.loader import (
    build_loader,
    make_photographs,
    mask_share,
    measure_loader,
    packed_pipelines,
    pipelines,
)
from bootmae_mm.data.decoding import decode
from bootmae_mm.engine.launch import read_config
from tests.conftest import ROOT


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('photographs')
    make_photographs(folder, 8)
    return folder


def test_photographs_have_the_size_of_imagenets(photographs):
    files = sorted(photographs.iterdir())
    assert len(files) == 8 and Image.open(files[0]).size == (500, 375)
    assert 30e3 < np.mean([file.stat().st_size for file in files]) < 80e3


def test_every_pipeline_gives_images(photographs):
    cfg = read_config(str(ROOT / 'configs/pretrain/bootmae_vitb.py'), {})
    options = pipelines(cfg, str(photographs))
    results = measure_loader(options, [1], batch=4, seconds=0.1, repeats=1)
    alone = ['decoding alone', 'decoding, cropping, stacking alone']
    assert [item['name'] for item in results] == ['mmpretrain MAE', 'this config, Pillow', 'this config', *alone]
    assert results[0]['ratio'] == 1 and results[2]['ratio'] == pytest.approx(
        results[2]['one_core'] / results[0]['one_core']
    )
    assert all(item['workers']['1'] > 0 for item in results[:3])
    exact, fast = (next(iter(build_loader(options[name], 4, 0))) for name in list(options)[1:])
    assert torch.equal(exact['ids_mask'], fast['ids_mask'])
    difference = (exact['inputs'].float() - fast['inputs'].float()).abs().mean()
    assert 0 < difference < 0.5  # of 255: the same crops, resized by Pillow and by torch
    assert 0 < mask_share(cfg, 1000.0, repeats=2)['share'] < 1


def test_the_bare_minimum_decodes_crops_and_stacks(photographs, monkeypatch):
    cfg = read_config(str(ROOT / 'configs/pretrain/bootmae_vitb.py'), {})
    options = pipelines(cfg, str(photographs))['this config']
    decoded, stacked = [], []
    stack = torch.stack
    monkeypatch.setattr(loader, 'decode', lambda data: decoded.append(decode(data)) or decoded[-1])
    monkeypatch.setattr(torch, 'stack', lambda images: stacked.append(stack(images)) or stacked[-1])
    assert next(loader.bare_minimum(options, 4, ['decode'])) > 0
    assert [image.shape for image in decoded] == 4 * [(375, 500, 3)] and not stacked
    assert next(loader.bare_minimum(options, 6, ['decode', 'crop', 'stack'])) > 0
    assert len(decoded) == 10 and [batch.shape for batch in stacked] == [(6, 224, 224, 3)]


def test_a_pass_takes_full_batches_from_a_part_of_a_large_folder(photographs, monkeypatch):
    cfg = read_config(str(ROOT / 'configs/pretrain/bootmae_vitb.py'), {})
    options = pipelines(cfg, str(photographs))['this config']
    seen = []
    crop = loader.RandomResizedCrop.transform
    monkeypatch.setattr(
        loader.RandomResizedCrop, 'transform', lambda self, results: seen.append(1) or crop(self, results)
    )
    monkeypatch.setattr(loader, 'ONE_PASS', 5)
    next(loader.one_core(options, 2))
    assert len(seen) == 4  # two batches of 2 of the first 5
    next(loader.one_core(options, 100))
    assert len(seen) == 4 + 8  # one batch with all 8 images


def test_packs_of_the_same_images(photographs, tmp_path):
    cfg = read_config(str(ROOT / 'configs/pretrain/bootmae_vitb.py'), {})
    options = packed_pipelines(cfg, str(photographs), tmp_path)
    names = ['ZIP (raw)', 'TAR (raw)', 'ZIP (jpeg)', 'TAR (jpeg)', 'Hugging Face (jpeg)']
    assert list(options) == [f'this config, {name}' for name in names]
    batches = [next(iter(build_loader(option, 4, 0)))['inputs'].float() for option in options.values()]
    assert batches[0].shape == (4, 3, 224, 224) and 0 < (batches[0] - batches[2]).abs().mean() < 3
    assert torch.equal(batches[0], batches[1])
    assert torch.equal(batches[2], batches[3]) and torch.equal(batches[2], batches[4])


def test_a_config_without_files(photographs):
    cfg = read_config(str(ROOT / 'configs/pretrain/bootmae_vitt_digits.py'), {})
    with pytest.raises(ValueError, match='reads no images from files'):
        pipelines(cfg, str(photographs))
