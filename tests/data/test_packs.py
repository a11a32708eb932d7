"""Packs: images are read as they were packed; interrupted packing resumes, damage is found."""

import shutil
import zipfile

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from PIL import Image

from bootmae_mm.data import ImageArchives
from bootmae_mm.data.archives import Archives, find_archives
from bootmae_mm.data.pack_writer import PackOptions, pack, reduced
from bootmae_mm.data.transforms import resize
from bootmae_mm.validation import ConfigError, MissingFileError, parse
from tests.conftest import write_images

PIPELINE = [
    dict(type='bootmae_mm.LoadImage'),
    dict(type='bootmae_mm.RandomResizedCrop', scale=16, crop_ratio_range=(0.2, 1.0)),
    dict(type='bootmae_mm.RandomFlip', prob=0.5),
    dict(type='bootmae_mm.PackImage'),
]


@pytest.fixture
def images(tmp_path):
    """Seven pictures of 40 x 60 pixels, and one that is too small to be reduced."""
    root = write_images(tmp_path / 'images', 7)
    (root / 'größer als').mkdir()
    Image.fromarray(np.random.randint(0, 255, (12, 9, 3), np.uint8)).save(root / 'größer als/small one.png')
    return root, sorted(str(path.relative_to(root)) for path in root.rglob('*.*'))


def read_pack(folder):
    return ImageArchives(data_root=str(folder), pipeline=PIPELINE[:1])


def opened(path):
    return np.asarray(Image.open(path).convert('RGB'))


def test_raw_pixels_are_those_of_the_reduced_images(images, tmp_path):
    root, names = images
    counts = []
    result = pack(root, names, tmp_path / 'pack', PackOptions(edge=20, images_per_archive=3), done=counts.append)
    assert result['images'] == 8 and result['unreadable'] == 0 and counts == [3, 3, 2]
    found = read_pack(tmp_path / 'pack')
    for index, name in enumerate(names):
        assert found.archives.name(index) == f'{name}.npy'
        original = opened(root / name)
        wanted = original if 'small' in name else resize(original, (20, 30))
        assert np.array_equal(found[index]['img'], wanted)
    # Any program can read the archives, and their sizes and checksums are right.
    archives = sorted((tmp_path / 'pack').glob('*.zip'))
    assert len(archives) == 3
    for archive in archives:
        with zipfile.ZipFile(archive) as content:
            assert content.testzip() is None
    with zipfile.ZipFile(archives[0]) as content, content.open(f'{names[0]}.npy') as file:
        assert np.array_equal(np.load(file), found[0]['img'])
    assert found.get_data_info(0)['img'].base is not None and not found.get_data_info(0)['img'].flags.owndata  # no copy


def test_jpeg_takes_less_space_and_looks_the_same(images, tmp_path):
    root, names = images
    pack(root, names, tmp_path / 'pack', PackOptions(edge=20, format='jpeg'))
    dataset = read_pack(tmp_path / 'pack')
    for index, name in enumerate(names):
        difference = np.abs(dataset[index]['img'].astype(int) - reduced(opened(root / name), 20)).mean()
        assert difference < (6 if 'small' in name else 3)  # the small one is noise


