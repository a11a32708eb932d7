"""Images with any number of channels and any type of values: TIFF, NumPy, DICOM."""

import io
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from bootmae_mm.data import ImageFolder, LoadImage, PackImage, RandomResizedCrop, ResizeEdge, collate
from bootmae_mm.data.decoding import Decoding, UnreadableImageError, decode
from bootmae_mm.registry import TRANSFORMS
from bootmae_mm.validation import ConfigError

pydicom = pytest.importorskip('pydicom', reason='pydicom is not installed')


def load(path, **options):
    return LoadImage(**options)(dict(img_path=str(path)))['img']


def random_values(channels, dtype=np.uint16, largest=4000, size=(6, 7)):
    return np.random.RandomState(0).randint(0, largest, (*size, channels)).astype(dtype)


def expected(values, low, high):
    return np.clip((values.astype(float) - low) * 255 / (high - low), 0, 255)


@pytest.mark.parametrize('layout', ['samples', 'planes', 'pages', 'deflate', 'lzw', 'big'])
def test_tiff_with_five_bands(tmp_path, layout):
    values = random_values(5)
    path = tmp_path / 'x.tif'
    if layout == 'pages':
        tifffile.imwrite(path, values.transpose(2, 0, 1), photometric='minisblack')
    elif layout == 'planes':
        tifffile.imwrite(path, values.transpose(2, 0, 1), photometric='minisblack', planarconfig='separate')
    else:
        options = {'deflate': dict(compression='zlib'), 'lzw': dict(compression='lzw'), 'big': dict(bigtiff=True)}
        tifffile.imwrite(path, values, photometric='minisblack', planarconfig='contig', **options.get(layout, {}))
    img = load(path, channels=5, value_range=12)
    assert img.dtype == np.uint8 and np.array_equal(img, expected(values, 0, 4095).round())
    assert np.array_equal(load(path, channels=2, bands=(4, 0), value_range=12), img[:, :, [4, 0]])
    if layout != 'pages':  # of which the first is read
        with pytest.raises(UnreadableImageError, match='the image has 5 channels, not 3; set channels=5, or choose'):
            load(path, value_range=12)
    with pytest.raises(UnreadableImageError, match=r'the image has 5 channels, so there is no band 5 \(from 0\)'):
        load(path, channels=1, bands=[5], value_range=12)


def test_deep_colors_of_tiff_are_not_cut_to_eight_bits(tmp_path):
    """Pillow reads such a file as 8 bits, the upper half of each value: 12-bit colors would be nearly black."""
    values = random_values(3)
    tifffile.imwrite(tmp_path / 'x.tif', values, photometric='rgb')
    assert np.asarray(Image.open(tmp_path / 'x.tif')).max() < 16
    assert np.array_equal(load(tmp_path / 'x.tif', value_range=12), expected(values, 0, 4095).round())
    with_alpha = np.concatenate([values, values[:, :, :1]], axis=2)
    tifffile.imwrite(tmp_path / 'y.tif', with_alpha, photometric='rgb', extrasamples=['unassalpha'])
    assert np.array_equal(load(tmp_path / 'y.tif', value_range=12), expected(values, 0, 4095).round())


def test_eight_bits_of_many_bands_are_kept(tmp_path):
    values = random_values(7, np.uint8, 256)
    tifffile.imwrite(tmp_path / 'x.tif', values, photometric='minisblack', planarconfig='contig')
    assert np.array_equal(load(tmp_path / 'x.tif', channels=7), values)
    Image.fromarray(values[:, :, :2], 'LA').save(tmp_path / 'x.png')
    assert np.array_equal(load(tmp_path / 'x.png', channels=2), values[:, :, :2])


