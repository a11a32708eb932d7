"""Targets: by hand, against other implementations, and what they refuse."""

import json

import pytest
import timm
import torch
import torch.nn.functional as F
from mmpretrain.models import VQKD, VisionTransformer
from mmpretrain.models.selfsup.cae import DALLEEncoder
from mmpretrain.models.selfsup.maskfeat import HOGGenerator

from bootmae_mm.models import BootMAEViT, CodeTarget, FrozenTarget, HOGTarget, PatchSmoothL1, PixelTarget, TeacherTarget
from bootmae_mm.models.step import Step, TeacherView
from bootmae_mm.models.targets.base import ImagesFor
from bootmae_mm.models.tokens import take_tokens
from bootmae_mm.validation import ConfigError, MissingFileError
from tests.conftest import ROOT, TINY_ARCH, build, model_info, random_batch, tiny_config

IDS = torch.tensor([[4, 0, 5], [1, 2, 3]])


@pytest.mark.parametrize('normalize', ['channel', 'patch', 'none'])
def test_pixels_by_hand(normalize):
    target = PixelTarget(model_info(), normalize)
    images = torch.rand(2, 3, 8, 12)
    patch = images[0, :, 4:8, 4:8]
    wanted = {
        'channel': torch.stack([(c - c.mean()) / (((c - c.mean()) ** 2).mean() + 1e-5).sqrt() for c in patch]),
        'patch': (patch - patch.mean()) / (patch.var() + 1e-6).sqrt(),
        'none': patch,
    }[normalize]
    torch.testing.assert_close(target(images, IDS)[0, 0], wanted)
    assert target.dims == wanted.numel()


def test_images_for_another_network():
    info = model_info(mean=torch.tensor([100.0, 110, 120]), std=torch.tensor([50.0, 60, 70]))
    pixels = torch.rand(2, 3, 8, 12) * 255
    images = (pixels - info.mean[:, None, None]) / info.std[:, None, None]
    mean, std = (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)
    wanted = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(ImagesFor(info, 4, mean, std)(images), wanted, rtol=1e-5, atol=1e-4)
    larger = F.interpolate(wanted, (28, 42), mode='bicubic', antialias=True)
    torch.testing.assert_close(ImagesFor(info, 14, mean, std)(images), larger, rtol=1e-5, atol=1e-4)
    with pytest.raises(ConfigError, match='mean and std of the target must have 3 numbers, but have 1 and 3'):
        ImagesFor(info, 4, (1.0,), std)


@pytest.fixture
def teacher():
    return BootMAEViT(arch=dict(TINY_ARCH), img_size=(32, 48), patch_size=8).eval()


@pytest.mark.parametrize('masks', [1, 2])
@pytest.mark.parametrize('top_k', [1, 2, 3])
def test_features_of_the_last_blocks_by_hand(teacher, top_k, masks):
    batch = random_batch(batch=2 * masks)
    images, ids = batch['inputs'][:2], batch['ids_mask']
    x, outputs = teacher.embed_all(images), []
    for layer in teacher.layers:
        x = layer(x)
        outputs.append(x[:, 1:])
    image = torch.arange(len(ids))[:, None] // masks
    wanted = outputs[-1][image, ids]
    if top_k > 1:
        wanted = torch.stack([F.layer_norm(x, (24,)) for x in outputs[-top_k:]]).mean(0)[image, ids]
    step = Step(TeacherView(teacher, images, top_k))
    found = TeacherTarget(model_info(), top_k=top_k)(images, ids, step)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not found.requires_grad


def test_mean_of_blocks_is_that_of_data2vec():
    """Numbers of the authors' engine_for_cyclical.py, at af9a363."""
    reference = json.loads((ROOT / 'tests/reference/data2vec.json').read_text())
    *hidden, last = (torch.tensor(block) for block in reference['blocks'])  # (B, L, D) each
    ids = torch.tensor(reference['ids_mask'])

    class Teacher:
        num_extra_tokens = 0

        def encode_hidden(self, images, blocks):
            return hidden[-blocks:]

        def encode_last(self, x, ids, norm):
            return take_tokens(last, ids)

    view = TeacherView(Teacher(), torch.empty(2, 3, 1, 1), 3)
    found = TeacherTarget(model_info(), top_k=3)(torch.empty(0), ids, Step(view))
    torch.testing.assert_close(found, torch.tensor(reference['targets']))
    loss = PatchSmoothL1(reference['beta'])(torch.tensor(reference['prediction']), found).mean()
    assert loss.item() == pytest.approx(reference['loss'], rel=1e-5)


