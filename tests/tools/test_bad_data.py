"""Bad data of downstream tasks: train.py ends with an error of one line."""

import json
import re
import shutil

import numpy as np
import pytest
from mmengine.registry import DATASETS
from PIL import Image

from bootmae_mm.engine.launch import read_config
from examples.digit_scenes import write_scenes
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
    """Train for one iteration or epoch without workers; return the status and the error message."""

    def run(config, scenes, *options, short=None):
        loaders = [
            f'{name}_dataloader.{key}'
            for name in ('train', 'val', 'test')
            for key in ('num_workers=0', 'persistent_workers=False')
        ]
        status, _, message = run_tool(
            'train.py',
            config if short else ROOT / f'configs/{config}.py',
            '--work-dir',
            tmp_path / 'work',
            '--cfg-options',
            f'data_root={scenes}',
            'model.backbone.init_cfg=None',
            *loaders,
            *SHORT[short or config],
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
    if config == CLS:  # each class folder needs an image
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
    """Write a folder for each class, with four black images in each."""
    for split, names in classes.items():
        for name in names:
            (root / f'digits/{split}/{name}').mkdir(parents=True)
            for number in range(4):
                Image.new('RGB', (16, 16)).save(root / f'digits/{split}/{name}/{number}.png')
    return root


THREE = ('model.head.num_classes=3', 'model.data_preprocessor.num_classes=3')


def test_validation_folders_with_other_classes(train, tmp_path):
    root = folders(tmp_path / 'data', training='abc', validation='acd')
    status, found = train(CLS, root, *THREE, 'val_evaluator.topk=(1,)')
    assert status == 1 and "training and validation do not have the same classes: label 1 is 'b'" in found, found


def test_fewer_classes_than_the_metric_needs(train, run_tool, tmp_path):
    root = folders(tmp_path / 'data', training='abc', validation='abc')
    status, found = train(CLS, root, *THREE)
    assert status == 1 and 'the metric needs the best 5 of 3 classes; set val_evaluator.topk=(1,)' in found, found
    fewer = ('val_evaluator.topk=(1,)', 'test_evaluator.topk=(1,)')
    status, found = train(CLS, root, *THREE, *fewer)
    assert status == 0, found
    # A test set with other classes than the training set.
    other = folders(tmp_path / 'other', training='abc', validation='abd')
    arguments = (ROOT / f'configs/{CLS}.py', tmp_path / 'work/epoch_1.pth', '--work-dir', tmp_path / 'test')
    options = (*THREE, *fewer, 'test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False')
    status, _, found = run_tool('test.py', *arguments, '--cfg-options', f'data_root={other}', *options)
    assert status == 1 and "and the test set do not have the same classes: label 2 is 'c'" in found, found


def test_images_without_objects_are_skipped_in_training_but_not_in_evaluation(train, scenes):
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


def test_wrong_out_indices_through_train(train, scenes):
    status, found = train(SEG, scenes, 'model.backbone.out_indices=(0,1,2,4)')
    assert status == 1 and 'out_indices (0, 1, 2, 4) must be different blocks in 0..3' in found, found


# Common mistakes in the files of segmentation and detection.


def maps_of(scenes):
    return sorted((scenes / 'annotations').glob('*/*.png'))


def change_coco(scenes, change):
    for path in scenes.glob('instances_*.json'):
        content = json.loads(path.read_text())
        for annotation in content['annotations']:
            change(annotation)
        path.write_text(json.dumps(content))


ONE_CLASS = ('model.decode_head.num_classes=1', 'model.auxiliary_head.num_classes=1')


def test_one_class_under_softmax(train, scenes):
    for path in maps_of(scenes):
        Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)
    classes = "metainfo={'classes': ['thing'], 'palette': [[1, 2, 3]]}"
    status, message = train(SEG, scenes, *ONE_CLASS, classes)
    assert status == 1 and 'decode_head has one class under softmax, whose loss is always 0' in message


def test_maps_without_a_labeled_pixel(train, scenes):
    for path in maps_of(scenes):
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 255)).save(path)
    status, message = train(SEG, scenes)
    assert status == 1 and 'no pixel is labeled in the first 1 batches, as in ' in message
    assert ': every id is 255, which is ignored' in message


