"""Every top-level name of a config takes effect, or is refused."""

import copy

import pytest
from mmengine.config import Config

from bootmae_mm.config import check_bound, load_config
from bootmae_mm.options import Unparsed, parse_value
from tests.conftest import ROOT

PRETRAIN = str(ROOT / 'configs/pretrain/bootmae_vitb.py')


def test_a_changed_name_takes_effect_everywhere_in_the_base(tmp_path):
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


def test_an_option_takes_effect_everywhere_in_the_base():
    options = {'masking.ratio': 0.5, 'train_pipeline.1.crop_ratio_range': (0.3, 1.0), 'data_root': '/x'}
    cfg = load_config(PRETRAIN, options)
    assert cfg.train_dataloader.dataset.masking.ratio == cfg.test_dataloader.dataset.masking.ratio == 0.5
    assert cfg.train_dataloader.dataset.pipeline[1].crop_ratio_range == (0.3, 1.0)
    assert cfg.test_dataloader.dataset.data_root == '/x'
    cfg = load_config(ROOT / 'configs/seg/bootmae_vitb_upernet_ade20k.py', {'norm_cfg.type': 'BN'})
    assert cfg.model.decode_head.norm_cfg.type == cfg.model.neck.norm_cfg.type == 'BN'
    cfg = load_config(ROOT / 'configs/det/bootmae_vitb_mask_rcnn_1x_coco.py', {'data_root': '/my coco'})
    assert cfg.val_evaluator.ann_file == '/my coco/annotations/instances_val2017.json'


def test_a_config_that_mmengine_alone_reads_is_refused(tmp_path):
    child = tmp_path / 'child.py'
    child.write_text(f'_base_ = {PRETRAIN!r}\nmasking = dict(ratio=0.5)\n')
    with pytest.raises(ValueError, match=r"child.py overrides \['masking'\].*with bootmae_mm.config.load_config"):
        check_bound(Config.fromfile(child))
    check_bound(copy.deepcopy(load_config(child)))
    check_bound(Config.fromfile(PRETRAIN))


def test_a_plain_value_that_the_child_uses_itself(tmp_path):
    child = tmp_path / 'child.py'
    child.write_text(
        f"_base_ = {PRETRAIN!r}\nimg_size = 96\ndata_root = '/mine'\n"
        'train_dataloader = dict(dataset=dict(data_root=data_root))\n'
        "test_pipeline = [dict(type='CenterCrop', crop_size=img_size)]\n"
    )
    cfg = load_config(child)
    assert cfg.train_dataloader.dataset.data_root == cfg.test_dataloader.dataset.data_root == '/mine'
    assert cfg.model.backbone.img_size == cfg.masking.img_size == cfg.train_pipeline[1].scale == 96
    assert cfg.test_pipeline == [dict(type='CenterCrop', crop_size=96)]
    with pytest.raises(ValueError, match=r"overrides \['data_root', 'img_size', 'test_pipeline'\]"):
        check_bound(Config.fromfile(child))


def test_a_plain_value_that_makes_no_difference_is_accepted(tmp_path):
    child = tmp_path / 'child.py'
    child.write_text(
        f"_base_ = {PRETRAIN!r}\ndata_root = '/mine'\n"
        'train_dataloader = dict(dataset=dict(data_root=data_root))\n'
        'test_dataloader = dict(dataset=dict(data_root=data_root))\n'
    )
    cfg = Config.fromfile(child)
    cfg.work_dir = '/out'  # as scripts set it before they build a Runner
    check_bound(cfg)


def test_other_values_that_the_child_uses_itself_do_not_change_the_base(tmp_path):
    child = tmp_path / 'child.py'
    base = ROOT / 'configs/seg/bootmae_vitb_upernet_ade20k.py'
    child.write_text(
        f"_base_ = {str(base)!r}\nnorm_cfg = dict(type='BN')\nmodel = dict(neck=dict(norm_cfg=norm_cfg))\n"
    )
    cfg = load_config(child)
    assert cfg.model.neck.norm_cfg.type == 'BN' and cfg.model.decode_head.norm_cfg.type == 'SyncBN'
    check_bound(Config.fromfile(child))


def test_a_value_of_the_base_that_is_changed_in_place(tmp_path):
    child = tmp_path / 'child.py'
    child.write_text(f'_base_ = {PRETRAIN!r}\n_base_.masking.update(ratio=0.6)\n')
    assert load_config(child).train_dataloader.dataset.masking.ratio == 0.6


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('optim_wraper = dict(lr=1)', "child.py: nothing reads the key 'optim_wraper'; did you mean 'optim_wrapper'"),
        ('tint = 3', "child.py: nothing reads the key 'tint'"),
    ],
)
def test_a_name_that_nothing_reads(tmp_path, line, message):
    child = tmp_path / 'child.py'
    child.write_text(f'_base_ = {PRETRAIN!r}\n{line}\n')
    with pytest.raises(ValueError, match=message):
        load_config(child)


def test_options_that_nothing_reads():
    with pytest.raises(ValueError, match="'strategy'; the key that has an effect is masking.strategy or train_data"):
        load_config(PRETRAIN, {'strategy': 'block'})
    for key in ('find_unused_parameters', 'model_wrapper_cfg', 'sync_bn', 'compile'):
        assert load_config(PRETRAIN, {key: True})[key] is True


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').glob('[a-z]*/**/*.py')), ids=lambda path: path.stem)
def test_every_config_of_the_project_loads(path):
    cfg = load_config(path)
    assert {'model', 'default_scope'} <= set(cfg) and ('test_dataloader' in cfg or 'knn' in cfg)


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


