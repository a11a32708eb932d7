"""Wrong data for the downstream tasks ends in one clear line, through the real train.py."""

import json
import shutil

import numpy as np
import pytest
from mmengine.registry import DATASETS
from PIL import Image

from bootmae_mm.data.digit_scenes import write_scenes
from bootmae_mm.engine.launch import read_config
from tests.conftest import ROOT


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp('good') / 'scenes'
    write_scenes(root, dict(training=8, validation=1), size=48)
    return root


@pytest.fixture
def scenes(good, tmp_path):
    shutil.copytree(good, tmp_path / 'scenes')
    return tmp_path / 'scenes'


SEG, DET, CLS = (
    'seg/bootmae_vitt_upernet_digits',
    'det/bootmae_vitt_mask_rcnn_digits',
    'cls/bootmae_vitt_digits_ft',
)
SHORT = {
    SEG: ('train_cfg.max_iters=1', 'train_cfg.val_interval=1', 'model.data_preprocessor.size=(48,48)'),
    DET: ('train_cfg.max_epochs=1', 'train_cfg.val_interval=1'),
    CLS: ('train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'train_dataloader.batch_size=4'),
}


@pytest.fixture
def train(run_tool, tmp_path):
    """Train for one iteration or epoch without workers: status and last line."""

    def run(config, scenes, *options):
        loaders = [
            f'{name}_dataloader.{key}'
            for name in ('train', 'val', 'test')
            for key in ('num_workers=0', 'persistent_workers=False')
        ]
        status, _, message = run_tool(
            'train.py',
            ROOT / f'configs/{config}.py',
            '--work-dir',
            tmp_path / 'work',
            '--cfg-options',
            f'data_root={scenes}',
            'model.backbone.init_cfg=None',
            *loaders,
            *SHORT[config],
            *options,
        )
        return status, message

    return run


@pytest.mark.parametrize(
    ('config', 'lost', 'message'),
    [
        (SEG, 'annotations/training/training_00000.png', 'training_00000.png'),
        (SEG, 'annotations/training', 'annotations/training'),
        (DET, 'instances_training.json', 'instances_training.json'),
        (DET, 'images/training/training_00000.png', 'training_00000.png'),
        (CLS, 'digits/training', 'digits/training'),
    ],
)
def test_missing_files_are_named(train, scenes, config, lost, message):
    path = scenes / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    status, found = train(config, scenes)
    assert status == 1 and message in found and '\n' not in found, found


@pytest.mark.parametrize(
    ('config', 'option', 'message'),
    [
        (SEG, 'model.decode_head.num_classes=7', 'decode_head has num_classes=7, but BaseSegDataset has 11 classes'),
        (DET, 'model.roi_head.mask_head.num_classes=3', 'mask_head has num_classes=3, but CocoDataset has 10 classes'),
        (CLS, 'model.head.num_classes=5', 'head has num_classes=5, but LabelledFolder has 10 classes'),
    ],
)
def test_class_counts_that_do_not_match(train, scenes, config, option, message):
    if config == CLS:  # ten folders with something in each
        for label in range(10):
            Image.new('RGB', (32, 32)).save(scenes / f'digits/training/{label}/x.png')
    status, found = train(config, scenes, option)
    assert status == 1 and message in found, found


def test_coco_file_without_the_classes(train, scenes):
    path = scenes / 'instances_training.json'
    content = json.loads(path.read_text())
    content['categories'][3]['name'] = 'three'
    path.write_text(json.dumps(content))
    status, found = train(DET, scenes)
    assert status == 1 and 'only 9 of the 10 classes of CocoDataset are categories of' in found, found
    for category in content['categories']:
        category['name'] = f'digit {category["name"]}'
    path.write_text(json.dumps(content))
    status, found = train(DET, scenes)
    assert status == 1 and 'none of the 10 classes of CocoDataset (0, 1, 2, ...) is a category of' in found, found


def test_segmentation_map_with_an_id_out_of_range(train, scenes):
    path = scenes / 'annotations/training/training_00003.png'
    seg = np.asarray(Image.open(path)).copy()
    seg[0, 0] = 200
    Image.fromarray(seg).save(path)
    status, found = train(SEG, scenes)
    assert status == 1 and 'training_00003.png has ids [199], but there are 11 classes' in found, found


def test_a_validation_map_with_an_id_out_of_range(train, scenes):
    path = next((scenes / 'annotations/validation').iterdir())
    seg = np.asarray(Image.open(path)).copy()
    seg[0, 0] = 200
    Image.fromarray(seg).save(path)
    status, found = train(SEG, scenes)
    assert status == 1 and f'{path.name} has ids [199], but there are 11 classes' in found, found


def folders(root, **classes):
    """A folder for each class, with four grey pictures in each."""
    for split, names in classes.items():
        for name in names:
            (root / f'digits/{split}/{name}').mkdir(parents=True)
            for number in range(4):
                Image.new('RGB', (16, 16)).save(root / f'digits/{split}/{name}/{number}.png')
    return root


THREE = ('model.head.num_classes=3', 'model.data_preprocessor.num_classes=3')


def test_validation_folders_of_other_classes(train, tmp_path):
    root = folders(tmp_path / 'data', training='abc', validation='acd')
    status, found = train(CLS, root, *THREE, 'val_evaluator.topk=(1,)')
    assert status == 1 and "training and validation do not have the same classes: label 1 is 'b'" in found, found


def test_fewer_classes_than_the_metric_asks_for(train, run_tool, tmp_path):
    root = folders(tmp_path / 'data', training='abc', validation='abc')
    status, found = train(CLS, root, *THREE)
    assert status == 1 and 'the metric asks for the best 5 of 3 classes; set val_evaluator.topk=(1,)' in found, found
    fewer = ('val_evaluator.topk=(1,)', 'test_evaluator.topk=(1,)')
    status, found = train(CLS, root, *THREE, *fewer)
    assert status == 0, found
    # A test set of other classes than those of the training.
    other = folders(tmp_path / 'other', training='abc', validation='abd')
    arguments = (ROOT / f'configs/{CLS}.py', tmp_path / 'work/epoch_1.pth', '--work-dir', tmp_path / 'test')
    options = (*THREE, *fewer, 'test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False')
    status, _, found = run_tool('test.py', *arguments, '--cfg-options', f'data_root={other}', *options)
    assert status == 1 and "and the test set do not have the same classes: label 2 is 'c'" in found, found


def test_images_without_objects_are_left_out_in_training_and_kept_in_evaluation(train, scenes):
    for split in ('training', 'validation'):
        path = scenes / f'instances_{split}.json'
        content = json.loads(path.read_text())
        image = content['images'][0]['id']
        content['annotations'] = [item for item in content['annotations'] if item['image_id'] != image]
        path.write_text(json.dumps(content))
    status, found = train(DET, scenes)
    assert status == 0, found
    cfg = read_config(str(ROOT / f'configs/{DET}.py'), {'data_root': str(scenes)})
    with DATASETS.switch_scope_and_registry('mmdet') as registry:
        sizes = [len(registry.build(cfg[f'{name}_dataloader'].dataset)) for name in ('train', 'val')]
    assert sizes == [7, 1]  # of 8 and 1


def test_a_map_without_labels_is_trained_on(train, scenes):
    for path in (scenes / 'annotations/training').iterdir():
        Image.fromarray(np.zeros((48, 48), np.uint8)).save(path)
    status, found = train(SEG, scenes)
    assert status == 0, found


def test_wrong_out_indices_through_train(train, scenes):
    status, found = train(SEG, scenes, 'model.backbone.out_indices=(0,1,2,4)')
    assert status == 1 and 'out_indices (0, 1, 2, 4) must be blocks in 0..3' in found, found
