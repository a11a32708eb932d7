"""Statistics of images, and the config made of them."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from bootmae_mm.config import load_config
from bootmae_mm.data import LoadImage
from bootmae_mm.data.paths import found_images
from bootmae_mm.data.statistics import measure
from bootmae_mm.validation import ConfigError
from tests.conftest import write_images


def write_bands(folder, count=6):
    """Images with three bands: constant, uniform in 0..999, and 10,000 times as large."""
    folder.mkdir()
    rng = np.random.RandomState(0)
    for index in range(count):
        uniform = rng.randint(0, 1000, (40, 50))
        values = np.stack([np.full((40, 50), 7), uniform, 10_000 * uniform, uniform], axis=-1).astype(np.int32)
        tifffile.imwrite(folder / f'{index}.tif', values, photometric='minisblack', planarconfig='contig')
    return folder


def test_bands_of_different_scales(tmp_path):
    folder = write_bands(tmp_path / 'images')
    found = measure(found_images(folder))
    assert (found.images, found.channels, found.dtype, found.unreadable) == (6, 4, 'int32', [])
    assert found.smallest[:2] == [7, 0] and found.largest[:2] == [7, 999] and found.largest[2] == 9_990_000
    low, high = found.value_range[1]
    assert 0 <= low <= 2 and 997 <= high <= 999
    assert found.value_range[2] == (10_000 * low, 10_000 * high)
    assert found.mean[1] == pytest.approx(127.5, abs=2) and found.std[1] == pytest.approx(255 / 12**0.5, abs=1)
    assert found.mean[0] == 0 and found.std[0] == 1  # of a constant channel, by which nothing may be divided

    config = tmp_path / 'measured.py'
    config.write_text(found.config(str(folder), 'bootmae_mm::pretrain/bootmae_auto.py'))
    cfg = load_config(config)
    assert cfg.model.backbone.in_channels == 4 and cfg.model.data_preprocessor.mean == found.mean
    step = dict(cfg.train_dataloader.dataset.pipeline[0])
    assert step.pop('type') == 'bootmae_mm.LoadImage'
    img = LoadImage(**step)(dict(img_path=str(folder / '0.tif')))['img']
    assert img.shape == (40, 50, 4) and np.abs(img[:, :, 1].astype(int) - img[:, :, 2]).max() <= 1


def test_photographs_keep_the_statistics_of_the_paper(tmp_path):
    folder = write_images(tmp_path / 'images', 6)
    Image.new('L', (20, 20), 200).save(folder / 'gray.png')
    Image.new('RGBA', (20, 20), (255, 0, 0, 99)).save(folder / 'transparent.png')
    (folder / 'broken.jpg').write_bytes(b'nothing')
    found = measure(found_images(folder))
    assert (found.channels, found.value_range) == (3, None) and found.kinds == {(3, 'uint8'): 7, (1, 'uint8'): 1}
    assert found.unreadable == [str(folder / 'broken.jpg')]
    pixels = np.concatenate(
        [
            np.asarray(Image.open(path).convert('RGB')).reshape(-1, 3)
            for path in found_images(folder)
            if not path.endswith(('gray.png', '.jpg'))
        ]
    )
    weights = np.array([2400] * 6 + [400])  # each image counts with about 2,000 pixels
    assert len(pixels) == weights.sum()
    assert found.mean == pytest.approx(pixels.mean(axis=0), abs=1)
    text = found.config('/x', 'bootmae_mm::pretrain/bootmae_auto.py')
    assert 'mean' not in text and 'channels' not in text


def test_nothing_readable(tmp_path):
    (tmp_path / 'x.png').write_bytes(b'nothing')
    with pytest.raises(ConfigError, match='none of the 1 images can be read; .*x.png'):
        measure([str(tmp_path / 'x.png')])


def test_some_of_many_images_evenly_spaced(tmp_path):
    for index in range(10):
        Image.new('L', (4, 4), index).save(tmp_path / f'{index}.png')
    found = measure(found_images(tmp_path), max_images=5)
    assert found.images == 5 and found.mean == [4.0] and (found.smallest, found.largest) == ([0.0], [8.0])
