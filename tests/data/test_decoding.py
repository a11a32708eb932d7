"""Image files as they come from cameras, scanners, the web, and attackers."""

import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bootmae_mm.data import ImageFolder, LoadImage, PackImage, RandomResizedCrop
from bootmae_mm.data.decoding import PILLOW_LIMIT, Decoding, UnreadableImageError, decode, jpeg_size
from bootmae_mm.validation import ConfigError
from tests.conftest import run_without_rights


def load(path, **options):
    return LoadImage(**options)(dict(img_path=str(path)))['img']


@pytest.mark.parametrize(
    ('mode', 'pixel', 'wanted'),
    [
        ('RGB', (250, 120, 10), (250, 120, 10)),
        ('L', 77, (77, 77, 77)),
        ('P', 0, None),
        ('RGBA', (250, 120, 10, 255), (250, 120, 10)),
        ('CMYK', (0, 0, 0, 0), (255, 255, 255)),
    ],
)
def test_modes_become_rgb(tmp_path, mode, pixel, wanted):
    path = tmp_path / ('x.jpg' if mode == 'CMYK' else 'x.png')
    Image.new(mode, (5, 4), pixel).save(path)
    img = LoadImage()(dict(img_path=str(path)))['img']
    assert img.shape == (4, 5, 3) and img.dtype == np.uint8
    if wanted:
        assert np.abs(img.astype(int) - wanted).max() <= 2


def test_orientation_tag_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.new('RGB', (6, 4)).save(tmp_path / 'x.jpg', exif=exif)
    assert LoadImage()(dict(img_path=str(tmp_path / 'x.jpg')))['img'].shape == (6, 4, 3)


@pytest.mark.parametrize(('kind', 'values'), [('png', np.uint16), ('tif', np.uint16), ('tif', np.int32)])
def test_sixteen_bits_are_scaled_not_truncated(tmp_path, kind, values):
    gray = np.array([[0, 257, 25_700], [32_768, 65_278, 65_535]], dtype=values)
    Image.fromarray(gray).save(tmp_path / f'x.{kind}')
    img = load(tmp_path / f'x.{kind}', value_range=16 if values is np.int32 else None)
    assert img[..., 0].tolist() == [[0, 1, 100], [128, 254, 255]]
    assert (img == img[..., :1]).all()


def test_transparency_is_dropped(tmp_path):
    colors = np.array([[[250, 120, 10, 0], [10, 120, 250, 128]]], dtype=np.uint8)
    Image.fromarray(colors).save(tmp_path / 'x.png')
    assert load(tmp_path / 'x.png').tolist() == colors[..., :3].tolist()
    gray = np.array([[[40, 0], [200, 255]]], dtype=np.uint8)
    Image.fromarray(gray, 'LA').save(tmp_path / 'y.png')
    assert load(tmp_path / 'y.png')[0, :, 0].tolist() == [40, 200]
    palette = Image.new('P', (2, 1))
    palette.putpalette([0, 0, 0, 250, 120, 10])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / 'z.png', transparency=1)
    assert load(tmp_path / 'z.png').tolist() == [[[0, 0, 0], [250, 120, 10]]]


def test_the_first_frame_of_an_animation_is_used(tmp_path):
    frames = [Image.new('RGB', (6, 4), color) for color in ('red', 'lime', 'blue')]
    frames[0].save(tmp_path / 'x.gif', save_all=True, append_images=frames[1:])
    assert load(tmp_path / 'x.gif')[0, 0].tolist() == [255, 0, 0]


def test_the_format_is_recognized_by_content_not_by_name(tmp_path):
    img = np.random.RandomState(0).randint(0, 255, (8, 9, 3)).astype(np.uint8)
    Image.fromarray(img).save(tmp_path / 'x.png')
    (tmp_path / 'x.png').rename(tmp_path / 'x.jpg')
    np.testing.assert_array_equal(load(tmp_path / 'x.jpg'), img)


@pytest.mark.parametrize('backend', ['auto', 'pillow', 'cv2'])
@pytest.mark.parametrize('size', [(1, 1), (20_000, 10), (10, 20_000)])
@pytest.mark.parametrize('kind', ['png', 'jpg'])
def test_tiny_and_narrow_images(tmp_path, size, kind, backend):
    Image.new('RGB', size, (9, 99, 199)).save(tmp_path / f'x.{kind}')
    dataset = ImageFolder(
        data_root=str(tmp_path),
        pipeline=[
            dict(type='bootmae_mm.LoadImage', backend=backend),
            dict(type='bootmae_mm.RandomResizedCrop', scale=(32, 48), crop_ratio_range=(0.2, 1.0)),
            dict(type='bootmae_mm.PackImage'),
        ],
    )
    image = dataset[0]['inputs']
    assert image.shape == (3, 32, 48)
    assert np.abs(image.float().mean((1, 2)).numpy() - [9, 99, 199]).max() <= 2


