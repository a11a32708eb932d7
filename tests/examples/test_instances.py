"""Objects for detection from maps for segmentation."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from bootmae_mm.validation import ConfigError
from examples.instances import write_instances
from tests.conftest import ROOT

CAR, WALKER = 9, 10


@pytest.fixture
def frames(tmp_path):
    """Two frames of 12 x 16 pixels; the first has two cars, one of them small, and two that touch at a corner."""
    labels = np.zeros((2, 12, 16), np.uint8)
    labels[0, 1:5, 2:8] = CAR  # 24 pixels
    labels[0, 8, 3:6] = CAR  # 3 pixels
    labels[0, 6:9, 10:12] = labels[0, 9:11, 12:15] = WALKER  # 6 + 6 pixels
    labels[1, 2:4, 0:7] = WALKER  # 14 pixels
    for index, name in enumerate(('a', 'sub/b')):
        for folder, suffix, picture in (('images', 'jpg', labels[index] * 10), ('maps', 'png', labels[index])):
            path = tmp_path / folder / f'{name}.{suffix}'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
    return tmp_path, labels


def test_connected_regions_are_objects_and_small_ones_crowds(frames):
    folder, labels = frames
    to = folder / 'instances.json'
    counts = write_instances(folder / 'images', folder / 'maps', to, {CAR: 'car', WALKER: 'walker'}, min_area=5)
    assert counts == dict(images=2, objects=3, small=1)
    coco = COCO(to)
    assert {image['file_name']: (image['height'], image['width']) for image in coco.imgs.values()} == {
        'a.jpg': (12, 16),
        'sub/b.jpg': (12, 16),
    }
    assert {category['id']: category['name'] for category in coco.cats.values()} == {CAR: 'car', WALKER: 'walker'}
    found = [(a['image_id'], a['category_id'], a['bbox'], a['area'], a['iscrowd']) for a in coco.anns.values()]
    assert found == [
        (1, CAR, [2, 1, 6, 4], 24, 0),
        (1, CAR, [3, 8, 3, 1], 3, 1),
        (1, WALKER, [10, 6, 5, 5], 12, 0),
        (2, WALKER, [0, 2, 7, 2], 14, 0),
    ]
    for image, expected in enumerate(labels, start=1):
        masks = [coco.annToMask(a) * a['category_id'] for a in coco.loadAnns(coco.getAnnIds(image))]
        np.testing.assert_array_equal(np.sum(masks, axis=0), expected)


@pytest.mark.parametrize(
    'change, categories, message',
    [
        (lambda folder: (folder / 'maps/sub/b.png').unlink(), {CAR: 'car'}, 'b.jpg has no map'),
        (lambda folder: Image.new('L', (16, 11)).save(folder / 'maps/a.png'), {CAR: 'car'}, r'of 16 x 12.*\(11, 16\)'),
        (lambda folder: None, {CAR: 'car', 11: 'bicyclist'}, 'no map in .* has a region of 20 .* with label 11'),
        (lambda folder: None, {WALKER: 'walker'}, 'no map in .* has a region of 20 pixels or more with label 10'),
        (lambda folder: None, {CAR: 'car', 11: 'car'}, 'two classes have the same name'),
    ],
)
def test_what_is_missing_is_told(frames, change, categories, message):
    folder, _ = frames
    change(folder)
    with pytest.raises(ConfigError, match=message):
        write_instances(folder / 'images', folder / 'maps', folder / 'x.json', categories, min_area=20)
    assert not (folder / 'x.json').exists()


def test_the_command(frames):
    folder, _ = frames
    command = [sys.executable, str(ROOT / 'tools/make_instances.py'), str(folder / 'images'), str(folder / 'maps')]
    to = folder / 'instances.json'
    done = subprocess.run(
        [*command, '--to', str(to), '--classes', '9=car', '--min-area', '4'], capture_output=True, text=True
    )
    assert done.returncode == 0 and '2 images, 1 objects, 1 small' in done.stdout, done.stderr
    assert json.loads(to.read_text())['categories'] == [dict(id=9, name='car')]
    twice = subprocess.run([*command, '--to', str(to), '--classes', '9=car', '9=bus'], capture_output=True, text=True)
    assert twice.returncode == 2 and '--classes has a label twice' in twice.stderr
    failed = subprocess.run([*command, '--to', str(to), '--classes', 'car'], capture_output=True, text=True)
    assert failed.returncode == 2 and 'car is not LABEL=NAME' in failed.stderr
