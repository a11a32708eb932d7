"""Configs with other targets and masks: what they change; tiny forms of them train, resume exactly and export."""

import numpy as np
import pytest
import timm
import torch
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from mmpretrain.models import VQKD

from bootmae_mm.engine.launch import prepare, read_config
from bootmae_mm.engine.runner import Runner
from bootmae_mm.export.exporting import read_encoder
from bootmae_mm.registry import MODELS
from bootmae_mm.validation import ConfigError
from tests.configs.test_pretrain_configs import differences, read
from tests.conftest import TINY_ARCH, build, run_config, tiny_config

TARGET = 'model.feature_head.target'
MASKS = [f'{loader}.dataset.masking' for loader in ('train_dataloader', 'test_dataloader')] + ['masking']
BLOCKS = {f'{place}.{key}': 'gone' for place in MASKS for key in ('strategy', 'min_block', 'max_block')}
CHANGES = {
    'targets/hog': {'model.feature_head.type': 'bootmae_mm.BootMAEHead', f'{TARGET}.type': 'bootmae_mm.HOGTarget'},
    'targets/data2vec_top8': {f'{TARGET}.type': 'bootmae_mm.TeacherTarget', f'{TARGET}.top_k': 8},
    'targets/dbot_stage2': {
        'model.teacher.checkpoint': 'work_dirs/bootmae_vitb/epoch_800.pth',
        'model.teacher.prefix': 'teacher.',
    },
    'targets/clip': {
        f'{TARGET}.type': 'bootmae_mm.FrozenTarget',
        f'{TARGET}.encoder.type': 'TIMMBackbone',
        f'{TARGET}.encoder.model_name': 'vit_base_patch16_clip_224',
        f'{TARGET}.checkpoint': 'checkpoints/vit_base_patch16_clip_224.safetensors',
        f'{TARGET}.features': 'block',
        f'{TARGET}.mean': (122.771, 116.746, 104.094),
        f'{TARGET}.std': (68.501, 66.632, 70.323),
    },
    'targets/dinov2': {
        f'{TARGET}.type': 'bootmae_mm.FrozenTarget',
        f'{TARGET}.encoder.type': 'TIMMBackbone',
        f'{TARGET}.encoder.model_name': 'vit_base_patch14_dinov2',
        f'{TARGET}.checkpoint': 'checkpoints/dinov2_vitb14_pretrain.pth',
        f'{TARGET}.patch_size': 14,
    },
    'capi_loss': {
        'model.feature_head.type': 'bootmae_mm.ClusterHead',
        'model.feature_head.weighted': False,
        f'{TARGET}.type': 'bootmae_mm.ClusterTarget',
        f'{TARGET}.clusters': 16384,
    },
    'hivit': {
        'model.backbone.type': 'bootmae_mm.BootMAEHiViT',
        'model.backbone.arch': 'base',
    },
    'masks/attmask': {
        'model.masking.type': 'bootmae_mm.AttentionMasking',
        'model.masking.strategy': 'high',
        **{f'{place}.strategy': 'random' for place in MASKS},
    },
    'masks/inverse_block': {**BLOCKS, **{f'{place}.type': 'bootmae_mm.InverseBlockSampling' for place in MASKS}},
    'masks/uniform': {
        **BLOCKS,
        **{f'{place}.type': 'bootmae_mm.UniformSampling' for place in MASKS},
        **{f'{place}.ratio': 'gone' for place in MASKS},
    },
}


@pytest.mark.parametrize('name', CHANGES)
def test_config_differs_in_nothing_else(name):
    assert differences(name) == CHANGES[name]


def test_attmask_hint_differs_from_attmask():
    found, base = differences('masks/attmask_hint'), CHANGES['masks/attmask']
    changed = {key: value for key, value in found.items() if base.get(key) != value}
    assert changed == {
        'model.masking.strategy': 'hint',
        'model.masking.hint_share': 0.1,
        'model.masking.shown_share': 0.3,
    }


def test_hpm():
    cfg = read('masks/hpm')
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert model.branches == ['pixel', 'feature', 'difficulty'] and model.difficulty_head.target.branch == 'pixel'
    assert cfg.default_hooks.masking == dict(type='bootmae_mm.MaskingScheduleHook', end=0.5)
    changed = {key.split('.')[0] for key in differences('masks/hpm')}
    assert changed == {'model', 'default_hooks', 'masking', 'train_dataloader', 'test_dataloader'}