def png_header(width, height):
    """A PNG file whose header states a size, and whose pixels are missing."""

    def chunk(name, content):
        return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))

    content = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', content) + chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b'')


def jpeg_header(width, height):
    buffer = io.BytesIO()
    Image.new('RGB', (8, 8)).save(buffer, 'JPEG')
    data = bytearray(buffer.getvalue())
    place = data.index(b'\xff\xc0')
    data[place + 5 : place + 9] = struct.pack('>HH', height, width)
    return bytes(data)


@pytest.mark.parametrize('backend', ['auto', 'pillow', 'cv2'])
@pytest.mark.parametrize('make', [png_header, jpeg_header])
def test_a_decompression_bomb_is_refused(tmp_path, make, backend):
    (tmp_path / 'x.png').write_bytes(make(20_000, 30_000))
    assert (tmp_path / 'x.png').stat().st_size < 1000
    with pytest.raises(UnreadableImageError, match='30000 x 20000 pixels|decompression bomb'):
        load(tmp_path / 'x.png', backend=backend)
    (tmp_path / 'y.jpg').write_bytes(make(300, 200))
    with pytest.raises(UnreadableImageError, match='200 x 300 pixels are more than max_pixels=59999 allows'):
        load(tmp_path / 'y.jpg', backend=backend, max_pixels=59_999)


def test_limits_out_of_range():
    with pytest.raises(ConfigError, match='max_pixels must be greater than or equal to 1, but is 0'):
        LoadImage(max_pixels=0)
    with pytest.raises(ConfigError, match=f'max_pixels must be less than or equal to {PILLOW_LIMIT}, but is '):
        LoadImage(max_pixels=PILLOW_LIMIT + 1)
    assert LoadImage(max_pixels=PILLOW_LIMIT).decoding.max_pixels == PILLOW_LIMIT


def test_formats_that_start_programs_are_not_tried():
    buffer = io.BytesIO()
    Image.new('RGB', (8, 8)).save(buffer, 'EPS')
    with pytest.raises(Exception, match='cannot identify image file'):
        decode(buffer.getvalue())


@pytest.mark.parametrize('options', [dict(), dict(progressive=True), dict(exif=b'Exif\0\0' + b'\xff\xc0' * 40)])
def test_size_in_the_header(options):
    buffer = io.BytesIO()
    Image.new('RGB', (37, 21)).save(buffer, 'JPEG', **options)
    data = buffer.getvalue()
    assert jpeg_size(data) == (21, 37)
    assert jpeg_size(data[:2] + b'\xff\xff\xff' + data[3:]) == (21, 37)  # fill bytes
    tables = b'\xff\xc4\x00\x13' + bytes(17)  # a Huffman table, whose marker looks like that of a frame
    assert jpeg_size(data[:2] + tables + data[2:]) == (21, 37)
    frame = max(data.rfind(b'\xff\xc0'), data.rfind(b'\xff\xc2'))
    assert all(jpeg_size(data[:end]) is None for end in range(frame + 9))