def test_an_interrupted_pack_resumes(images, tmp_path):
    root, names = images
    options = PackOptions(edge=20, images_per_archive=3)
    pack(root, names, tmp_path / 'uninterrupted', options)

    def stop(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(root, names, tmp_path / 'pack', options, done=stop)
    first = tmp_path / 'pack/images-00000.zip'
    (tmp_path / 'pack/images-00001.part').write_bytes(b'half of an archive')
    time = first.stat().st_mtime_ns
    pack(root, names, tmp_path / 'pack', options, workers=2)
    assert first.stat().st_mtime_ns == time
    files = sorted(path.name for path in (tmp_path / 'uninterrupted').iterdir())
    assert sorted(path.name for path in (tmp_path / 'pack').iterdir()) == files
    for name in files:
        if name.endswith('.zip'):
            assert (tmp_path / 'pack' / name).read_bytes() == (tmp_path / 'uninterrupted' / name).read_bytes()


def test_damage_is_found(images, tmp_path, run_tool):
    root, names = images
    pack(root, names, tmp_path / 'pack', PackOptions(edge=20))
    status, out, _ = run_tool('pack_dataset.py', '--check', tmp_path / 'pack')
    assert status == 0 and '8 images are intact' in out
    archive = tmp_path / 'pack/images-00000.zip'
    start = int(read_pack(tmp_path / 'pack').archives.table[3, 1])
    content = bytearray(archive.read_bytes())
    content[start + 500] ^= 1
    archive.write_bytes(content)
    status, _, message = run_tool('pack_dataset.py', '--check', tmp_path / 'pack')
    assert status == 1 and f'1 of 8 images are damaged: {archive}/{names[3]}.npy' in message
    dataset = ImageArchives(data_root=str(tmp_path / 'pack'), pipeline=PIPELINE, verify=True)
    assert dataset[2]['inputs'].shape == (3, 16, 16)
    with pytest.raises(ConfigError, match=f'{names[3]}.*checksum is wrong'):
        dataset[3]
    archive.write_bytes(content[:-10])
    with pytest.raises(ConfigError, match='images-00000.zip is neither a ZIP file nor .* it may be cut off'):
        read_pack(tmp_path / 'pack')


def test_an_archive_that_changes_during_a_run(images, tmp_path):
    """Such as one that is copied again: its last image is counted as unreadable, and the next one is taken."""
    root, names = images
    pack(root, names, tmp_path / 'pack', PackOptions(edge=20))
    dataset = ImageArchives(data_root=str(tmp_path / 'pack'), pipeline=PIPELINE[:1], max_unreadable=0.2)
    archive = tmp_path / 'pack/images-00000.zip'
    archive.write_bytes(archive.read_bytes()[: int(dataset.archives.table[-1, 1]) + 200])
    assert np.array_equal(dataset[7]['img'], dataset[0]['img'])


def test_the_loader_reads_a_pack_as_it_reads_a_folder(images, tmp_path):
    root, names = images
    pack(root, names, tmp_path / 'pack', PackOptions(edge=1000))
    init_default_scope('mmpretrain')

    def batches(workers, **dataset):
        masking = dict(grid_size=4, min_block=2, max_block=6)
        return list(
            Runner.build_dataloader(
                dict(
                    batch_size=4,
                    num_workers=workers,
                    sampler=dict(type='bootmae_mm.SeededSampler', shuffle=True, seed=3),
                    collate_fn=dict(type='bootmae_mm.collate'),
                    dataset=dict(pipeline=PIPELINE, masking=masking, **dataset),
                )
            )
        )

    folder = batches(0, type='bootmae_mm.ImageFolder', data_root=str(root))
    for workers in (0, 2):
        packed = batches(workers, type='bootmae_mm.ImageArchives', data_root=str(tmp_path / 'pack'))
        assert len(packed) == len(folder) == 2
        for a, b in zip(folder, packed, strict=True):
            assert all(torch.equal(a[key], b[key]) for key in ('inputs', 'flip', 'ids_keep', 'ids_mask'))
    assert len(ImageArchives(data_root=str(tmp_path), folder='pack', max_images=3)) == 3


def test_unreadable_images_are_left_out_and_named(images, tmp_path):
    root, names = images
    (root / 'part0/broken.png').write_bytes(b'no picture')
    names = sorted([*names, 'part0/broken.png'])
    with pytest.raises(ConfigError, match='1 of 9 images cannot be read, more than max_unreadable=0.01'):
        pack(root, names, tmp_path / 'pack', PackOptions(edge=20))
    result = pack(root, names, tmp_path / 'pack', PackOptions(edge=20), max_unreadable=0.2)
    assert result['images'] == 8 and result['unreadable'] == 1
    assert (tmp_path / 'pack/unreadable.txt').read_text() == 'part0/broken.png\n'
    assert read_pack(tmp_path / 'pack').archives.name(1) == f'{names[2]}.npy'


def test_refused_folders_and_options(images, tmp_path, monkeypatch, run_tool):
    root, names = images
    pack(root, names, tmp_path / 'pack', PackOptions(edge=20))
    with pytest.raises(ConfigError, match='pack of other images or options'):
        pack(root, names, tmp_path / 'pack', PackOptions(edge=21))
    with pytest.raises(ConfigError, match='pack of other images or options'):
        pack(root, names[1:], tmp_path / 'pack', PackOptions(edge=20))
    with pytest.raises(ConfigError, match='holds something else'):
        pack(root, names, root, PackOptions(edge=20))
    with pytest.raises(MissingFileError, match='no archive in .*images: no file ends in .tar or .zip'):
        Archives(find_archives(str(root)))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr('shutil.disk_usage', lambda path: usage._replace(free=1000))
    status, _, message = run_tool('pack_dataset.py', root, tmp_path / 'other')
    assert status == 1 and 'needs about' in message and 'GB are free' in message


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(edge=0), '^edge must be greater than or equal to 1, but is 0$'),
        (dict(quality=100), '^quality must be less than or equal to 95, but is 100$'),
        (dict(quality=0), '^quality must be greater than or equal to 1, but is 0$'),
        (dict(format='png'), "^format must be 'raw' or 'jpeg', but is 'png'$"),
        (dict(images_per_archive=0), '^images_per_archive must be greater than or equal to 1, but is 0$'),
        (dict(size=256), 'unknown option.*size.*valid options: edge, format, quality, images_per_archive'),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ConfigError, match=message):
        parse(PackOptions, options, '')


def test_default_options():
    assert parse(PackOptions, {}, '').model_dump() == dict(edge=256, format='raw', quality=95, images_per_archive=2000)


def test_from_the_command_line(images, tmp_path, run_tool):
    root, names = images
    status, out, message = run_tool('pack_dataset.py', root, tmp_path / 'pack', '--edge', 24, '--format', 'jpeg')
    assert status == 0, message
    assert '8 images' in out and '0 could not be read' in out and len(read_pack(tmp_path / 'pack')) == 8
    status, _, message = run_tool('pack_dataset.py', root)
    assert status == 2


def test_a_name_that_is_not_in_utf8_is_refused(images, tmp_path):
    with pytest.raises(ConfigError, match=r"'\\udce4.png'.*the name of the file is not in UTF-8"):
        pack(images, ['\udce4.png'], tmp_path / 'out', PackOptions())