@pytest.mark.parametrize('dtype', [np.int16, np.float32, np.float64, np.uint32])
def test_numpy_files(tmp_path, dtype):
    values = random_values(4, dtype, 900)
    np.save(tmp_path / 'last.npy', values)
    np.save(tmp_path / 'first.npy', values.transpose(2, 0, 1))
    np.save(tmp_path / 'gray.npy', values[:, :, 0])
    wanted = expected(values, -100, 1000).round()
    for name in ('last', 'first'):
        assert np.array_equal(load(tmp_path / f'{name}.npy', channels=4, value_range=(-100, 1000)), wanted)
    gray = load(tmp_path / 'gray.npy', value_range=(-100, 1000))
    assert np.array_equal(gray, np.repeat(wanted[:, :, :1], 3, axis=2))
    with pytest.raises(ConfigError, match=rf'{np.dtype(dtype)} pixels need value_range=\(low, high\) in LoadImage'):
        load(tmp_path / 'last.npy', channels=4)


def test_numpy_files_that_are_no_images(tmp_path):
    np.save(tmp_path / 'vector.npy', np.zeros(9))
    np.save(tmp_path / 'objects.npy', np.array([{}, {}], dtype=object), allow_pickle=True)
    (tmp_path / 'short.npy').write_bytes((tmp_path / 'vector.npy').read_bytes()[:100])
    np.save(tmp_path / 'many.npy', np.zeros((600, 601, 602), np.uint8)[:, :1, :].repeat(601, axis=1)[:601, :601])
    reasons = dict(vector=r'shape \(9,\) is not an image', objects='allow_pickle', short='', many='more than 512')
    for name, reason in reasons.items():
        with pytest.raises(UnreadableImageError, match=reason):
            load(tmp_path / f'{name}.npy')


def test_a_range_for_each_channel(tmp_path):
    values = random_values(2)
    np.save(tmp_path / 'x.npy', values)
    img = load(tmp_path / 'x.npy', channels=2, value_range=[(0, 1000), 12])
    assert np.array_equal(img[:, :, 0], expected(values[:, :, 0], 0, 1000).round())
    assert np.array_equal(img[:, :, 1], expected(values[:, :, 1], 0, 4095).round())
    with pytest.raises(ConfigError, match='value_range has 3 ranges, but the image 2 channels'):
        load(tmp_path / 'x.npy', channels=2, value_range=[12, 12, 12])
    for wrong in ([12, (5, 5)], [(0, 1), (0, float('nan'))], [(0, 1), 'x'], [(0, 1), (True, 2)]):
        with pytest.raises(ConfigError, match='value_range must be'):
            LoadImage(channels=2, value_range=wrong)


def test_float32_keeps_what_lies_between_two_levels(tmp_path):
    values = random_values(1, np.uint16, 65_000)[:, :, 0]
    Image.fromarray(values).save(tmp_path / 'x.png')
    img = load(tmp_path / 'x.png', channels=1, dtype='float32')
    assert img.dtype == np.float32 and np.abs(img[:, :, 0] - values * (255 / 65_535)).max() < 1e-4
    Image.fromarray(np.zeros((6, 7, 3), np.uint8)).save(tmp_path / 'x.jpg')  # 8 bits in the same batch
    samples = [
        PackImage()(RandomResizedCrop(scale=8)(dict(img=load(path, dtype='float32'))))
        for path in (tmp_path / 'x.png', tmp_path / 'x.jpg')
    ]
    assert collate(samples)['inputs'].shape == (2, 3, 8, 8)


