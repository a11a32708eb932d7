"""Loaders that are measured are the real ones."""

import numpy as np
import pytest
import torch
from PIL import Image

from bootmae_mm.benchmark.loader import (
    build_loader,
    make_photographs,
    mask_share,
    measure_loader,
    packed_pipelines,
    pipelines,
)
from bootmae_mm.engine.launch import read_config
from tests.conftest import ROOT


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('photographs')
    make_photographs(folder, 8)
    return folder


def test_photographs_are_like_those_of_imagenet(photographs):
    files = sorted(photographs.iterdir())
    assert len(files) == 8 and Image.open(files[0]).size == (500, 375)
    assert 30e3 < np.mean([file.stat().st_size for file in files]) < 80e3


def test_every_pipeline_gives_images(photographs):
    cfg = read_config(str(ROOT / 'configs/pretrain/bootmae_vitb.py'), {})
    options = pipelines(cfg, str(photographs))
    results = measure_loader(options, [1], batch=4, seconds=0.1, repeats=1)
    assert [item['name'] for item in results] == ['mmpretrain MAE', 'this config, Pillow', 'this config']
    assert results[0]['ratio'] == 1 and results[2]['ratio'] == pytest.approx(
        results[2]['one_core'] / results[0]['one_core']
    )
    assert all(item['workers']['1'] > 0 for item in results)
    exact, fast = (next(iter(build_loader(options[name], 4, 0))) for name in list(options)[1:])
    assert torch.equal(exact['ids_mask'], fast['ids_mask'])
    difference = (exact['inputs'].float() - fast['inputs'].float()).abs().mean()
    assert 0 < difference < 0.5  # of 255: the same crops, resized by Pillow and by torch
    assert 0 < mask_share(cfg, 1000.0, repeats=2)['share'] < 1


def test_packs_of_the_same_images(photographs, tmp_path):
    cfg = read_config(str(ROOT / 'configs/pretrain/bootmae_vitb.py'), {})
    options = packed_pipelines(cfg, str(photographs), tmp_path)
    assert list(options) == ['this config, packed (raw)', 'this config, packed (jpeg)']
    batches = [next(iter(build_loader(option, 4, 0)))['inputs'].float() for option in options.values()]
    assert batches[0].shape == (4, 3, 224, 224) and 0 < (batches[0] - batches[1]).abs().mean() < 3


def test_a_config_without_files(photographs):
    cfg = read_config(str(ROOT / 'configs/pretrain/bootmae_vitt_digits.py'), {})
    with pytest.raises(ValueError, match='reads no images from files'):
        pipelines(cfg, str(photographs))
