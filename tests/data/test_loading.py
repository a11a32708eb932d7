import io

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from PIL import Image

from bootmae_mm.data import Digits, ImageFolder, LoadRGB, PackImage, RandomShift, SeededSampler, collate
from bootmae_mm.data.samplers import SeededIndex
from bootmae_mm.data.transforms import UnreadableImageError

PIPELINE = [
    dict(type='bootmae_mm.LoadRGB'),
    dict(type='RandomResizedCrop', scale=(32, 48), crop_ratio_range=(0.2, 1.0), backend='pillow'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='bootmae_mm.PackImage'),
]
MASKING = dict(grid_size=(4, 6), min_block=2, max_block=6)


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmpretrain')


def loader(folder, workers, **options):
    return Runner.build_dataloader(
        dict(
            batch_size=4,
            num_workers=workers,
            sampler=dict(type='bootmae_mm.SeededSampler', shuffle=True, seed=3),
            collate_fn=dict(type='bootmae_mm.collate'),
            dataset=dict(
                type='bootmae_mm.ImageFolder', data_root=str(folder), pipeline=PIPELINE, masking=MASKING, **options
            ),
        )
    )


def test_batches_do_not_depend_on_workers_but_on_the_epoch(image_folder):
    alone, helped = loader(image_folder, 0), loader(image_folder, 2)
    epochs = []
    for epoch in range(2):
        alone.sampler.set_epoch(epoch)
        helped.sampler.set_epoch(epoch)
        batches = list(alone)
        for a, b in zip(batches, helped, strict=True):
            assert a.keys() == b.keys() == {'inputs', 'ids_keep', 'ids_mask'}
            assert all(torch.equal(a[key], b[key]) for key in a)
        epochs.append(batches)
    assert not torch.equal(epochs[0][0]['ids_mask'], epochs[1][0]['ids_mask'])
    assert epochs[0][0]['inputs'].dtype == torch.uint8
    assert epochs[0][0]['inputs'].shape == (4, 3, 32, 48)
    assert epochs[0][0]['ids_keep'].shape == (4, 6)
    together = torch.cat([epochs[0][0]['ids_keep'], epochs[0][0]['ids_mask']], dim=1)
    assert torch.equal(together.sort(dim=1).values, torch.arange(24).expand(4, -1))


def test_seeds_do_not_depend_on_the_number_of_processes():
    dataset = list(range(8))
    alone = SeededSampler(dataset, shuffle=True, seed=1)
    wanted = {(int(index), index.seed) for index in alone}
    found = set()
    for rank in range(2):
        part = SeededSampler(dataset, shuffle=True, seed=1)
        part.rank, part.world_size, part.num_samples, part.total_size = rank, 2, 4, 8
        found |= {(int(index), index.seed) for index in part}
    assert found == wanted and len({seed for _, seed in wanted}) == 8


def test_roll_of_a_batch_brings_blocked_patches_to_the_front():
    samples = [
        dict(inputs=torch.zeros(3, 2, 2), mask_order=np.arange(6) + 0, mask_roll=roll, num_masked=4) for roll in (2, 0)
    ]
    batch = collate(samples)  # both by the draw of the first
    assert batch['ids_keep'].tolist() == [[4, 5], [4, 5]]
    assert batch['ids_mask'].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]


def test_collate_refuses_images_of_different_sizes():
    with pytest.raises(ValueError, match='different shapes'):
        collate([dict(inputs=torch.zeros(3, 2, 2)), dict(inputs=torch.zeros(3, 2, 4))])


def test_pack_passes_chosen_keys_on():
    packed = PackImage(keys=('gt_label',))(dict(img=np.zeros((2, 4, 3), np.uint8), gt_label=7, other=1))
    assert packed['inputs'].shape == (3, 2, 4) and packed['gt_label'] == 7 and 'other' not in packed
    assert collate([packed, packed])['gt_label'] == [7, 7]


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
    img = LoadRGB()(dict(img_path=str(path)))['img']
    assert img.shape == (4, 5, 3) and img.dtype == np.uint8
    if wanted:
        assert np.abs(img.astype(int) - wanted).max() <= 2


def test_orientation_tag_is_followed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new('RGB', (6, 4)).save(tmp_path / 'x.jpg', exif=exif)
    assert LoadRGB()(dict(img_path=str(tmp_path / 'x.jpg')))['img'].shape == (6, 4, 3)


