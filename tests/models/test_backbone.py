"""The backbone: its passes for pretraining, its weights, and what it refuses."""

import pytest
import torch
from mmpretrain.models import VisionTransformer

from bootmae_mm.models import BootMAEViT
from bootmae_mm.validation import ConfigError
from tests.conftest import TINY_ARCH, random_batch


@pytest.fixture
def vit():
    vit = BootMAEViT(arch=dict(TINY_ARCH), img_size=(32, 48), patch_size=8, out_type='raw', final_norm=True)
    vit.init_weights()
    vit.eval()
    return vit


def test_weights_load_in_mmpretrain_and_give_the_same_features(vit):
    other = VisionTransformer(arch=dict(TINY_ARCH), img_size=(32, 48), patch_size=8, out_type='raw')
    assert vit.state_dict().keys() == other.state_dict().keys()
    other.load_state_dict(vit.state_dict())
    images = torch.randn(2, 3, 32, 48)
    torch.testing.assert_close(vit(images)[0], other(images)[0], rtol=1e-4, atol=1e-5)


def test_encode_patches_is_the_plain_forward_at_these_patches(vit):
    images, ids = torch.randn(2, 3, 32, 48), torch.tensor([[5, 0, 23], [7, 8, 9]])
    wanted = vit(images)[0]  # after the final norm
    found = vit.encode_patches(images, ids, norm=True)
    torch.testing.assert_close(found[0], wanted[0, 1 + ids[0]])
    torch.testing.assert_close(found[1], wanted[1, 1 + ids[1]])
    torch.testing.assert_close(vit.ln1(vit.encode_patches(images, ids)), found)


def test_encode_visible_of_all_patches_is_the_plain_forward(vit):
    images = torch.randn(2, 3, 32, 48)
    all_ids = torch.arange(24).expand(2, -1)
    latent, context = vit.encode_visible(images, all_ids, {0, 2})
    torch.testing.assert_close(latent, vit(images)[0])
    torch.testing.assert_close(vit.ln1(context[2]), latent)
    assert set(context) == {0, 2}
    assert not torch.allclose(context[0], context[2])


def test_masked_pixels_do_not_reach_the_student(vit):
    batch = random_batch()
    before, _ = vit.encode_visible(batch['inputs'], batch['ids_keep'])
    changed = batch['inputs'].clone()
    for image, ids in zip(changed, batch['ids_mask'], strict=True):
        for patch in ids.tolist():
            row, column = divmod(patch, 6)
            image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 1e4
    after, _ = vit.encode_visible(changed, batch['ids_keep'])
    assert torch.equal(before, after)


