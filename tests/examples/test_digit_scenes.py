"""The scenes of digits: reproducible files in the layouts of COCO, ADE20K and ImageNet."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from bootmae_mm.data import Digits
from bootmae_mm.validation import ConfigError
from examples.digit_scenes import CELL, make_scene, write_scenes

COUNTS = dict(training=12, validation=4)


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp('scenes') / 'first'
    return root, write_scenes(root, COUNTS, size=64)


def digest(root):
    files = sorted(path for path in root.rglob('*') if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_arguments_give_the_same_files(scenes, tmp_path):
    root, summary = scenes
    assert write_scenes(tmp_path / 'again', COUNTS, size=64) == summary
    assert digest(root) == digest(tmp_path / 'again')
    write_scenes(tmp_path / 'other', COUNTS, size=64, seed=1)
    assert digest(root) != digest(tmp_path / 'other')
    write_scenes(tmp_path / 'fewer', dict(training=3), size=64)
    first = digest(tmp_path / 'fewer')
    assert first['images/training/training_00002.png'] == digest(root)['images/training/training_00002.png']


@pytest.mark.parametrize('split', ['training', 'validation'])
def test_coco_file_agrees_with_the_segmentation_maps(scenes, split):
    root, summary = scenes
    coco = COCO(root / f'instances_{split}.json')
    assert len(coco.imgs) == COUNTS[split] and len(coco.anns) == summary[split]['digits'] > 0
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == [str(label) for label in range(10)]
    for image in coco.loadImgs(coco.getImgIds()):
        seg = np.asarray(Image.open(root / 'annotations' / split / image['file_name']))
        picture = Image.open(root / 'images' / split / image['file_name'])
        assert picture.size == (image['width'], image['height']) == seg.shape[::-1] and picture.mode == 'RGB'
        assert set(np.unique(seg)) <= set(range(12)) and (seg == 1).any()
        unexplained = seg > 1
        for annotation in coco.loadAnns(coco.getAnnIds(image['id'])):
            mask = coco.annToMask(annotation).astype(bool)
            rows, columns = np.nonzero(mask)
            assert annotation['bbox'] == [
                columns.min(),
                rows.min(),
                columns.max() - columns.min() + 1,
                rows.max() - rows.min() + 1,
            ]
            assert annotation['area'] == mask.sum()
            # The segmentation map has the same digit, or no digit where too little of it is visible.
            wanted = 0 if annotation['iscrowd'] else annotation['category_id'] + 1
            assert (seg[mask] == wanted).all()
            unexplained &= ~mask
        assert not unexplained.any()  # every digit of the map is an instance


def test_masks_do_not_overlap_and_hidden_digits_are_crowds(scenes):
    root, summary = scenes
    coco = COCO(root / 'instances_training.json')
    for image in coco.imgs:
        total = sum(coco.annToMask(annotation).astype(int) for annotation in coco.loadAnns(coco.getAnnIds(image)))
        assert np.max(total) <= 1
    hidden = sum(annotation['iscrowd'] for annotation in coco.anns.values())
    assert hidden == summary['training']['hidden'] and 0 < hidden < summary['training']['digits'] / 2


def test_digits_are_brighter_than_their_background():
    """The mask covers the digit: one white digit alone."""
    digit = np.zeros((1, 32, 32), np.uint8)
    digit[:, 8:24, 12:20] = 255
    scene = make_scene(digit, np.array([7]), np.random.RandomState(5), size=64)
    inside = scene.image[scene.segmentation == 9].mean()
    assert inside > scene.image[scene.segmentation == 1].mean() + 60
    assert all(instance.label == 7 for instance in scene.instances)


def test_validation_digits_are_not_those_of_training():
    def pictures(split):
        dataset = Digits(split=split, pipeline=[])
        return {dataset.get_data_info(index)['img'].tobytes() for index in range(len(dataset))}

    train, test = pictures('train'), pictures('test')
    assert len(train) > 1200 and len(test) > 450
    assert not train & test


def test_pieces_are_single_digits_in_folders_of_their_class(scenes):
    root, summary = scenes
    files = list((root / 'digits/training').rglob('*.png'))
    assert len(files) == summary['training']['pieces'] > 20
    assert {path.parent.name for path in files} <= {str(label) for label in range(10)}
    assert all(Image.open(path).size == (32, 32) for path in files)
    annotations = json.loads((root / 'instances_training.json').read_text())['annotations']
    for path in files:
        image, number = map(int, path.stem.split('_'))
        of_image = [annotation for annotation in annotations if annotation['image_id'] == image + 1]
        assert of_image[number]['category_id'] == int(path.parent.name) + 1


def test_bad_arguments(tmp_path, scenes):
    with pytest.raises(FileExistsError, match='not empty'):
        write_scenes(scenes[0], COUNTS)
    with pytest.raises(ValueError, match='at least 32'):
        write_scenes(tmp_path / 'x', COUNTS, size=8)
    with pytest.raises(ValueError, match='counts'):
        write_scenes(tmp_path / 'x', dict(training=0))


def test_forms_have_the_images_of_the_demo_in_their_cells(tmp_path):
    root = tmp_path / 'forms'
    summary = write_scenes(root, COUNTS, size=64, kind='forms')
    source = Digits(split='train', img_size=CELL, pipeline=[])
    known = {}
    for index in range(len(source)):
        sample = source.get_data_info(index)
        known[sample['img'].tobytes()] = sample['gt_label']
    coco, cells = COCO(root / 'instances_training.json'), []
    for number, image in coco.imgs.items():
        pixels = np.asarray(Image.open(root / 'images/training' / image['file_name']))
        maps = np.asarray(Image.open(root / 'annotations/training' / image['file_name']))
        found = {}
        for row, column in np.ndindex(4, 4):
            cell = np.s_[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
            if pixels[cell].any():
                label = found[row, column] = known[pixels[cell].tobytes()]
                assert set(np.unique(maps[cell])) == {0, 1, 2 + label}
            else:
                assert (maps[cell] == 1).all()
        boxes = {
            (int(a['bbox'][1]) // CELL, int(a['bbox'][0]) // CELL): a['category_id'] - 1
            for a in coco.loadAnns(coco.getAnnIds(number))
        }
        assert boxes == found
        cells.append(len(found))
    assert 0.5 < np.mean(cells) / 16 < 0.9  # most are filled
    pieces = list((root / 'digits/training').rglob('*.png'))
    assert len(pieces) == summary['training']['pieces'] == sum(cells)
    for piece in pieces:
        assert known[np.asarray(Image.open(piece)).tobytes()] == int(piece.parent.name)
    with pytest.raises(ConfigError, match='a multiple of 16 pixels, but is 40'):
        write_scenes(tmp_path / 'other', COUNTS, size=40, kind='forms')