@pytest.mark.parametrize(
    ('min_edge', 'factor'), [(100, 1), (51, 1), (50, 2), (26, 2), (25, 4), (13, 4), (12, 8), (1, 8)]
)
def test_jpegs_are_reduced_while_the_shorter_side_keeps_min_edge(min_edge, factor):
    buffer = io.BytesIO()
    Image.new('RGB', (140, 100)).save(buffer, 'JPEG')
    assert decode(buffer.getvalue(), Decoding(min_edge=min_edge)).shape[0] == -(-100 // factor)


ODD_NAMES = [
    'with spaces.jpg',
    'ünïcode 图片.jpg',
    'UPPER.JPG',
    'comma,semicolon;.jpg',
    'quote\'".jpg',
    'line\nend.jpg',
]


def test_unusual_file_names(tmp_path):
    for name in ODD_NAMES:
        Image.new('RGB', (8, 8)).save(tmp_path / name, 'JPEG')
    dataset = ImageFolder(data_root=str(tmp_path), pipeline=[dict(type='bootmae_mm.LoadImage')])
    assert len(dataset) == len(ODD_NAMES)
    assert all(dataset[i]['img'].shape == (8, 8, 3) for i in range(len(dataset)))


def test_unreadable_images_are_listed_once(tmp_path):
    """A truncated file, an empty one, one that is not an image, a broken link, a name that is not UTF-8."""
    images = tmp_path / 'images'
    images.mkdir()
    for index in range(5):
        Image.new('RGB', (64, 64), (index, 0, 0)).save(images / f'good {index}.png')
    content = (images / 'good 0.png').read_bytes()
    (images / 'empty.jpg').write_bytes(b'')
    (images / 'not an image.png').write_bytes(b'hello')
    (images / 'broken link.png').symlink_to(tmp_path / 'nowhere.png')
    with open(os.path.join(os.fsencode(images), b'latin \xe4.png'), 'wb') as file:
        file.write(content[: len(content) // 2])
    out = tmp_path / 'work/unreadable.txt'
    for _ in range(2):  # a second run in the same folder
        dataset = ImageFolder(
            data_root=str(images),
            pipeline=[dict(type='bootmae_mm.LoadImage')],
            max_unreadable=0.5,
            unreadable_file=str(out),
        )
        assert len({dataset[i]['img_path'] for i in range(9)} | {dataset[i]['img_path'] for i in range(9)}) == 5
    lines = dict(line.split('\t') for line in out.read_text().splitlines())
    assert {os.path.basename(path) for path in lines} == {
        'empty.jpg',
        'not an image.png',
        'broken link.png',
        'latin \\udce4.png',
    }
    assert 'No such file' in lines[str(images / 'broken link.png')]
    assert len(out.read_text().splitlines()) == 4
    with pytest.raises(ConfigError, match='4 of 9 images cannot be read, more than max_unreadable=0.3 .*empty.jpg'):
        dataset.max_unreadable = 0.3
        for i in range(9):
            dataset[i]


@pytest.mark.skipif(not hasattr(os, 'setuid'), reason='needs users')
def test_a_file_without_permission(tmp_path):
    Image.new('RGB', (8, 8)).save(tmp_path / 'x.png')
    (tmp_path / 'x.png').chmod(0)
    imports, statement = 'from bootmae_mm.data import LoadImage', 'LoadImage()(dict(img_path=sys.argv[1]))'
    done = run_without_rights(imports, statement, tmp_path, tmp_path / 'x.png')
    assert done.returncode == 1
    assert 'UnreadableImageError' in done.stderr and 'Permission denied' in done.stderr.splitlines()[-1]


# More than 8 bits, other channels, unusual but valid files.


def deep_file(folder, values, name='deep.tif'):
    path = folder / name
    if path.suffix == '.tif':
        tifffile = pytest.importorskip('tifffile', reason='only one of the two lock files has it')
        tifffile.imwrite(path, values)
    else:
        Image.fromarray(values).save(path)
    return str(path)


@pytest.fixture
def logged(monkeypatch):
    """Lines that LoadImage logs."""
    lines = []
    monkeypatch.setattr('bootmae_mm.data.loading.print_log', lambda text, **_: lines.append(text))
    return lines


def test_twelve_bits_in_sixteen(tmp_path, logged):
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    path = deep_file(tmp_path, values, 'twelve.png')
    assert len(np.unique(load(path, value_range=12))) == 256
    assert not logged
    step = LoadImage()
    for _ in range(2):
        img = step(dict(img_path=path))['img']
    assert len(np.unique(img)) == 17  # in the range of the file's type
    assert len(logged) == 1
    assert 'only the values 0 to 4095 of 0 to 65535' in logged[0] and 'value_range' in logged[0]


@pytest.mark.parametrize('dtype', [np.int16, np.int32, np.uint32, np.float32])
def test_signed_wide_and_floating_point_values(tmp_path, dtype):
    low, high = (-1000, 2000) if dtype != np.uint32 else (0, 4e9)
    values = np.linspace(low, high, 256).astype(dtype).reshape(16, 16)
    path = deep_file(tmp_path, values)
    img = load(path, value_range=(low, high))
    assert img.shape == (16, 16, 3) and np.abs(img[:, :, 0].reshape(-1).astype(int) - np.arange(256)).max() <= 1
    assert img.min() == 0 and img.max() == 255
    with pytest.raises(ConfigError, match=r'deep.tif: \w+ pixels need value_range=\(low, high\)'):
        load(path)


@pytest.mark.parametrize('value', [(1, 1), (2, 1), 'ab', 0, 33, True, (), (1, 2, 33), (0, np.inf), (0, '1')])
def test_impossible_ranges(value):
    with pytest.raises(ConfigError, match='^value_range'):
        LoadImage(value_range=value)


def test_ranges_are_pairs_or_bits():
    for value in ((0, 4095), [0, 4095], 12):
        assert LoadImage(value_range=value).decoding.value_range == (0.0, 4095.0)
    assert LoadImage(value_range=32).decoding.value_range == (0.0, 2.0**32 - 1)


@pytest.mark.parametrize(
    ('channels', 'message'),
    [
        (0, 'must be greater than or equal to 1, but is 0'),
        (513, 'must be less than or equal to 512, but is 513'),
        ('3', "must be a valid integer, but is '3'"),
        (None, 'must be a valid integer, but is None'),
    ],
)
def test_impossible_channels(channels, message):
    with pytest.raises(ConfigError, match=f'channels {message}'):
        LoadImage(channels=channels)


def test_one_and_four_channels(tmp_path):
    rgba = np.random.RandomState(0).randint(0, 255, (6, 7, 4)).astype(np.uint8)
    Image.fromarray(rgba).save(tmp_path / 'four.png')
    assert np.array_equal(load(str(tmp_path / 'four.png'), channels=4), rgba)
    assert load(str(tmp_path / 'four.png'), channels=1).shape == (6, 7, 1)
    Image.fromarray(rgba[:, :, :3]).save(tmp_path / 'three.jpg')
    wanted = np.array(Image.open(tmp_path / 'three.jpg').convert('L'))
    assert np.array_equal(load(str(tmp_path / 'three.jpg'), channels=1)[:, :, 0], wanted)
    with pytest.raises(UnreadableImageError, match='the image has 3 channels, not 4'):
        load(str(tmp_path / 'three.jpg'), channels=4)


def test_png_with_a_long_text_or_profile(tmp_path):
    img = np.random.RandomState(0).randint(0, 255, (6, 7, 3)).astype(np.uint8)
    text = PngInfo()
    text.add_text('notes', 'x' * 3_000_000, zip=True)
    Image.fromarray(img).save(tmp_path / 'text.png', pnginfo=text)
    Image.fromarray(img).save(tmp_path / 'profile.png', icc_profile=b'x' * 3_000_000)
    for name in ('text.png', 'profile.png'):
        assert np.array_equal(load(str(tmp_path / name)), img)


def test_webp_with_a_broken_exif_block(tmp_path):
    img = np.full((6, 7, 3), 100, np.uint8)
    Image.fromarray(img).save(tmp_path / 'a.webp', lossless=True, exif=b'Exif\0\0II*\0\xff\xff\xff\xffgarbage')
    assert np.array_equal(load(str(tmp_path / 'a.webp')), img)
    Image.fromarray(img).save(tmp_path / 'b.webp', lossless=True, exif=b'nothing of the kind')
    assert np.array_equal(load(str(tmp_path / 'b.webp')), img)


def test_images_without_a_channel_axis_and_of_other_types_are_cropped():
    crop = RandomResizedCrop(scale=8)
    for img in (np.zeros((20, 30), np.uint8), np.full((20, 30, 5), 7, np.uint16)):
        done = PackImage()(crop(dict(img=img)))['inputs']
        assert done.shape == (1 if img.ndim == 2 else 5, 8, 8)
        assert done.dtype == (torch.uint8 if img.ndim == 2 else torch.float32)
    assert float(done.mean()) == 7


@pytest.mark.parametrize('kind', ['gray.png', 'rgb.png', 'rgba.png', 'gray.pgm'])
def test_twelve_bits_in_every_format(tmp_path, kind):
    """The range applies to colors too, and to files that state their own maximum."""
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    path = tmp_path / kind
    if kind == 'gray.pgm':
        path.write_bytes(b'P5\n64 64\n4095\n' + values.astype('>u2').tobytes())
    else:
        channels = dict(gray=1, rgb=3, rgba=4)[kind.split('.')[0]]
        assert cv2.imwrite(str(path), np.repeat(values[:, :, None], channels, axis=2))
    img = load(str(path), value_range=12)
    assert img.shape == (64, 64, 3) and len(np.unique(img)) == 256
    assert np.abs(img[:, :, 0].reshape(-1) - np.arange(4096) * 255 / 4095).max() <= 0.5


def test_colors_of_sixteen_bits_keep_their_order(tmp_path):
    assert cv2.imwrite(str(tmp_path / 'x.png'), np.full((4, 4, 3), (0, 25_700, 65_535), np.uint16))  # BGR
    assert load(str(tmp_path / 'x.png'))[0, 0].tolist() == [255, 100, 0]


def test_values_outside_of_the_range_are_logged(tmp_path, logged):
    path = deep_file(tmp_path, np.arange(30_000, 34_096, dtype=np.uint16).reshape(64, 64), 'x.png')
    assert (load(path, value_range=12) == 255).all()
    assert 'most values of an image lie outside of 0 to 4095' in logged[0] and len(logged) == 1


def test_a_range_needs_a_backend_with_deep_values():
    with pytest.raises(ConfigError, match="value_range.* needs backend 'auto' or 'pillow', but it is 'cv2'"):
        LoadImage(value_range=12, backend='cv2')
