"""From a folder of images to batches: datasets, sampler, loading, crops, flips, collate."""

import io
import pickle
import re

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.datasets.transforms import RandomResizedCrop as MMPretrainRandomResizedCrop
from PIL import Image
from sklearn.datasets import load_sample_images

from bootmae_mm.data import (
    Digits,
    ImageFolder,
    LoadImage,
    MapLabels,
    MaskSampling,
    PackImage,
    RandomErasing,
    RandomFlip,
    RandomResizedCrop,
    RandomShift,
    Repeat,
    SeededSampler,
    collate,
)
from bootmae_mm.data.decoding import UnreadableImageError, decode
from bootmae_mm.data.samplers import SeededIndex
from bootmae_mm.models import BootMAEDataPreprocessor
from bootmae_mm.validation import ConfigError, MissingFileError

PIPELINE = [
    dict(type='bootmae_mm.LoadImage'),
    dict(type='bootmae_mm.RandomResizedCrop', scale=(32, 48), crop_ratio_range=(0.2, 1.0)),
    dict(type='bootmae_mm.RandomFlip', prob=0.5),
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


def test_batches_depend_on_the_epoch_but_not_on_workers(image_folder):
    alone, helped = loader(image_folder, 0), loader(image_folder, 2)
    epochs = []
    for epoch in range(2):
        alone.sampler.set_epoch(epoch)
        helped.sampler.set_epoch(epoch)
        batches = list(alone)
        for a, b in zip(batches, helped, strict=True):
            assert a.keys() == b.keys() == {'inputs', 'ids_keep', 'ids_mask', 'flip'}
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


def test_masks_of_a_batch_are_those_of_its_seeds():
    masking = MaskSampling(**MASKING)
    batch = collate([dict(inputs=torch.zeros(3, 2, 2), mask_seed=seed, masking=masking) for seed in (5, 9)])
    assert all((batch[key].numpy() == ids).all() for key, ids in zip(('ids_keep', 'ids_mask'), masking.batch([5, 9])))
    assert batch.keys() == {'inputs', 'ids_keep', 'ids_mask'}


def test_collate_refuses_images_of_different_sizes():
    with pytest.raises(ConfigError, match='different shapes'):
        collate([dict(inputs=torch.zeros(3, 2, 2)), dict(inputs=torch.zeros(3, 2, 4))])


def test_pack_passes_chosen_keys_on():
    packed = PackImage(keys=('gt_label',))(dict(img=np.zeros((2, 4, 3), np.uint8), gt_label=7, other=1))
    assert packed['inputs'].shape == (3, 2, 4) and packed['gt_label'] == 7 and 'other' not in packed
    assert collate([packed, packed])['gt_label'] == [7, 7]


def test_small_images_are_logged_once(tmp_path, monkeypatch):
    Image.new('RGB', (6, 4)).save(tmp_path / 'x.png')
    logged = []
    monkeypatch.setattr('bootmae_mm.data.loading.print_log', lambda text, **_: logged.append(text))
    load = LoadImage(crop_size=8)
    load(dict(img_path=str(tmp_path / 'x.png')))
    load(dict(img_path=str(tmp_path / 'x.png')))
    assert len(logged) == 1 and 'x.png is 4x6, smaller than the crop of 8x8' in logged[0]


def test_an_unknown_decoder_is_refused_before_any_image():
    with pytest.raises(ConfigError, match="^backend must be 'auto', 'pillow', 'cv2' or 'turbojpeg', but is 'pilow'$"):
        LoadImage(backend='pilow')


def test_shift_moves_by_every_step_and_repeats_the_border():
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
    """Write JPEG files whose end is missing."""
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
    with pytest.raises(ConfigError, match='3 of 11 images cannot be read, more than max_unreadable=0.2.*bad1.jpg'):
        list(loader(image_folder, 0, max_unreadable=0.2))
    with pytest.raises(ConfigError, match='cannot be read, more than max_unreadable'):
        list(loader(image_folder, 1, max_unreadable=0.2))


@pytest.mark.parametrize('writable', [True, False])
def test_training_continues_if_unreadable_images_cannot_be_listed(image_folder, tmp_path, writable):
    """The list is a folder, or a full disk has cut its last line inside a character."""
    broken(image_folder, ['a broken.jpg'])
    out = tmp_path / 'unreadable.txt'
    out.write_bytes(b'caf\xc3') if writable else out.mkdir()
    batches = list(loader(image_folder, 0, max_unreadable=0.2, unreadable_file=str(out)))
    assert sum(len(batch['inputs']) for batch in batches) == 9
    assert not writable or b'a broken.jpg' in out.read_bytes()


def test_unreadable_error_can_be_pickled():
    error = pickle.loads(pickle.dumps(UnreadableImageError('a.jpg', 'truncated')))
    assert str(error) == 'a.jpg: truncated'


def test_images_are_found_at_any_depth_or_taken_from_a_list(image_folder, tmp_path):
    (image_folder / 'notes.txt').write_text('x')
    assert len(ImageFolder(data_root=str(image_folder), pipeline=[])) == 8
    assert len(ImageFolder(data_root=str(image_folder), folder='part1', pipeline=[])) == 4
    assert len(ImageFolder(data_root=str(image_folder), pipeline=[], max_images=3)) == 3
    (tmp_path / 'list.txt').write_text('part0/image 2.png\n\n  \npart1/image 3.png 17\n\n')
    listed = ImageFolder(data_root=str(image_folder), ann_file=str(tmp_path / 'list.txt'), pipeline=[])
    assert [listed.get_data_info(i)['img_path'] for i in range(len(listed))] == [
        str(image_folder / 'part0/image 2.png'),
        str(image_folder / 'part1/image 3.png'),
    ]


@pytest.mark.parametrize('line', ['../secret.png', '/etc/secret.png', 'part0/../../secret.png 3'])
def test_a_list_does_not_lead_out_of_its_folder(tmp_path, image_folder, line):
    (tmp_path / 'list.txt').write_text(f'part0/image 2.png\npart0/../..hidden.png\n{line}\n')
    with pytest.raises(ConfigError, match=f'1 of the paths in .* such as .*{re.escape(line.split(" ")[0])}'):
        ImageFolder(data_root=str(image_folder), ann_file=str(tmp_path / 'list.txt'), pipeline=[])


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(MissingFileError, match='nowhere.*data_root'):
        ImageFolder(data_root=str(tmp_path / 'nowhere'), pipeline=[])
    with pytest.raises(ConfigError, match='no image in'):
        ImageFolder(data_root=str(tmp_path), pipeline=[])
    with pytest.raises(MissingFileError, match='no list'):
        ImageFolder(data_root=str(tmp_path), ann_file='nolist.txt', pipeline=[])


def test_digits():
    train, test = Digits(split='train', pipeline=[]), Digits(split='test', pipeline=[])
    assert len(train) == 1297 and len(test) == 500
    images = {train.get_data_info(i)['img'].tobytes() for i in range(1297)}
    assert not images & {test.get_data_info(i)['img'].tobytes() for i in range(500)}
    assert train.get_data_info(0)['img'].shape == (16, 16, 3)
    assert sorted({test.get_data_info(i)['gt_label'] for i in range(500)}) == list(range(10))
    with pytest.raises(ConfigError, match="^split must be 'train' or 'test', but is 'val'$"):
        Digits(split='val', pipeline=[])
    assert Digits(split='test', img_size=24, pipeline=[]).get_data_info(0)['img'].shape == (24, 24, 3)


def test_seeded_index_is_an_int_and_can_be_pickled():
    index = pickle.loads(pickle.dumps(SeededIndex(5, 42)))
    assert index == 5 and index.seed == 42


def photographs(folder):
    """scikit-learn's two photographs (427 x 640 pixels) as JPEG files of two qualities."""
    paths = []
    for number, img in enumerate(load_sample_images().images):
        for quality, subsampling in ((90, '4:2:0'), (75, '4:4:4')):
            paths.append(folder / f'{number}_{quality}.jpg')
            Image.fromarray(img).save(paths[-1], quality=quality, subsampling=subsampling)
    return paths


def test_jpegs_have_the_pixels_of_pillow(tmp_path):
    paths = photographs(tmp_path)
    first = Image.open(paths[0])
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        paths.append(tmp_path / f'rotated_{orientation}.jpg')
        first.save(paths[-1], exif=exif)
    for mode in ('L', 'CMYK'):
        paths.append(tmp_path / f'{mode}.jpg')
        first.convert(mode).save(paths[-1])
    paths.append(tmp_path / 'progressive.jpg')
    first.save(paths[-1], progressive=True)
    for path in paths:
        fast, exact = (LoadImage(backend=backend)(dict(img_path=str(path)))['img'] for backend in ('auto', 'pillow'))
        assert fast.shape == exact.shape, path
        most = 1 if path.stem == 'CMYK' else 0  # black is mixed in with another rounding
        assert np.abs(fast.astype(int) - exact).max() <= most, path


def test_a_truncated_jpeg_is_not_filled_with_gray(tmp_path):
    path = photographs(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(UnreadableImageError, match='0_90.jpg'):
        LoadImage()(dict(img_path=str(path)))


def test_large_jpegs_are_decoded_at_a_fraction(tmp_path):
    """At the smallest fraction that keeps min_edge, with the pixels of Pillow's draft mode; rotated ones too."""
    img = Image.fromarray(load_sample_images().images[0])  # 427 x 640
    exif = Image.Exif()
    exif[0x0112] = 6
    img.save(tmp_path / 'plain.jpg')
    img.save(tmp_path / 'rotated.jpg', exif=exif)
    for min_edge, factor in ((428, 1), (214, 1), (213, 2), (107, 2), (106, 4), (54, 4), (53, 8), (1, 8)):
        found = LoadImage(min_edge=min_edge)(dict(img_path=str(tmp_path / 'plain.jpg')))
        with Image.open(tmp_path / 'plain.jpg') as wanted:
            wanted.draft('RGB', (640 // factor, 427 // factor))
            np.testing.assert_array_equal(found['img'], np.asarray(wanted))
        assert found['img_shape'] == (-(-427 // factor), 640 // factor)
        rotated = LoadImage(min_edge=min_edge)(dict(img_path=str(tmp_path / 'rotated.jpg')))
        np.testing.assert_array_equal(rotated['img'], np.rot90(found['img'], -1))
    img.save(tmp_path / 'other.png')
    assert LoadImage(min_edge=50)(dict(img_path=str(tmp_path / 'other.png')))['img_shape'] == (427, 640)


def test_several_samples_of_one_decoded_image(image_folder, monkeypatch):
    pipeline = [PIPELINE[0], dict(type='bootmae_mm.Repeat', times=3, transforms=PIPELINE[1:])]
    decoded = []
    monkeypatch.setattr('bootmae_mm.data.loading.decode', lambda *arguments: decoded.append(0) or decode(*arguments))
    plain = ImageFolder(data_root=str(image_folder), pipeline=PIPELINE, masking=MASKING)
    several = ImageFolder(data_root=str(image_folder), pipeline=pipeline, masking=dict(MASKING, per_image=2))
    samples = [several[SeededIndex(i, i)] for i in range(2)]
    assert len(decoded) == 2
    batch = collate(samples)
    assert batch['inputs'].shape == (6, 3, 32, 48) and batch['flip'].shape == (6,)
    assert batch['ids_mask'].shape == (12, 18)
    # The first crop is that of a single sample; the others differ.
    single = collate([plain[SeededIndex(i, i)] for i in range(2)])
    torch.testing.assert_close(batch['inputs'][::3], single['inputs'])
    assert (batch['inputs'][1].float() - batch['inputs'][0].float()).abs().mean() > 1
    assert len({sample['mask_seed'] for parts in samples for sample in parts}) == 6


def test_crops_are_those_of_mmpretrain_resized_like_pillow(tmp_path):
    options = dict(scale=(224, 192), crop_ratio_range=(0.2, 1.0))
    exact = MMPretrainRandomResizedCrop(backend='pillow', interpolation='bicubic', **options)
    fast = RandomResizedCrop(**options)
    differences = []
    for seed, path in enumerate(photographs(tmp_path) * 5):
        results = LoadImage(backend='pillow')(dict(img_path=str(path)))
        pictures, draws = [], set()
        for transform in (exact, fast, RandomResizedCrop(backend='pillow', **options)):
            np.random.seed(seed)
            pictures.append(transform(dict(results))['img'].astype(int))
            draws.add(np.random.random())
        assert len(draws) == 1  # all drew the same number of random numbers
        assert pictures[1].shape == (224, 192, 3) and (pictures[0] == pictures[2]).all()
        differences.append(np.abs(pictures[0] - pictures[1]).mean())
    assert max(differences) < 0.02  # of 255; another crop would differ by tens


def test_images_smaller_than_the_crop_are_enlarged():
    img = np.random.randint(0, 255, (9, 7, 3), np.uint8)
    assert RandomResizedCrop(scale=16)(dict(img=img))['img'].shape == (16, 16, 3)
    assert RandomResizedCrop(scale=16)(dict(img=img[:1, :1]))['img'].shape == (16, 16, 3)


def test_flips_are_done_by_the_preprocessor():
    np.random.seed(0)
    samples = []
    for _ in range(200):
        results = RandomFlip(prob=0.25)(dict(img=np.random.randint(0, 255, (4, 6, 3), np.uint8)))
        samples.append(PackImage()(results))
    batch = collate(samples)
    assert batch['flip'].dtype == torch.bool and 0.15 < batch['flip'].float().mean() < 0.35
    inputs, flip = batch['inputs'].clone(), batch['flip'].clone()
    found = BootMAEDataPreprocessor(mean=[0.0] * 3, std=[1.0] * 3)(batch)
    assert found.keys() == {'inputs'}
    for image, flipped, result in zip(inputs, flip, found['inputs'], strict=True):
        assert torch.equal(result, (image.flip(2) if flipped else image).float())


def test_flips_of_mmcv_are_not_done_twice():
    results = dict(img=np.zeros((2, 2, 3), np.uint8), flip=True, flip_direction='horizontal')
    assert 'flip' not in PackImage()(results)
    assert 'flip' not in PackImage()(dict(results, flip=False, flip_direction=None))


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: RandomResizedCrop(scale=4, backend='magick'), "backend must be 'torch', 'pillow' or 'cv2', but is"),
        (lambda: RandomResizedCrop(scale=4, interpolation='lanczos'), "interpolation must be 'bicubic' or 'bilinear'"),
        (lambda: RandomResizedCrop(scale=0), 'scale.0 must be greater than or equal to 1, but is 0'),
        (lambda: RandomResizedCrop(scale=(4, -1)), 'scale.1 must be greater than or equal to 1, but is -1'),
        (lambda: RandomResizedCrop(scale=4, retry=1), 'retry must be a valid boolean, but is 1'),
        (lambda: RandomResizedCrop(scale=4, crop_ratio_range=(0.5, 0.2)), r'crop_ratio_range must be \(min, max\)'),
        (lambda: RandomResizedCrop(scale=4, crop_ratio_range=(0, 1)), 'crop_ratio_range.0 must be greater than 0'),
        (lambda: RandomResizedCrop(scale=4, aspect_ratio_range=(2, 1)), r'aspect_ratio_range must be \(min, max\)'),
        (lambda: RandomResizedCrop(scale=4, max_attempts=0), 'max_attempts must be greater than or equal to 1'),
        (lambda: RandomFlip(prob=2), 'prob must be less than or equal to 1, but is 2'),
        (lambda: RandomShift(most=-1), 'most must be greater than or equal to 0, but is -1'),
        (lambda: Repeat(times=0, transforms=[]), 'times must be greater than or equal to 1, but is 0'),
        (lambda: MapLabels(mapping={255: 256}), 'mapping.255 must be less than or equal to 255, but is 256'),
        (lambda: MapLabels(mapping={-1: 2}), 'mapping.-1.* must be greater than or equal to 0, but is -1'),
        (lambda: LoadImage(crop_size=0), 'crop_size.0 must be greater than or equal to 1, but is 0'),
        (lambda: LoadImage(min_edge=0), 'min_edge must be greater than or equal to 1, but is 0'),
        (lambda: LoadImage(min_edge=5, backend='pillow'), "min_edge needs backend 'auto'"),
        (lambda: PackImage(keys=3), 'keys must be .*, but is 3'),
    ],
)
def test_impossible_options_of_transforms(make, message):
    with pytest.raises(ConfigError, match=f'^{message}'):
        make()


def test_map_labels():
    seg_map = np.array([[0, 255], [7, 3]], np.uint8)
    found = MapLabels(mapping={255: 1, 7: 255})(dict(gt_seg_map=seg_map))['gt_seg_map']
    assert found.tolist() == [[0, 1], [255, 3]] and found.dtype == np.uint8


def test_crops_without_retries():
    """The mean area of MAE's crop at 375 x 500 pixels is 0.517 (torchvision's, with retries, 0.429 there)."""
    img = np.zeros((375, 500, 3), np.uint8)

    def mean_area(**options):
        crop = RandomResizedCrop(224, crop_ratio_range=(0.08, 1.0), **options)
        sizes = np.array([crop.rand_crop_params(img)[2:] for _ in range(20_000)])
        assert (sizes <= (375, 500)).all()
        return sizes.prod(axis=1).mean() / (375 * 500)

    assert mean_area(retry=False) == pytest.approx(0.517, abs=0.005)
    assert mean_area() == pytest.approx(0.429, abs=0.01)


def test_erased_pixels_are_standard_normal_after_normalization():
    erase = RandomErasing(erase_prob=1.0, min_area_ratio=0.3, max_area_ratio=1 / 3)
    img = erase(dict(img=np.full((64, 64, 3), 10, np.uint8)))['img']
    noise = (img[img != 10] - 127.5) / 127.5
    assert img.dtype == np.float32 and 0.3 * 64 * 64 * 3 * 0.95 < noise.size < 64 * 64 * 3 / 3 * 1.05
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
    assert (np.abs(noise) > 1).mean() == pytest.approx(0.317, abs=0.03)  # nothing is clipped at 0 and 255
    same = RandomErasing(erase_prob=0.0)(dict(img=np.full((8, 8, 3), 10, np.uint8)))['img']
    assert same.dtype == np.float32 and (same == 10).all()