def test_a_warning_tells_of_ignored_foreground(train, scenes, tmp_path):
    for path in maps_of(scenes):
        Image.fromarray(np.where(np.asarray(Image.open(path)) > 0, 255, 0).astype(np.uint8)).save(path)
    plain = [
        f'{name}_dataloader.dataset.{key}=False'
        for name in ('train', 'val', 'test')
        for key in ('reduce_zero_label', 'pipeline.1.reduce_zero_label')
    ]
    status, message = train(SEG, scenes, *plain)
    assert status == 0, message
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    assert 'only class 0 occurs in the first 1 batches, as in ' in log and ', and ignored pixels of id 255' in log


def test_a_warning_tells_of_foreground_that_is_ignored_in_validation_only(train, scenes, tmp_path):
    for path in maps_of(scenes):
        foreground = 255 if path.parent.name == 'validation' else 1
        Image.fromarray(np.where(np.asarray(Image.open(path)) > 0, foreground, 0).astype(np.uint8)).save(path)
    plain = [
        f'{name}_dataloader.dataset.{key}=False'
        for name in ('train', 'val', 'test')
        for key in ('reduce_zero_label', 'pipeline.1.reduce_zero_label')
    ]
    status, message = train(SEG, scenes, *plain)
    assert status == 0, message
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    assert 'validation: only class 0 occurs, all other pixels are 255' in log


def test_labels_of_the_test_set_are_checked(train, run_tool, scenes, tmp_path):
    status, message = train(SEG, scenes)
    assert status == 0, message
    path = sorted((scenes / 'images/validation').glob('*.png'))[0]
    rotate(path, 6)
    label = scenes / 'annotations/validation' / path.name
    Image.open(label).crop((0, 0, 48, 40)).save(label)
    arguments = (ROOT / f'configs/{SEG}.py', tmp_path / 'work/iter_1.pth', '--work-dir', tmp_path / 'test')
    options = ('test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False', *SHORT[SEG])
    status, _, message = run_tool('test.py', *arguments, '--cfg-options', f'data_root={scenes}', *options)
    assert status == 1 and path.name in message and 'EXIF orientation 6' in message, message


def test_a_run_that_learns_nothing_stops(train, scenes):
    """The loss ignores all pixels, which no check of labels can detect."""
    losses = [f'model.{head}.loss_decode.loss_weight=0.0' for head in ('decode_head', 'auxiliary_head')]
    status, message = train(SEG, scenes, *losses)
    assert status == 1 and 'loss and gradient were exactly 0 in all of the first 1 iterations' in message


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda a: a.update(iscrowd=1), 'has no object to learn from: N with iscrowd=1'),
        (lambda a: a['bbox'].__setitem__(2, -5), 'has no object to learn from: N with a box narrower than a pixel'),
        (lambda a: a.pop('iscrowd'), "N of N annotations have no usable 'iscrowd'"),
        (lambda a: a.pop('area'), "N of N annotations have no usable 'area'"),
        (lambda a: a.pop('segmentation'), "N of N annotations have no usable 'segmentation'"),
        (lambda a: a.update(id=str(a['id'])), "N of N annotations have no usable 'id'"),
    ],
)
def test_coco_annotations(train, scenes, change, message):
    change_coco(scenes, change)
    status, found = train(DET, scenes)
    assert status == 1 and message in re.sub(r'\b\d+ (of|with)', r'N \1', re.sub(r'of \d+ ann', 'of N ann', found))


def test_coco_images_without_a_height(train, scenes):
    for path in scenes.glob('instances_*.json'):
        content = json.loads(path.read_text())
        for image in content['images']:
            image.pop('height')
        path.write_text(json.dumps(content))
    status, message = train(DET, scenes)
    assert status == 1 and "images have no usable 'height'" in message


def rotate(path, orientation):
    """Save an image with an orientation tag, cropped to an oblong."""
    image = Image.open(path).convert('RGB').crop((0, 0, 48, 40))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)


@pytest.mark.parametrize('config', [SEG, DET])
@pytest.mark.parametrize('split', ['training', 'validation'])
def test_images_that_are_rotated_when_loaded(train, scenes, config, split):
    path = sorted((scenes / 'images' / split).glob('*.png'))[0]
    rotate(path, 6)
    label = scenes / 'annotations' / split / path.name
    Image.open(label).crop((0, 0, 48, 40)).save(label)
    status, message = train(config, scenes)
    assert status == 1 and path.name in message and 'EXIF orientation 6' in message


