"""A run on a folder of unusual and broken images."""

import os

import numpy as np
import pytest
from PIL import Image

from tests.conftest import run_config, write_images
from tests.faults.runs import run

CROP = ['train_dataloader.num_workers=2', 'default_hooks.reconstruction=None', 'default_hooks.curves=None']


@pytest.fixture
def odd_folder(tmp_path):
    """Folder with 16 readable images and some that are not readable; the names of the latter."""
    folder = write_images(tmp_path / 'images', 6)
    pixels = (np.add.outer(np.arange(40), np.arange(60)) * 2).astype(np.uint8)
    gray, colors = Image.fromarray(pixels), Image.fromarray(np.stack([pixels, pixels[::-1], pixels[:, ::-1]], 2))
    palette = colors.quantize(16)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    gray.save(folder / 'gray.jpg')
    colors.convert('CMYK').save(folder / 'cmyk.jpg')
    Image.fromarray(pixels.astype(np.uint16) * 200).save(folder / '16 bits.png')
    palette.save(folder / 'palette with alpha.png', transparency=0)
    colors.save(folder / 'animated.gif', save_all=True, append_images=[colors.rotate(90)])
    colors.save(folder / 'rotated.jpg', exif=exif)
    colors.save(folder / 'really png.jpg', format='PNG')
    colors.save(folder / 'größe 大 .jpg')
    Image.new('RGB', (1, 1), 'red').save(folder / '1x1.png')
    Image.new('RGB', (20000, 10), 'red').save(folder / 'long.png')

    colors.save(folder / 'whole.jpg')
    (folder / 'truncated.jpg').write_bytes((folder / 'whole.jpg').read_bytes()[:600])
    (folder / 'whole.jpg').unlink()
    (folder / 'empty.jpg').touch()
    (folder / 'text.png').write_text('not an image')
    (folder / 'broken link.jpg').symlink_to(folder / 'nothing.jpg')
    Image.new('1', (12000, 10000)).save(folder / 'bomb.png')
    bad = {'truncated.jpg', 'empty.jpg', 'text.png', 'broken link.jpg', 'bomb.png'}
    if os.getuid():  # root can read all files
        colors.save(folder / 'locked.jpg')
        (folder / 'locked.jpg').chmod(0)
        bad.add('locked.jpg')
    return folder, bad


@pytest.mark.fault
def test_unusual_images_are_converted_and_broken_ones_are_skipped(odd_folder, tmp_path):
    folder, bad = odd_folder
    config = run_config(tmp_path / 'config.py', folder, batch_size=3, epochs=2)
    status, said = run(config, tmp_path / 'work', options=[*CROP, 'train_dataloader.dataset.max_unreadable=0.5'])
    assert status == 0, said[-3000:]
    lines = (tmp_path / 'work/unreadable_images.txt').read_text().splitlines()
    reasons = dict(line.removeprefix(f'{folder}/').split('\t') for line in lines)
    assert reasons.keys() == bad and len(lines) == len(bad)
    assert 'are more than max_pixels=100000000' in reasons['bomb.png']
    assert all(' at 0x' not in reason for reason in reasons.values())
    assert said.count('unreadable image skipped') == len(bad)


@pytest.mark.fault
def test_too_many_unreadable_images(odd_folder, tmp_path):
    folder, _ = odd_folder
    config = run_config(tmp_path / 'config.py', folder, batch_size=3, epochs=2)
    status, said = run(config, tmp_path / 'work', options=[*CROP, 'train_dataloader.dataset.max_unreadable=0.1'])
    assert status == 1
    assert 'images cannot be read, more than max_unreadable=0.1 allows' in said.strip().splitlines()[-1]
    assert str(folder) in said.strip().splitlines()[-1]