def dicom(values, **tags):
    """A DICOM file as bytes."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = '1.2.840.10008.5.1.4.1.1.2'
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset('', {}, file_meta=meta, preamble=b'\0' * 128)
    file.Rows, file.Columns = values.shape[:2]
    file.SamplesPerPixel = 1 if values.ndim == 2 else 3
    file.PhotometricInterpretation = 'MONOCHROME2' if values.ndim == 2 else 'RGB'
    file.BitsAllocated = file.BitsStored = 8 * values.itemsize
    if values.ndim == 3:
        file.PlanarConfiguration = 0
    file.PixelRepresentation = int(values.dtype.kind == 'i')
    for name, value in tags.items():
        setattr(file, name, value)
    file.HighBit = file.BitsStored - 1
    file.PixelData = values.tobytes()
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_dicom_in_hounsfield_units():
    values = random_values(1, np.int16, 3000)[:, :, 0]
    data = dicom(values, RescaleSlope=2, RescaleIntercept=-1024)
    img = decode(data, Decoding(channels=1, value_range=(-1000, 2000)))
    assert np.array_equal(img[:, :, 0], expected(2 * values.astype(int) - 1024, -1000, 2000).round())
    with pytest.raises(ConfigError, match='int32 pixels need value_range'):
        decode(data)


def test_dicom_of_twelve_bits_is_scaled_by_the_bits_stored_and_white_is_white():
    values = random_values(1)[:, :, 0]
    img = decode(dicom(values, BitsStored=12), Decoding(channels=1))[:, :, 0]
    assert np.array_equal(img, expected(values, 0, 4095).round())
    inverted = decode(dicom(values, BitsStored=12, PhotometricInterpretation='MONOCHROME1'), Decoding(channels=1))
    assert np.array_equal(inverted[:, :, 0], (255 - expected(values, 0, 4095)).round())


def test_dicom_with_colors():
    values = random_values(3, np.uint8, 256)
    assert np.array_equal(decode(dicom(values)), values)


@pytest.mark.parametrize(('package', 'kind'), [('pydicom', 'a DICOM file'), ('tifffile', 'this TIFF file')])
def test_a_missing_package_ends_the_run_and_is_named(tmp_path, monkeypatch, package, kind):
    """Not counted as an unreadable image."""
    (tmp_path / 'images').mkdir()
    tifffile.imwrite(tmp_path / 'images/x.tif', random_values(5), photometric='minisblack', planarconfig='contig')
    if package == 'pydicom':
        (tmp_path / 'images/x.tif').write_bytes(dicom(random_values(1)[:, :, 0]))
    monkeypatch.setitem(sys.modules, package, None)
    data = ImageFolder(
        data_root=str(tmp_path / 'images'), pipeline=[dict(type='bootmae_mm.LoadImage', channels=5)], max_unreadable=1.0
    )
    with pytest.raises(ConfigError, match=rf"{kind} needs {package}: pip install 'bootmae_mm\[images\]'"):
        data[0]


def test_the_size_is_checked_before_the_pixels_are_read(tmp_path):
    tifffile.imwrite(
        tmp_path / 'x.tif', random_values(5, size=(60, 70)), photometric='minisblack', planarconfig='contig'
    )
    (tmp_path / 'x.dcm').write_bytes(dicom(random_values(1, size=(60, 70))[:, :, 0]))
    for name, channels in (('x.tif', 5), ('x.dcm', 1)):
        with pytest.raises(UnreadableImageError, match='60 x 70 pixels are more than max_pixels=4199 allows'):
            load(tmp_path / name, channels=channels, max_pixels=4199)


def test_the_old_name_of_the_step_works(tmp_path):
    Image.new('RGB', (5, 4), (1, 2, 3)).save(tmp_path / 'x.png')
    step = TRANSFORMS.build(dict(type='bootmae_mm.LoadRGB'))
    assert isinstance(step, LoadImage) and step(dict(img_path=str(tmp_path / 'x.png')))['img'][0, 0].tolist() == [
        1,
        2,
        3,
    ]


@pytest.mark.parametrize('channels', [1, 2, 3, 5])
def test_images_are_resized_for_tests_with_any_channels(channels):
    """As Pillow does it channel by channel, within a level."""
    img = random_values(channels, np.uint8, 256, (40, 60))
    done = ResizeEdge(scale=20, edge='short', backend='pillow', interpolation='bicubic')(dict(img=img))
    wanted = [
        np.asarray(Image.fromarray(np.ascontiguousarray(img[:, :, channel])).resize((30, 20), Image.Resampling.BICUBIC))
        for channel in range(channels)
    ]
    difference = np.abs(done['img'].astype(int) - np.stack(wanted, axis=-1))
    assert done['img'].shape == (20, 30, channels) and difference.max() <= (0 if channels in (1, 3) else 1)
    assert done['img_shape'] == (20, 30)