def test_a_step_runs_the_teacher_once_for_masks_and_targets(batch):
    config = tiny_config(masking=dict(type='bootmae_mm.AttentionMasking'))
    config['neck']['extra'] = dict(width=8)
    config['extra_head'] = dict(type='bootmae_mm.BootMAEHead', target=dict(type='bootmae_mm.TeacherTarget', top_k=2))
    model = build(config)
    calls = []
    model.teacher.layers[0].register_forward_hook(lambda *_: calls.append(1))
    losses = model.loss(**batch)
    assert len(calls) == 1
    assert {'extra_loss', 'extra_target_std', 'feature_loss', 'pixel_loss'} <= set(losses)


def test_top_k_is_limited():
    with pytest.raises(ConfigError, match='top_k must be at most the 3 blocks of the teacher, but is 4'):
        TeacherTarget(model_info(), top_k=4)
    with pytest.raises(ConfigError, match='norm=True is for top_k=1'):
        TeacherTarget(model_info(), norm=True, top_k=2)


def test_hog_is_that_of_mmpretrain():
    """On the one grid that mmpretrain's layout allows."""
    images = torch.randn(2, 3, 224, 224)
    target = HOGTarget(model_info(patch_size=16, grid_size=(14, 14)))
    ids = torch.rand(2, 196).argsort(1)
    wanted = HOGGenerator()(images)[torch.arange(2)[:, None], ids]
    found = target(images, ids)
    assert found.shape == (2, 196, 108) == (2, 196, target.dims)
    torch.testing.assert_close(found, wanted)


def test_hog_of_a_grid_that_is_not_square_is_that_of_its_tiles():
    """The inside of a patch, away from borders, does not depend on the rest of the image."""
    images = torch.randn(1, 3, 64, 96)
    found = HOGTarget(model_info(patch_size=16, grid_size=(4, 6)))(images, torch.arange(24)[None])
    square = HOGTarget(model_info(patch_size=16, grid_size=(4, 4)))(images[..., :64], torch.arange(16)[None])
    torch.testing.assert_close(found.view(4, 6, -1)[:, :3], square.view(4, 4, -1)[:, :3])


def test_hog_refuses_what_it_cannot_do():
    with pytest.raises(ConfigError, match='HOG needs images with 3 channels, but in_channels is 1'):
        HOGTarget(model_info(in_channels=1))
    with pytest.raises(ConfigError, match='patch_size 4 must be divisible by the 3 cells'):
        HOGTarget(model_info(), cells=3)