def test_small_images_are_named_once(tmp_path, monkeypatch):
    Image.new('RGB', (6, 4)).save(tmp_path / 'x.png')
    said = []
    monkeypatch.setattr('bootmae_mm.data.transforms.print_log', lambda text, **_: said.append(text))
    load = LoadRGB(crop_size=8)
    load(dict(img_path=str(tmp_path / 'x.png')))
    load(dict(img_path=str(tmp_path / 'x.png')))
    assert len(said) == 1 and 'x.png is 4x6, smaller than the crop of 8x8' in said[0]


def test_unknown_decoder_is_no_broken_image():
    with pytest.raises(ValueError, match='backend'):
        LoadRGB(backend='pilow')


def test_shift_moves_by_every_step_and_repeats_the_edge():
    img = np.arange(3 * 4 * 3, dtype=np.uint8).reshape(3, 4, 3)
    shift = RandomShift(most=1)
    seen = set()
    for _ in range(200):
        moved = shift(dict(img=img))['img']
        assert moved.shape == img.shape
        for row in (-1, 0, 1):
            for column in (-1, 0, 1):
                rows, columns = np.clip(np.arange(3) + row, 0, 2), np.clip(np.arange(4) + column, 0, 3)
                if np.array_equal(moved, img[rows][:, columns]):
                    seen.add((row, column))
    assert len(seen) == 9


def broken(folder, names):
    for name in names:
        buffer = io.BytesIO()
        Image.new('RGB', (64, 64)).save(buffer, 'jpeg')
        (folder / name).write_bytes(buffer.getvalue()[:200])


def test_unreadable_images_are_skipped_up_to_a_share(image_folder):
    broken(image_folder, ['a broken.jpg'])
    data = loader(image_folder, 2, max_unreadable=0.2)
    batches = list(data)
    assert sum(len(batch['inputs']) for batch in batches) == 9
    assert int(data.dataset._unreadable.sum()) == 1  # counted across workers


def test_too_many_unreadable_images_stop_the_run_and_are_named(image_folder):
    broken(image_folder, ['bad1.jpg', 'bad2.jpg', 'bad3.jpg'])
    with pytest.raises(ValueError, match='3 of 11 images cannot be read, more than max_unreadable=0.2.*bad1.jpg'):
        list(loader(image_folder, 0, max_unreadable=0.2))
    with pytest.raises(ValueError, match='cannot be read, more than max_unreadable'):
        list(loader(image_folder, 1, max_unreadable=0.2))


def test_unreadable_error_survives_pickling():
    import pickle

    error = pickle.loads(pickle.dumps(UnreadableImageError('a.jpg', 'truncated')))
    assert str(error) == 'a.jpg: truncated'


def test_folder_finds_images_at_any_depth_and_a_list_restricts_them(image_folder, tmp_path):
    (image_folder / 'notes.txt').write_text('x')
    assert len(ImageFolder(data_root=str(image_folder), pipeline=[])) == 8
    assert len(ImageFolder(data_root=str(image_folder), folder='part1', pipeline=[])) == 4
    assert len(ImageFolder(data_root=str(image_folder), pipeline=[], max_images=3)) == 3
    (tmp_path / 'list.txt').write_text('part0/image 2.png\npart1/image 3.png 17\n')
    listed = ImageFolder(data_root=str(image_folder), ann_file=str(tmp_path / 'list.txt'), pipeline=[])
    assert [listed.get_data_info(i)['img_path'] for i in range(len(listed))] == [
        str(image_folder / 'part0/image 2.png'),
        str(image_folder / 'part1/image 3.png'),
    ]


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.*data_root'):
        ImageFolder(data_root=str(tmp_path / 'nowhere'), pipeline=[])
    with pytest.raises(ValueError, match='no image in'):
        ImageFolder(data_root=str(tmp_path), pipeline=[])
    with pytest.raises(FileNotFoundError, match='no list'):
        ImageFolder(data_root=str(tmp_path), ann_file='nolist.txt', pipeline=[])


def test_digits():
    train, test = Digits(split='train', pipeline=[]), Digits(split='test', pipeline=[])
    assert len(train) == 1297 and len(test) == 500
    images = {train.get_data_info(i)['img'].tobytes() for i in range(1297)}
    assert not images & {test.get_data_info(i)['img'].tobytes() for i in range(500)}
    assert train.get_data_info(0)['img'].shape == (16, 16, 3)
    assert sorted({test.get_data_info(i)['gt_label'] for i in range(500)}) == list(range(10))
    with pytest.raises(ValueError, match='split'):
        Digits(split='val', pipeline=[])


def test_seeded_index_is_an_int_that_survives_pickling():
    import pickle

    index = pickle.loads(pickle.dumps(SeededIndex(5, 42)))
    assert index == 5 and index.seed == 42