def test_order_of_kept_patches_does_not_matter(vit):
    batch = random_batch()
    latent, _ = vit.encode_visible(batch['inputs'], batch['ids_keep'])
    flipped, _ = vit.encode_visible(batch['inputs'], batch['ids_keep'].flip(1))
    torch.testing.assert_close(flipped[:, 1:].flip(1), latent[:, 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(flipped[:, 0], latent[:, 0], rtol=1e-4, atol=1e-5)


def test_initial_weights():
    vit = BootMAEViT(
        arch=dict(embed_dims=96, num_layers=1, num_heads=4, feedforward_channels=384), img_size=32, patch_size=8
    )
    vit.init_weights()
    layer = vit.layers[0]
    for weight, bound in (
        (layer.attn.qkv.weight, (6 / (96 + 96)) ** 0.5),
        (layer.attn.proj.weight, (6 / 192) ** 0.5),
        (layer.ffn.layers[1].weight, (6 / (96 + 384)) ** 0.5),
        (vit.patch_embed.projection.weight, (6 / (3 * 64 + 96)) ** 0.5),
    ):
        assert 0.97 * bound < weight.abs().max() <= bound
        assert abs(weight.std() / (bound / 3**0.5) - 1) < 0.05  # uniform
    assert layer.attn.qkv.bias.abs().max() == 0
    assert vit.cls_token.abs().max() < 1e-5
    assert not vit.pos_embed.requires_grad


@pytest.mark.parametrize(
    ('name', 'dims', 'layers', 'heads'),
    [('t', 192, 12, 3), ('s', 384, 12, 6), ('b', 768, 12, 12), ('l', 1024, 24, 16), ('h', 1280, 32, 16)],
)
def test_standard_archs(name, dims, layers, heads):
    arch = BootMAEViT.arch_zoo[name]
    assert (arch['embed_dims'], arch['num_layers'], arch['num_heads'], arch['feedforward_channels']) == (
        dims,
        layers,
        heads,
        4 * dims,
    )


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(arch='gigantic'), 'unknown arch'),
        (dict(arch=dict(embed_dims=24)), 'arch.num_layers is missing'),
        (
            dict(arch={**TINY_ARCH, 'width': 5}),
            r"arch has unknown option\(s\) \['width'\]; valid options: embed_dims, ",
        ),
        (dict(arch=5), 'arch must be a valid dictionary .*but is 5'),
        (dict(arch={**TINY_ARCH, 'num_heads': 5}), 'embed_dims 24 must be divisible by .*num_heads 5'),
        (dict(arch={**TINY_ARCH, 'num_layers': 0}), 'arch.num_layers must be greater than or equal to 1, but is 0'),
        (dict(arch={**TINY_ARCH, 'num_layers': 1001}), 'arch.num_layers must be less than or equal to 1000'),
        (
            dict(arch={**TINY_ARCH, 'embed_dims': 30, 'num_heads': 3}),
            'arch.embed_dims must be a multiple of 4, but is 30',
        ),
        (dict(img_size=50), 'img_size 50x50 must be divisible by patch_size 8'),
        (dict(img_size=(32, 50)), 'img_size 32x50 must be divisible by patch_size 8'),
        (dict(img_size=(32, 32, 3)), r'img_size must be .*, but is \(32, 32, 3\)'),
        (dict(patch_size=0), 'patch_size must be greater than or equal to 1, but is 0'),
        (dict(img_size=(32, 48), pos_embed_tile=5), 'pos_embed_tile 5 is larger than the grid of 4 x 6 patches'),
        (dict(in_channels=0), 'in_channels must be greater than or equal to 1, but is 0'),
        (dict(drop_path_rate=1.0), 'drop_path_rate must be less than 1, but is 1.0'),
        (dict(drop_rate=-0.1), 'drop_rate must be greater than or equal to 0, but is -0.1'),
        (dict(qkv_bias=1), 'qkv_bias must be a valid boolean, but is 1'),
        (dict(layer_scale_init_value=float('inf')), 'layer_scale_init_value must be a finite number, but is inf'),
    ],
)
def test_impossible_configs(changes, message):
    with pytest.raises(ConfigError, match=message):
        BootMAEViT(**{**dict(arch=dict(TINY_ARCH), img_size=32, patch_size=8), **changes})


def test_images_of_another_size_are_refused(vit):
    with pytest.raises(ConfigError, match=r'\(batch, channels, 32, 48\) \(img_size .*, but have \(1, 3, 32, 32\)'):
        vit.encode_visible(torch.randn(1, 3, 32, 32), torch.zeros(1, 2, dtype=torch.long))


def test_a_tiled_position_embedding_sees_each_tile_as_an_image_of_its_size():
    """Without attention between the tiles, each gives the features of an image of its own."""
    arch = dict(TINY_ARCH, num_layers=1)
    small = BootMAEViT(arch=arch, img_size=16, patch_size=8, out_type='featmap', with_cls_token=False)
    options = dict(img_size=(32, 48), pos_embed_tile=2, window_size=2)
    large = BootMAEViT(arch=arch, patch_size=8, out_type='featmap', with_cls_token=False, **options)
    for model in (small, large):
        model.init_weights()
        model.eval()
    assert torch.equal(large.pos_embed[0].view(4, 6, -1)[2:, 2:4].flatten(0, 1), small.pos_embed[0])
    large.load_state_dict({**small.state_dict(), 'pos_embed': large.pos_embed})
    images = torch.randn(2, 3, 32, 64)  # and an image of another size
    (found,), (wanted,) = large(images), small(images[:, :, 16:, 32:48])
    torch.testing.assert_close(found[:, :, 2:, 4:6], wanted)


def test_pretraining_refuses_a_tiled_position_embedding():
    model = BootMAEViT(arch=dict(TINY_ARCH), img_size=32, patch_size=8, pos_embed_tile=2)
    with pytest.raises(ConfigError, match='pretraining needs pos_embed_tile=0'):
        model.check_pretraining()
