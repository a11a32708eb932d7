"""Encoders of other libraries: features equal those of the library, and a run starts from them."""

import json
from functools import partial

import numpy as np
import pytest
import timm
import timm.models.vision_transformer as of_timm
import torch
from mmpretrain.models.utils import resize_pos_embed
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import bootmae_mm
from bootmae_mm.checkpoints.sources import read_source
from bootmae_mm.engine.launch import read_config
from bootmae_mm.export.timm import timm_config
from bootmae_mm.models import BootMAEViT
from bootmae_mm.registry import MODELS
from bootmae_mm.validation import ConfigError
from tests.checkpoints.test_official import official_checkpoint
from tests.conftest import ROOT, write_images
from tests.features.runs import write_checkpoint

SIZES = dict(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96, image_size=32, patch_size=8
)
KINDS = ('ViTModel', 'ViTForImageClassification', 'Dinov2Model', 'CLIPVisionModel', 'CLIPModel')


@torch.no_grad()
def randomized(model):
    for parameter in model.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def timm_model(**options):
    sizes = dict(img_size=32, patch_size=8, embed_dim=128, depth=2, num_heads=2, mlp_ratio=1.5, num_classes=0)
    return randomized(of_timm.VisionTransformer(**{**sizes, **options}))


CLIP_OF_TIMM = dict(pre_norm=True, norm_layer=nn.LayerNorm)