IMAGENET = dict(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


def timm_target(tmp_path, features, name='vit_tiny_patch16_224', **options):
    """A tiny ViT of timm with patches of 14 pixels, its file, and the target."""
    torch.manual_seed(1)
    vit = timm.create_model(name, patch_size=14, img_size=(28, 42), depth=2, num_classes=0, **options).eval()
    torch.save(vit.state_dict(), tmp_path / 'vit.pth')
    encoder = dict(type='TIMMBackbone', model_name=name, patch_size=14, depth=2, **options)
    target = FrozenTarget(
        model_info(), encoder, str(tmp_path / 'vit.pth'), features=features, patch_size=14, **IMAGENET
    )
    target.init_weights()
    return vit, target


@pytest.mark.parametrize('features', ['tokens', 'block', 'values'])
@pytest.mark.parametrize(
    'name', ['vit_tiny_patch16_224', 'vit_base_patch16_clip_224', 'vit_small_patch14_reg4_dinov2'], ids=str
)
def test_frozen_features_are_those_of_timm(tmp_path, features, name):
    """CLIP has a norm before the blocks, DINOv2 registers and layer scale; patches of 14 under those of 4."""
    vit, target = timm_target(tmp_path, features, name)
    images = torch.randn(2, 3, 8, 12)
    pixels = images * 127.5 + 127.5
    inputs = (pixels - torch.tensor(IMAGENET['mean'])[:, None, None]) / torch.tensor(IMAGENET['std'])[:, None, None]
    inputs = F.interpolate(inputs, (28, 42), mode='bicubic', antialias=True)
    with torch.no_grad():
        tokens = vit.forward_features(inputs)
        if features != 'tokens':
            x = vit.norm_pre(vit._pos_embed(vit.patch_embed(inputs)))
            x = vit.blocks[0](x)
            last = vit.blocks[1]
            tokens = last(x)
            if features == 'values':
                tokens = last.attn.qkv(last.norm1(x))[..., 2 * vit.embed_dim :]
    tokens = tokens[:, vit.num_prefix_tokens :]
    found = target(images, IDS)
    assert found.shape == (2, 3, target.dims)
    torch.testing.assert_close(found, tokens[torch.arange(2)[:, None], IDS], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('features', ['tokens', 'block', 'values'])
def test_frozen_features_are_those_of_mmpretrain(tmp_path, features):
    options = dict(arch=dict(TINY_ARCH), patch_size=4)
    vit = VisionTransformer(img_size=(8, 12), out_type='raw', **options)
    vit.eval()
    torch.save(dict(state_dict={f'backbone.{k}': v for k, v in vit.state_dict().items()}), tmp_path / 'vit.pth')
    encoder = dict(type='VisionTransformer', **options)
    target = FrozenTarget(
        model_info(),
        encoder,
        str(tmp_path / 'vit.pth'),
        prefix='backbone.',
        features=features,
        patch_size=4,
        mean=(127.5,) * 3,
        std=(127.5,) * 3,
    )
    target.init_weights()
    images = torch.randn(2, 3, 8, 12)
    with torch.no_grad():
        tokens = vit(images)[0]
        if features != 'tokens':
            vit.final_norm = False
            tokens = vit(images)[0]
        if features == 'values':
            caught = []
            vit.layers[-1].ln1.register_forward_hook(lambda _, __, out: caught.append(out))
            vit(images)
            tokens = vit.layers[-1].attn.qkv(caught[0])[..., 48:]
    torch.testing.assert_close(target(images, IDS), tokens[:, 1:][torch.arange(2)[:, None], IDS])


def test_frozen_weights_are_not_in_checkpoints_and_follow_the_device(tmp_path):
    _, target = timm_target(tmp_path, 'tokens')
    assert not target.state_dict() and not list(target.parameters())
    images = torch.randn(2, 3, 8, 12)
    wanted = target(images, IDS)
    encoder = dict(type='TIMMBackbone', model_name='vit_tiny_patch16_224', patch_size=14, depth=2)
    other = FrozenTarget(model_info(), encoder, str(tmp_path / 'vit.pth'), patch_size=14, **IMAGENET)
    assert torch.equal(other(images, IDS), wanted)  # loads without init_weights, as in evaluation
    assert not target.train().encoder.module.training
    target.load_state_dict({})
    assert next(target.to(torch.float64).encoder.module.parameters()).dtype == torch.float64


def test_frozen_target_refuses(tmp_path):
    encoder = dict(type='TIMMBackbone', model_name='vit_tiny_patch16_224', depth=1)
    for changes, message in (
        (
            dict(encoder=dict(type='TIMMBackbone', model_name='vit_nothing')),
            "model_name 'vit_nothing' is unknown to timm",
        ),
        (dict(encoder=dict(type='TIMMBackbone')), 'encoder.model_name must be a valid string, but is None'),
        (dict(encoder=dict(type='TIMMBackbone', model_name='resnet18')), "'resnet18' of timm is no plain ViT"),
        (dict(patch_size=14), 'patch_size of the target is 14, but its encoder has patches of 16'),
        (dict(encoder=dict(encoder, pretrained=True)), 'encoder.pretrained is not used: the weights come from checkp'),
        (dict(std=(0.0, 1.0, 1.0)), 'std.0 must be greater than 0, but is 0.0'),
        (dict(features='keys'), "features must be 'tokens', 'block' or 'values'"),
    ):
        options = dict(dict(info=model_info(), encoder=encoder, checkpoint='x.pth'), **changes)
        with pytest.raises(ConfigError, match=message):
            FrozenTarget(**options)
    target = FrozenTarget(model_info(), encoder, str(tmp_path / 'nowhere.pth'))
    with pytest.raises(MissingFileError, match='nowhere.pth'):
        target.init_weights()
    torch.save({'cls_token': torch.zeros(1, 1, 192)}, tmp_path / 'part.pth')
    target = FrozenTarget(model_info(), encoder, str(tmp_path / 'part.pth'))
    with pytest.raises(ConfigError, match='part.pth does not fit VisionTransformer: 17 of 18 weights'):
        target.init_weights()


def test_codes_of_vqkd(tmp_path):
    encoder = dict(
        arch=dict(TINY_ARCH), img_size=(16, 16), patch_size=4, use_abs_pos_emb=True, out_type='featmap',
        use_shared_rel_pos_bias=False, layer_scale_init_value=0.0,
    )  # fmt: skip
    tokenizer = dict(type='VQKD', encoder_config=encoder, num_embed=32, embed_dims=8)
    vqkd = VQKD(encoder, num_embed=32, embed_dims=8, quantize_kmeans_init=False).eval()
    torch.save(dict(state_dict=vqkd.state_dict()), tmp_path / 'vqkd.pth')
    info = model_info(grid_size=(4, 4))
    target = CodeTarget(info, tokenizer, str(tmp_path / 'vqkd.pth'), codes=32, patch_size=4)
    target.init_weights()
    images, ids = torch.randn(2, 3, 16, 16), torch.rand(2, 16).argsort(1)
    found = target(images, ids)
    assert found.dtype == torch.int64 and len(found.unique()) > 3
    assert torch.equal(found, vqkd.get_tokens(images)['token'].gather(1, ids))


def test_codes_of_dalle(tmp_path):
    options = dict(n_hid=8, vocab_size=16)
    dalle = DALLEEncoder(**options).eval()
    for parameter in dalle.parameters():
        torch.nn.init.normal_(parameter)
    torch.save(dalle.state_dict(), tmp_path / 'dalle.pth')
    target = CodeTarget(
        model_info(patch_size=16),
        dict(type='DALL-E', **options),
        str(tmp_path / 'dalle.pth'),
        codes=16,
        patch_size=8,
        mean=(-31.875,) * 3,
        std=(318.75,) * 3,
    )
    target.init_weights()
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    small = F.interpolate((images + 1) / 2 * 0.8 + 0.1, (16, 24), mode='bicubic', antialias=True)
    wanted = dalle(small).argmax(1).flatten(1).gather(1, IDS)
    assert torch.equal(target(images, IDS), wanted)
    target.patches = 7
    with pytest.raises(ConfigError, match='gives 6 codes per image instead of 7'):
        target(images, IDS)
    with pytest.raises(ConfigError, match='codes is 16, but the tokenizer has 32'):
        config = dict(arch=dict(TINY_ARCH), img_size=16, patch_size=4)
        CodeTarget(model_info(), dict(type='VQKD', encoder_config=config, num_embed=32), 'x', codes=16)
    vit = dict(type='VisionTransformer', arch=dict(TINY_ARCH), img_size=(8, 12), patch_size=4)
    target = CodeTarget(model_info(), vit, 'x', codes=16, patch_size=4)
    target.tokenizer._is_loaded = True
    with pytest.raises(ConfigError, match=r'gives neither codes \(B, L\) nor logits \(B, 16, rows, columns\)'):
        target(torch.randn(2, 3, 8, 12), IDS)


def test_values_of_an_encoder_that_runs_no_qkv_layer():
    encoder = dict(type='BEiTViT', arch=dict(TINY_ARCH), patch_size=4)
    with pytest.raises(ConfigError, match="features 'values' needs an encoder that runs a qkv layer"):
        FrozenTarget(model_info(), encoder, 'x', features='values', patch_size=4)