def test_cmae():
    cfg = read('cmae')
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert model.branches == ['pixel', 'contrast']
    head = model.contrast_head
    assert (head.projector.fc0.in_features, head.projector.fc0.out_features) == (768, 1536)
    assert head.projector.fc1.out_features == head.predictor.fc1.out_features == 256
    img = np.random.randint(0, 255, (300, 400, 3), dtype=np.uint8)
    for pipeline in (cfg.train_pipeline, cfg.test_pipeline):
        sample = Compose(pipeline[1:])(dict(img=img))
        assert sample['inputs'].shape == sample['view'].shape == (3, 224, 224)
    assert torch.equal(sample['inputs'], sample['view'])  # without shifts and changes of color in evaluation


def test_codes_of_vqkd():
    cfg = read('targets/vqkd')
    with torch.device('meta'):
        head = MODELS.build(cfg.model).feature_head
    assert head.projection.out_features == 8192 and head.target.kind == 'codes'
    assert head.target.tokenizer.module.encoder.patch_resolution == (14, 14)


def test_statistics_of_clip_and_dinov2_are_those_of_timm():
    for name in ('clip', 'dinov2'):
        target = read(f'targets/{name}').model.feature_head.target
        cfg = timm.get_pretrained_cfg(target.encoder.model_name)
        for key, values in (('mean', cfg.mean), ('std', cfg.std)):
            if key in target:
                assert target[key] == pytest.approx([255 * value for value in values], abs=1e-3)
            else:
                assert values == {'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225)}[key]


def feature_target(target, **head):
    return tiny_config(feature_head=dict(type='bootmae_mm.BootMAEFeatureHead', target=target, **head))


def second_stage(folder):
    model = build(tiny_config())
    torch.save(dict(state_dict=model.state_dict()), folder / 'first.pth')
    return tiny_config(teacher=dict(checkpoint=str(folder / 'first.pth'), prefix='teacher.'))


def of_timm(folder):
    options = dict(patch_size=4, depth=2)
    vit = timm.create_model('vit_tiny_patch16_224', img_size=(16, 24), num_classes=0, **options)
    torch.save(vit.state_dict(), folder / 'vit.pth')
    encoder = dict(type='TIMMBackbone', model_name='vit_tiny_patch16_224', **options)
    target = dict(type='bootmae_mm.FrozenTarget', encoder=encoder, checkpoint=str(folder / 'vit.pth'), patch_size=4)
    return feature_target(target)


def codes(folder):
    encoder = dict(
        arch=dict(TINY_ARCH),
        img_size=(32, 32),
        patch_size=8,
        out_type='featmap',
        use_abs_pos_emb=True,
        use_shared_rel_pos_bias=False,
        layer_scale_init_value=0.0,
    )
    vqkd = VQKD(encoder, num_embed=16, embed_dims=8, quantize_kmeans_init=False)
    torch.save(vqkd.state_dict(), folder / 'vqkd.pth')
    tokenizer = dict(type='VQKD', encoder_config=encoder, num_embed=16, embed_dims=8)
    target = dict(
        type='bootmae_mm.CodeTarget', tokenizer=tokenizer, checkpoint=str(folder / 'vqkd.pth'), codes=16, patch_size=8
    )
    config = feature_target(target, normalize=False, loss=dict(type='bootmae_mm.PatchCrossEntropy'))
    config['backbone']['img_size'] = (32, 32)
    return config


def third_branch(folder):
    config = tiny_config(masking=dict(type='bootmae_mm.AttentionMasking', strategy='hint', hint_share=0.5))
    config['neck']['hog'] = dict(width=8, depth=1, context_block=1)
    config['hog_head'] = dict(
        type='bootmae_mm.BootMAEHead',
        target=dict(type='bootmae_mm.HOGTarget'),
        loss=dict(type='bootmae_mm.PatchCosine'),
    )
    config['hog_weight'] = 0.5
    return config


def contrast(folder):
    config = tiny_config(feature_head=None)
    config['neck'].update(feature=None, contrast=dict(depth=1))
    config['contrast_head'] = dict(type='bootmae_mm.ContrastiveHead', hidden=16, dims=8, norm_cfg=dict(type='SyncBN'))
    return config


def hpm(folder):
    config = read('masks/hpm').model.to_dict()
    config = tiny_config(masking=config['masking'], difficulty_head=config['difficulty_head'])
    config['neck']['difficulty'] = dict(width=8, depth=1, context_block=None)
    return config


VARIANTS = {
    'hog': lambda folder: feature_target(dict(type='bootmae_mm.HOGTarget')),
    'top 2': lambda folder: feature_target(
        dict(type='bootmae_mm.TeacherTarget', top_k=2), loss=dict(type='bootmae_mm.PatchSmoothL1', beta=2.0)
    ),
    'second stage': second_stage,
    'timm': of_timm,
    'codes': codes,
    'third branch': third_branch,
    'attention': lambda folder: tiny_config(masking=dict(type='bootmae_mm.AttentionMasking')),
    'hpm': hpm,
    'hivit': lambda folder: tiny_config(
        backbone=dict(
            type='bootmae_mm.BootMAEHiViT',
            arch=dict(embed_dims=32, depths=[1, 1, 2], num_heads=2),
            img_size=(32, 48),
            patch_size=8,
        )
    ),
    'contrast': contrast,
    'clusters': lambda folder: tiny_config(
        feature_head=dict(type='bootmae_mm.ClusterHead', target=dict(type='bootmae_mm.ClusterTarget', clusters=8))
    ),
    'InverseBlockSampling': lambda folder: tiny_config(),
    'UniformSampling': lambda folder: tiny_config(),
}


@pytest.mark.parametrize('name', VARIANTS)
def test_variant_trains_resumes_exactly_and_exports(tmp_path, image_folder, name):
    path = run_config(tmp_path / 'config.py', image_folder, VARIANTS[name](tmp_path), epochs=2)
    text = path.read_text()
    if name == 'codes':
        text = text.replace('scale=(32, 48)', 'scale=(32, 32)').replace('(4, 6)', '(4, 4)')
    if name.endswith('Sampling'):
        text = text.replace('ratio=0.75, min_block=2, max_block=6, roll=4', f'type="bootmae_mm.{name}"')
    if name == 'contrast':
        text = text.replace('scale=(32, 48)', 'scale=(36, 52)', 1)
        text = text.replace(
            "dict(type='bootmae_mm.RandomFlip'",
            "dict(type='bootmae_mm.ShiftedView', size=(32, 48)),\n    dict(type='bootmae_mm.RandomFlip'",
        )
    if name == 'hpm':
        text += "default_hooks['masking'] = dict(type='bootmae_mm.MaskingScheduleHook', end=0.5)\n"
    if '.AttentionMasking' in text or '.PredictedErrorMasking' in text:
        text = text.replace('ratio=0.75, min_block=2, max_block=6, roll=4', "ratio=0.75, strategy='random'")
    path.write_text(text)
    states = []
    for work, options in (('all', {}), ('part', {'resume': True, 'load_from': str(tmp_path / 'all/epoch_1.pth')})):
        cfg = read_config(str(path), options, str(tmp_path / work))
        prepare(cfg)
        runner = Runner.from_cfg(cfg)
        model = runner.train()
        states.append(model.state_dict())
    if name == 'hpm':
        assert model.masking.share == 0.5 and any(key.startswith('masking.decoder.') for key in states[0])
    first = torch.load(tmp_path / 'all/epoch_1.pth', weights_only=False)['state_dict']
    assert states[0].keys() == states[1].keys() == first.keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert not all(torch.equal(value, first[key]) for key, value in states[0].items())
    assert any('target' in key for key in first) == (name in ('clusters', 'contrast'))
    loss = 'contrast_loss' if name == 'contrast' else 'feature_loss'
    logged = runner.message_hub.get_scalar(f'train/{loss}').current()
    assert 0 < logged < 10
    if name == 'hivit':  # loads in mmpretrain's, see tests/models/test_hivit.py
        with pytest.raises(ConfigError, match='is a BootMAEHiViT, which has no export: its weights have mmpretrain'):
            read_encoder(tmp_path / 'all/epoch_2.pth')
        return
    encoder = read_encoder(tmp_path / 'all/epoch_2.pth')
    image = torch.randn(1, 3, *encoder.img_size)
    with torch.no_grad():
        assert torch.equal(encoder(image)[0][:, 0], model.eval().backbone(image)[0])  # the class token
