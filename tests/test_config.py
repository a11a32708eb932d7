"""Every name at the top of a config takes effect, or is refused."""

import copy

import pytest
from mmengine.config import Config

from bootmae_mm.config import Unparsed, check_bound, load_config, parse_value
from tests.conftest import ROOT

PRETRAIN = str(ROOT / 'configs/pretrain/bootmae_vitb.py')


def test_a_name_of_the_base_reaches_all_that_the_base_made_of_it(tmp_path):
    child = tmp_path / 'child.py'
    child.write_text(
        f"_base_ = {PRETRAIN!r}\nmasking = dict(ratio=0.5)\nvis_backends = [dict(type='LocalVisBackend')]\n"
        "train_pipeline = [dict(type='X')]\n"
    )
    cfg = load_config(child)
    for name in ('train_dataloader', 'test_dataloader'):
        assert cfg[name].dataset.masking.ratio == 0.5 and cfg[name].dataset.masking.max_block == 60
    assert cfg.visualizer.vis_backends == [dict(type='LocalVisBackend')]
    assert cfg.train_dataloader.dataset.pipeline == [dict(type='X')]
    assert cfg.filename == str(child)


def test_the_same_on_the_command_line():
    options = {'masking.ratio': 0.5, 'train_pipeline.1.crop_ratio_range': (0.3, 1.0), 'data_root': '/x'}
    cfg = load_config(PRETRAIN, options)
    assert cfg.train_dataloader.dataset.masking.ratio == cfg.test_dataloader.dataset.masking.ratio == 0.5
    assert cfg.train_dataloader.dataset.pipeline[1].crop_ratio_range == (0.3, 1.0)
    assert cfg.test_dataloader.dataset.data_root == '/x'
    cfg = load_config(ROOT / 'configs/seg/bootmae_vitb_upernet_ade20k.py', {'norm_cfg.type': 'BN'})
    assert cfg.model.decode_head.norm_cfg.type == cfg.model.neck.norm_cfg.type == 'BN'
    cfg = load_config(ROOT / 'configs/det/bootmae_vitb_mask_rcnn_1x_coco.py', {'data_root': '/my coco'})
    assert cfg.val_evaluator.ann_file == '/my coco/annotations/instances_val2017.json'


def test_mmengine_alone_is_told_to_read_it_with_this_project(tmp_path):
    child = tmp_path / 'child.py'
    child.write_text(f'_base_ = {PRETRAIN!r}\nmasking = dict(ratio=0.5)\n')
    with pytest.raises(ValueError, match=r"child.py sets \['masking'\] anew.*with bootmae_mm.config.load_config"):
        check_bound(Config.fromfile(child))
    check_bound(copy.deepcopy(load_config(child)))
    check_bound(Config.fromfile(PRETRAIN))


def test_a_name_that_the_file_uses_itself_is_left_to_it(tmp_path):
    child = tmp_path / 'child.py'
    child.write_text(
        f"_base_ = {PRETRAIN!r}\ndata_root = '/mine'\ntrain_dataloader = dict(dataset=dict(data_root=data_root))\n"
    )
    cfg = load_config(child)
    assert cfg.train_dataloader.dataset.data_root == '/mine'
    assert cfg.test_dataloader.dataset.data_root == 'data/imagenet'


def test_a_value_of_the_base_changed_in_place(tmp_path):
    child = tmp_path / 'child.py'
    child.write_text(f'_base_ = {PRETRAIN!r}\n_base_.masking.update(ratio=0.6)\n')
    assert load_config(child).train_dataloader.dataset.masking.ratio == 0.6


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('optim_wraper = dict(lr=1)', "child.py: nothing reads the key 'optim_wraper'; did you mean 'optim_wrapper'"),
        ('colour = 3', "child.py: nothing reads the key 'colour'"),
    ],
)
def test_a_name_that_nothing_reads(tmp_path, line, message):
    child = tmp_path / 'child.py'
    child.write_text(f'_base_ = {PRETRAIN!r}\n{line}\n')
    with pytest.raises(ValueError, match=message):
        load_config(child)


def test_options_that_nothing_reads():
    with pytest.raises(ValueError, match="'grid_size'; the key that has an effect is masking.grid_size or train_data"):
        load_config(PRETRAIN, {'grid_size': 3})
    for key in ('find_unused_parameters', 'model_wrapper_cfg', 'sync_bn', 'compile'):
        assert load_config(PRETRAIN, {key: True})[key] is True


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').glob('[a-z]*/**/*.py')), ids=lambda path: path.stem)
def test_every_config_of_the_project_is_read(path):
    load_config(path)


@pytest.mark.parametrize(
    ('text', 'current', 'value'),
    [
        ('/x/my images, all', 'data/imagenet', '/x/my images, all'),
        ('/x/my images, all', None, '/x/my images, all'),
        ('2024', 'data', '2024'),
        ('None', 'data', None),
        ('none', 'channel', 'none'),
        ('"a, b"', None, 'a, b'),
        ('1e-3', 0.1, 1e-3),
        ('224,384', 224, [224, 384]),
        ('(224, 384)', 224, (224, 384)),
        ('a,b', ('c',), ['a', 'b']),
        ('.jpg', ['.png'], ['.jpg']),
        ('[a b, (1, 2), c]', None, ['a b', (1, 2), 'c']),
        ("{'a': [1]}", 'b', {'a': [1]}),
        ('true', False, True),
        ('', 'train', ''),
    ],
)
def test_values_on_the_command_line(text, current, value):
    found = parse_value(text, current)
    assert found == value and type(found) is type(value)


def test_the_command_line_of_every_tool_keeps_blanks_and_commas(run_tool, tmp_path):
    for tool, arguments in (('train.py', []), ('test.py', ['x.pth']), ('knn.py', ['x.pth'])):
        status, _, message = run_tool(tool, PRETRAIN, *arguments, '--cfg-options', 'data_rot=/x/my, images')
        assert status == 1 and "did you mean 'data_root'" in message
    cfg = load_config(PRETRAIN, {'data_root': Unparsed('/x/my, images')})
    assert cfg.train_dataloader.dataset.data_root == '/x/my, images'