def test_a_config_that_mmengine_dumped_loads(tmp_path):
    for path in ('pretrain/bootmae_vitb', 'seg/bootmae_vitb_upernet_ade20k', 'det/bootmae_vitb_mask_rcnn_1x_coco'):
        cfg = load_config(ROOT / f'configs/{path}.py', {'data_root': '/x'})
        cfg.dump(tmp_path / 'dumped.py')
        again = load_config(tmp_path / 'dumped.py')
        assert again.model == cfg.model and again.train_dataloader.dataset.data_root == '/x'
        (tmp_path / 'child.py').write_text("_base_ = './dumped.py'\nrandomness = dict(seed=3)\n")
        assert load_config(tmp_path / 'child.py').randomness.seed == 3


def test_child_configs_in_json_and_yaml(tmp_path):
    (tmp_path / 'child.yaml').write_text(f'_base_: {PRETRAIN}\nmasking:\n  ratio: 0.5\n')
    cfg = load_config(tmp_path / 'child.yaml')
    assert cfg.train_dataloader.dataset.masking.ratio == 0.5 and cfg.masking.max_block == 60
    (tmp_path / 'child.yaml').write_text(f'_base_: {PRETRAIN}\ntint: 3\n')
    with pytest.raises(ValueError, match="nothing reads the key 'tint'"):
        load_config(tmp_path / 'child.yaml')


@pytest.mark.parametrize(
    'lines',
    [
        "_base_.train_pipeline.insert(1, dict(type='NEW'))\n"
        'train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline))\n',
        "train_pipeline = _base_.train_pipeline\ntrain_pipeline.insert(1, dict(type='NEW'))\n"
        'train_dataloader = dict(dataset=dict(pipeline=train_pipeline))\n',
        "_base_['train_pipeline'].insert(1, dict(type='NEW'))\n",
    ],
)
@pytest.mark.parametrize('options', [{}, {'train_pipeline.2.crop_ratio_range': (0.3, 1.0)}])
def test_a_pipeline_that_is_changed_in_place(tmp_path, lines, options):
    child = tmp_path / 'child.py'
    child.write_text(f'_base_ = {PRETRAIN!r}\n{lines}')
    pipeline = load_config(child, options).train_dataloader.dataset.pipeline
    assert [step['type'] for step in pipeline].count('NEW') == 1 and len(pipeline) == 5
    assert tuple(pipeline[2].crop_ratio_range) == ((0.3, 1.0) if options else (0.2, 1.0))


def test_names_that_depend_on_each_other(tmp_path):
    (tmp_path / 'base.py').write_text(
        'img: int = 224\ngrid, ratio = img // 16, 0.75\nmasking = dict(grid_size=grid, ratio=ratio)\n'
        'train_dataloader = dict(dataset=dict(masking=masking, img=img))\n'
    )
    child = tmp_path / 'child.py'
    child.write_text("_base_ = './base.py'\nimg = 112\nmasking = dict(ratio=0.5)\n")
    wanted = dict(masking=dict(grid_size=7, ratio=0.5), img=112)
    assert load_config(child).train_dataloader.dataset == wanted
    found = load_config(tmp_path / 'base.py', {'img': 112, 'masking.ratio': 0.5})
    assert found.train_dataloader.dataset == wanted


def test_options_for_places_that_do_not_exist():
    for key in ('train_pipeline.9.scale', 'train_pipeline.one.scale', 'data_root.x'):
        with pytest.raises(ValueError, match=f'--cfg-options {key}: there is no such place'):
            load_config(PRETRAIN, {key: 1})


def test_a_child_config_sets_a_nested_key_at_the_top(tmp_path):
    child = tmp_path / 'child.py'
    child.write_text(f'_base_ = {PRETRAIN!r}\nlr = 1e-3\n')
    with pytest.raises(ValueError, match="'lr'; the key that has an effect is optim_wrapper.optimizer.lr"):
        load_config(child)


@pytest.mark.parametrize(
    ('text', 'current', 'value'),
    [
        ('[mIoU,mAcc]', 'mIoU', ['mIoU', 'mAcc']),
        ('.jpg,.png', None, ['.jpg', '.png']),
        ('cat,dog', None, ['cat', 'dog']),
        ("'a','b'", ['c'], ['a', 'b']),
        ("[a, 'b, c']", None, ['a', 'b, c']),
        ('1,', [3], [1]),
        ('/a,b', None, '/a,b'),
    ],
)
def test_lists_on_the_command_line(text, current, value):
    assert parse_value(text, current) == value


def test_options_with_delete_apply_together():
    options = {'model.teacher._delete_': True, 'model.teacher.checkpoint': 'x.pth', 'model.teacher.prefix': 'backbone.'}
    cfg = load_config(ROOT / 'configs/pretrain/ablations/frozen_teacher.py', options)
    assert cfg.model.teacher == dict(checkpoint='x.pth', prefix='backbone.')
    assert '_delete_' not in cfg.model.teacher and options['model.teacher._delete_'] is True