def test_a_warning_tells_of_an_orientation_that_does_not_change_the_size(train, scenes, tmp_path):
    path = sorted((scenes / 'images/training').glob('*.png'))[0]
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(path).save(path, exif=exif)
    status, message = train(SEG, scenes)
    assert status == 0, message
    assert '1 images have an EXIF orientation' in next((tmp_path / 'work').glob('*/*.log')).read_text()


def test_color_maps_suffixes_and_zero_labels(train, scenes):
    status, message = train(SEG, scenes, 'train_dataloader.dataset.img_suffix=.tif')
    assert status == 1 and "ends in '.tif' (img_suffix of the dataset); there are ['.png']" in message
    status, message = train(SEG, scenes, 'train_dataloader.dataset.reduce_zero_label=False')
    assert status == 1 and 'reduce_zero_label is False in BaseSegDataset and True in LoadAnnotations' in message
    path = maps_of(scenes)[0]
    Image.open(path).convert('RGB').save(path)
    status, message = train(SEG, scenes)
    assert status == 1 and f'{path.name} has colors (RGB)' in message


def test_upernet_with_a_batch_of_one(train, scenes):
    status, message = train(SEG, scenes, 'train_dataloader.batch_size=1')
    assert status == 1 and 'needs at least two images' in message


def test_save_best_with_an_unknown_metric(train, scenes, tmp_path):
    metric = [f'{name}_evaluator.metric=[bbox]' for name in ('val', 'test')]
    status, message = train(DET, scenes, *metric)
    assert status == 0, message
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    assert "save_best='coco/segm_mAP' is not a metric of this evaluator, which has 'coco/bbox_mAP'" in log
    assert (tmp_path / 'work/epoch_1.pth').is_file()


@pytest.mark.parametrize(('name', 'foreground'), [('folder', 1), ('binary', 255)])
def test_own_segmentation_data_end_to_end(train, scenes, tmp_path, name, foreground):
    """Tiny forms of the documented configs learn, and both classes have a score."""
    for path in maps_of(scenes):
        Image.fromarray(np.where(np.asarray(Image.open(path)) > 0, foreground, 0).astype(np.uint8)).save(path)
    config = tmp_path / 'own.py'
    config.write_text(
        f"""
_base_ = '{ROOT}/configs/seg/bootmae_vitb_upernet_{name}.py'
crop_size = (48, 48)
model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256),
                  patch_size=4, out_indices=(0, 1, 2, 3)),
    neck=dict(embed_dim=64, rescales=[2, 1, 0.5, 0.25]),
    decode_head=dict(in_channels=[64] * 4, channels=24), auxiliary_head=dict(in_channels=64, channels=24))
"""
    )
    pipelines = {'train': '2.scale' if name == 'folder' else '3.scale', 'val': '1.scale', 'test': '1.scale'}
    options = [f'{key}_dataloader.dataset.pipeline.{step}=(96,48)' for key, step in pipelines.items()]
    options += [f'{key}_dataloader.dataset.img_suffix=.png' for key in pipelines]
    SHORT['own'] = ('train_cfg.max_iters=2', 'train_cfg.val_interval=2')
    status, message = train(config, scenes, *options, short='own')
    assert status == 0, message
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    scores = log.split('per class results')[1].split('mIoU')[0]
    assert 'background' in scores and 'object' in scores and 'nan' not in scores


def test_duplicates_in_a_hidden_folder(train, scenes):
    for kind in ('images', 'annotations'):
        folder = scenes / kind / 'training'
        shutil.copytree(folder, scenes / 'copy')
        shutil.move(scenes / 'copy', folder / '.ipynb_checkpoints')
    status, message = train(SEG, scenes)
    assert status == 1 and '.ipynb_checkpoints/training_00000.png is in a hidden folder' in message


def test_a_schedule_that_monitors_an_unknown_metric(train, scenes, tmp_path):
    plateau = "param_scheduler=[{'type': 'ReduceOnPlateauLR', 'monitor': 'bar', 'by_epoch': True}]"
    status, message = train(CLS, scenes, plateau)
    assert status == 0, message
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    assert "ReduceOnPlateauLR monitors 'bar', which is not a metric of this evaluator" in log