@torch.no_grad()
@pytest.mark.parametrize('options', [{}, dict(init_values=0.1), CLIP_OF_TIMM], ids=['plain', 'layer scale', 'clip'])
def test_timm(tmp_path, options):
    """MAE, DINO and DINOv2 have these names too."""
    model = timm_model(**options)
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    images = torch.randn(2, 3, 32, 32)
    expected = model.forward_features(images)
    encoder = bootmae_mm.load_encoder(tmp_path / 'model.pth')
    torch.testing.assert_close(encoder(images).patches, expected[:, 1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder(images).cls, expected[:, 0], rtol=1e-4, atol=1e-4)
    source = read_source(tmp_path / 'model.pth')
    assert (
        '2 heads of 64 are assumed' in source.notes and "ImageNet's mean and std are assumed" in source.notes or options
    )


@torch.no_grad()
def test_a_folder_of_timm_says_the_rest(tmp_path):
    quick = partial(timm_model, **CLIP_OF_TIMM, num_heads=4, act_layer='quick_gelu')
    model = quick()
    save_file(model.state_dict(), tmp_path / 'model.safetensors')
    statistics = dict(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    config = dict(architecture='vit_base_patch16_clip_quickgelu_224', model_args=dict(num_heads=4))
    (tmp_path / 'config.json').write_text(json.dumps(dict(config, pretrained_cfg=statistics)))
    images = torch.randn(2, 3, 32, 32)
    encoder = bootmae_mm.load_encoder(tmp_path)
    torch.testing.assert_close(encoder(images).patches, model.forward_features(images)[:, 1:], rtol=1e-4, atol=1e-4)
    assert encoder.preprocessing.mean == pytest.approx((0.1, 0.2, 0.3))
    assert encoder.preprocessing.std == pytest.approx((0.4, 0.5, 0.6)) and not read_source(tmp_path).notes


@torch.no_grad()
@pytest.mark.parametrize('kind', KINDS)
def test_transformers(tmp_path, kind):
    transformers = pytest.importorskip('transformers')
    if kind == 'CLIPModel':
        text = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
        config = transformers.CLIPConfig(text_config=text, vision_config=SIZES, projection_dim=16)
    else:
        name = {'CLIPVisionModel': 'CLIPVisionConfig', 'Dinov2Model': 'Dinov2Config'}.get(kind, 'ViTConfig')
        config = getattr(transformers, name)(**SIZES)
        if kind == 'Dinov2Model':
            config.mlp_ratio = 2
    model = randomized(getattr(transformers, kind)(config))
    model.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    inner = getattr(model, 'vision_model', getattr(model, 'vit', model))
    expected = inner(images).last_hidden_state
    if 'CLIP' in kind:  # which normalizes the class token only
        expected = inner.post_layernorm(expected)
    encoder = bootmae_mm.load_encoder(tmp_path)
    torch.testing.assert_close(encoder(images).patches, expected[:, 1:], rtol=1e-4, atol=1e-4)
    mean = 255 * encoder.preprocessing.mean[0]
    assert mean == pytest.approx(122.771 if 'CLIP' in kind else 123.675, abs=1e-3)


def test_the_statistics_of_a_folder_of_transformers(tmp_path):
    transformers = pytest.importorskip('transformers')
    randomized(transformers.ViTModel(transformers.ViTConfig(**SIZES))).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(tmp_path)
    source = read_source(tmp_path)
    assert source.mean == (127.5,) * 3 and source.std == (63.75,) * 3 and not source.notes
    assert (source.interpolation, source.crop_pct, source.squash) == ('bilinear', 1.0, True)  # to 224 x 224
    for processor, crop in ((transformers.CLIPImageProcessor(), 1.0), (transformers.BitImageProcessor(), 1.0),
                            (transformers.BitImageProcessor(size={'shortest_edge': 256}), 224 / 256)):  # fmt: skip
        processor.save_pretrained(tmp_path)  # of DINOv2: the last
        source = read_source(tmp_path)
        assert (source.interpolation, source.crop_pct, source.squash) == ('bicubic', crop, False)


@pytest.mark.parametrize('size', [{'height': 32, 'width': 32}, {'shortest_edge': 40}])
def test_pictures_are_resized_as_transformers_does(tmp_path, size):
    transformers = pytest.importorskip('transformers')
    randomized(transformers.ViTModel(transformers.ViTConfig(**SIZES))).save_pretrained(tmp_path)
    if 'height' in size:
        processor = transformers.ViTImageProcessor(size=size)
    else:
        processor = transformers.BitImageProcessor(size=size, crop_size=32)
    processor.save_pretrained(tmp_path)
    coarse = Image.fromarray(np.random.RandomState(0).randint(0, 255, (6, 9, 3), dtype=np.uint8))
    picture = coarse.resize((90, 60), Image.Resampling.BICUBIC)
    expected = processor(picture, return_tensors='pt')['pixel_values'][0]
    assert (bootmae_mm.load_encoder(tmp_path).preprocess(picture) - expected).abs().mean() < 0.02


def test_pictures_are_resized_as_timm_does(tmp_path):
    model = timm_model()
    save_file(model.state_dict(), tmp_path / 'model.safetensors')
    rng = np.random.RandomState(0)
    coarse = Image.fromarray(rng.randint(0, 255, (6, 9, 3), dtype=np.uint8))
    picture = coarse.resize((90, 60), Image.Resampling.BICUBIC)
    for interpolation, crop, mode in (
        ('bilinear', 1.0, 'center'),
        ('bicubic', 0.8, 'center'),
        ('bicubic', 0.8, 'squash'),
    ):
        given = dict(input_size=[3, 32, 32], interpolation=interpolation, crop_pct=crop, mean=[0.5] * 3, std=[0.5] * 3)
        given['crop_mode'] = mode
        config = dict(architecture='vit_base_patch16_224', model_args=dict(num_heads=4), pretrained_cfg=given)
        (tmp_path / 'config.json').write_text(json.dumps(config))
        encoder = bootmae_mm.load_encoder(tmp_path)
        assert (encoder.preprocessing.interpolation, encoder.preprocessing.crop_pct) == (interpolation, crop)
        transform = timm.data.create_transform(**{**given, 'input_size': (3, 32, 32)}, is_training=False)
        expected = transform(picture)
        found = encoder.preprocess(picture)
        exported = timm_config(encoder.backbone.arch_settings, (32, 32), 8, encoder.preprocessing)
        assert exported['pretrained_cfg']['crop_mode'] == mode
        assert (found - expected).abs().mean() < 0.02  # in -1..1; sizes between whole pixels are rounded differently


def test_what_is_no_plain_vision_transformer_is_refused(tmp_path):
    state = timm_model(reg_tokens=4).state_dict()
    torch.save(state, tmp_path / 'registers.pth')
    with pytest.raises(ConfigError, match='has register tokens'):
        read_source(tmp_path / 'registers.pth')
    torch.save(timm_model(embed_dim=96).state_dict(), tmp_path / 'heads.pth')
    with pytest.raises(ConfigError, match='does not say how many heads .* width of 96 .* divisible by 64'):
        read_source(tmp_path / 'heads.pth')
    torch.save(timm_model(qk_norm=True).state_dict(), tmp_path / 'norms.pth')
    with pytest.raises(ConfigError, match='is no plain vision transformer: it has blocks.0.attn.q_norm.weight'):
        read_source(tmp_path / 'norms.pth')
    torch.save(dict(weight=torch.zeros(3)), tmp_path / 'other.pth')
    with pytest.raises(ConfigError, match='holds no plain vision transformer'):
        read_source(tmp_path / 'other.pth')


def test_a_model_in_the_cache_of_the_hub(tmp_path, monkeypatch):
    """As huggingface_hub keeps it; read without a network."""
    hub = pytest.importorskip('huggingface_hub')
    folder = tmp_path / 'models--someone--vit/snapshots/abc'
    folder.mkdir(parents=True)
    (tmp_path / 'models--someone--vit/refs').mkdir()
    (tmp_path / 'models--someone--vit/refs/main').write_text('abc')
    model = timm_model()
    save_file(model.state_dict(), folder / 'model.safetensors')
    (folder / 'config.json').write_text(json.dumps(dict(architecture='vit_base_patch16_224')))
    real = hub.snapshot_download
    monkeypatch.setattr(hub, 'snapshot_download', partial(real, cache_dir=tmp_path, local_files_only=True))
    images = torch.randn(1, 3, 32, 32)
    found = bootmae_mm.load_encoder('hf-hub:someone/vit')(images).patches
    torch.testing.assert_close(found, model.forward_features(images)[:, 1:], rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match='cannot read hf-hub:someone/else'):
        bootmae_mm.load_encoder('hf-hub:someone/else')


def configured(image_folder, tmp_path, init, options=None):
    path = ROOT / 'configs/pretrain/bootmae_auto.py'
    return read_config(str(path), {'data_root': str(image_folder), 'init': str(init), **(options or {})})


@torch.no_grad()
def test_a_run_starts_from_another_encoder(image_folder, tmp_path):
    """Other images, patches and channels: tokens of images that are alike are nearly the same."""
    model = timm_model(init_values=0.1)
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    cfg = configured(image_folder, tmp_path, tmp_path / 'model.pth', {'img_size': 32, 'patch_size': 8})
    assert cfg.model.data_preprocessor.mean == [123.675, 116.28, 103.53]
    built = MODELS.build(cfg.model)
    built.init_weights()
    images, ids = torch.randn(2, 3, 32, 32), torch.arange(16).expand(2, -1)
    found = built.backbone.encode_patches(images, ids, norm=True)
    torch.testing.assert_close(found, model.forward_features(images)[:, 1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(built.teacher.encode_patches(images, ids, norm=True), found)

    gray = {'model.backbone.in_channels': 1, 'img_size': 48, 'patch_size': 12}
    cfg = configured(image_folder, tmp_path, tmp_path / 'model.pth', gray)
    assert cfg.model.data_preprocessor.mean == [pytest.approx(343.485 / 3)]
    other = MODELS.build(cfg.model)
    other.init_weights()
    weight = model.patch_embed.proj.weight.sum(dim=1, keepdim=True)
    small = torch.randn(2, 1, 32, 32)
    patches = small.unfold(2, 8, 8).unfold(3, 8, 8).reshape(-1, 1, 8, 8)
    large = torch.nn.functional.interpolate(patches, (12, 12), mode='bicubic', antialias=True)
    tokens = torch.nn.functional.conv2d(large, other.backbone.patch_embed.projection.weight).flatten(1)
    expected = torch.nn.functional.conv2d(patches, weight).flatten(1)
    torch.testing.assert_close(tokens, expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_run_of_this_project(image_folder, tmp_path):
    """Architecture by name, variants, and a grid that is not square."""
    arch = dict(embed_dims=64, num_layers=2, num_heads=4, feedforward_channels=96)
    act = dict(act_cfg=dict(type='bootmae_mm.QuickGELU'))
    path, model = write_checkpoint(
        tmp_path / 'run', arch=arch, img_size=(16, 64), patch_size=8, layer_scale_init_value=0.3, layer_cfgs=act
    )
    source = read_source(path)
    assert source.backbone['arch'] == arch and source.backbone['img_size'] == (16, 64)
    cfg = configured(image_folder, tmp_path, path, {'img_size': (16, 64), 'patch_size': 8})
    built = MODELS.build(cfg.model)
    built.init_weights()
    images, ids = torch.randn(2, 3, 16, 64), torch.arange(16).expand(2, -1)
    expected = model.backbone.encode_patches(images, ids, norm=True)
    torch.testing.assert_close(built.backbone.encode_patches(images, ids, norm=True), expected)
    torch.testing.assert_close(bootmae_mm.load_encoder(path)(images).patches, expected, rtol=1e-4, atol=1e-4)
    # 2 x 8 patches are as many as 4 x 4.
    cfg = configured(image_folder, tmp_path, path, {'img_size': (32, 32), 'patch_size': 8})
    other = MODELS.build(cfg.model)
    other.init_weights()
    wanted = resize_pos_embed(model.backbone.pos_embed, (2, 8), (4, 4), 'bicubic')
    torch.testing.assert_close(other.backbone.pos_embed, wanted)


@pytest.mark.parametrize('name, heads', [('t', 3), ('s', 6), ('h', 16)])
def test_heads_of_the_named_architectures(tmp_path, name, heads):
    arch = {**BootMAEViT.arch_zoo[name], 'num_layers': 1}
    path, _ = write_checkpoint(tmp_path, arch=arch, img_size=32, patch_size=8)
    checkpoint = torch.load(path)
    state = {k.removeprefix('backbone.'): v for k, v in checkpoint['state_dict'].items() if k.startswith('backbone.')}
    torch.save(state, tmp_path / 'bare.pth')
    assert read_source(tmp_path / 'bare.pth').backbone['arch'] == arch
    checkpoint['meta']['cfg'] = f"model = dict(backbone=dict(type='bootmae_mm.BootMAEViT', arch={name!r}, img_size=32))"
    torch.save(checkpoint, tmp_path / 'named.pth')
    assert read_source(tmp_path / 'named.pth').backbone['arch'] == arch == {**arch, 'num_heads': heads}


def test_settings_of_the_user_are_kept(image_folder, tmp_path):
    torch.save(timm_model().state_dict(), tmp_path / 'model.pth')
    child = tmp_path / 'child.py'
    child.write_text(
        f"_base_ = 'bootmae_mm::pretrain/bootmae_auto.py'\ninit = {str(tmp_path / 'model.pth')!r}\n"
        f'data_root = {str(image_folder)!r}\nimg_size = 32\npatch_size = 8\n'
        'model = dict(data_preprocessor=dict(mean=[10.0, 20.0, 30.0]))\n'
    )
    cfg = read_config(str(child), {'param_scheduler.1.eta_min': 1e-6})
    assert cfg.model.data_preprocessor.mean == [10, 20, 30]
    assert cfg.model.data_preprocessor.std == [58.395, 57.12, 57.375]
    assert cfg.param_scheduler[1].eta_min == 1e-6
    child.write_text(child.read_text().replace('model = dict(', "model = dict(backbone=dict(arch='b'), "))
    with pytest.raises(ConfigError, match=r"another model than model.backbone.arch='b': embed_dims 128 instead of 768"):
        read_config(str(child))
    # An assumed number of heads gives way to a given one.
    arch = dict(embed_dims=128, num_layers=2, num_heads=8, feedforward_channels=192)
    cfg = configured(image_folder, tmp_path, tmp_path / 'model.pth', {'model.backbone.arch': arch})
    assert cfg.model.backbone.arch.num_heads == 8


@pytest.mark.slow
def test_a_run_resumes_without_the_weights_it_started_from(tmp_path):
    images = write_images(tmp_path / 'images', 4)
    torch.save(timm_model(init_values=0.1).state_dict(), tmp_path / 'model.pth')
    options = {'img_size': 32, 'patch_size': 8, 'model.neck.pixel.width': 16}
    run = dict(batch_size=2, options=options)
    bootmae_mm.pretrain(images, tmp_path / 'run', init=tmp_path / 'model.pth', epochs=1, **run)
    (tmp_path / 'model.pth').unlink()
    for epochs, init in ((2, tmp_path / 'model.pth'), (3, None)):  # the same command, and one without init
        last = bootmae_mm.pretrain(images, tmp_path / 'run', init=init, epochs=epochs, resume=True, **run)
        assert last.name == f'epoch_{epochs}.pth'
    encoder = bootmae_mm.load_encoder(tmp_path / 'run')
    assert encoder.preprocessing.mean[0] == pytest.approx(123.675 / 255)
    assert 'layers.0.attn.gamma1.weight' in encoder.backbone.state_dict()


@pytest.mark.slow
def test_pretraining_from_an_encoder_in_one_line(tmp_path):
    images = write_images(tmp_path / 'images', 6)
    torch.save(timm_model().state_dict(), tmp_path / 'model.pth')
    options = {
        'img_size': 32,
        'patch_size': 8,
        'optim_wrapper.optimizer.lr': 0.0,
        'param_scheduler': [],
        'model.neck.pixel.width': 16,
    }
    bootmae_mm.pretrain(images, tmp_path / 'run', init=tmp_path / 'model.pth', epochs=1, batch_size=3, options=options)
    found, expected = (bootmae_mm.load_encoder(tmp_path / name) for name in ('run', 'model.pth'))
    pictures = sorted(images.rglob('*.png'))
    torch.testing.assert_close(found(pictures).mean, expected(pictures).mean, rtol=1e-4, atol=1e-4)
    (log,) = (tmp_path / 'run').rglob('*.log')
    assert "2 heads of 64 are assumed; ImageNet's mean and std are assumed" in log.read_text()


def test_a_contradiction_is_refused(image_folder, tmp_path):
    torch.save(timm_model().state_dict(), tmp_path / 'model.pth')
    message = (
        r"is another model than model.backbone.arch='s': embed_dims 128 instead of 384, num_layers 2 instead of 12"
    )
    with pytest.raises(ConfigError, match=message):
        configured(image_folder, tmp_path, tmp_path / 'model.pth', {'model.backbone.arch': 's'})
    with pytest.raises(ConfigError, match='init and load_from both name weights'):
        configured(image_folder, tmp_path, tmp_path / 'model.pth', {'load_from': 'x.pth'})


def test_the_authors_checkpoint_without_a_config(tmp_path):
    torch.save(official_checkpoint(dims=24, depth=2), tmp_path / 'theirs.pth')
    with pytest.raises(ConfigError, match='does not say how many heads'):
        read_source(tmp_path / 'theirs.pth')
