"""The neck: two decoders, their injected features and options."""

import pytest
import torch

from bootmae_mm.models import BootMAENeck
from bootmae_mm.models.neck import TargetAwareDecoder
from bootmae_mm.validation import ConfigError

FACTS = dict(embed_dims=24, num_layers=3, num_heads=3, grid_size=(4, 6))


def inputs(visible=7, masked=17):
    ids = torch.rand(2, 24).argsort(dim=1)
    context = {block: torch.randn(2, 1 + visible, 24) for block in range(3)}
    return torch.randn(2, 1 + visible, 24), context, ids[:, visible:]


def test_shapes_widths_and_default_blocks():
    neck = BootMAENeck(**FACTS)
    assert neck.widths == dict(pixel=512, feature=24)
    assert neck.context_blocks == {0, 2}
    latent, context, ids = inputs()
    decoded = neck(latent, context, ids)
    assert decoded['pixel'].shape == (2, 17, 512)
    assert decoded['feature'].shape == (2, 17, 24)


def test_a_last_block_for_masked_patches_only_gives_the_same_tokens():
    decoder = TargetAwareDecoder(24, 16, 2, 3, (4, 6), context_block=0)
    latent, context, ids = inputs()
    kept = torch.tensor([sorted(set(range(24)) - set(row.tolist())) for row in ids])
    masked_only = decoder(latent, context[0], ids)
    of_all = decoder(latent, context[0], ids, ids_keep=kept)
    assert of_all.shape == (2, 24, 16)
    torch.testing.assert_close(of_all[:, 7:], masked_only)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_batch_has_the_outputs_and_gradients_of_its_images(dtype):
    decoder = TargetAwareDecoder(24, 16, 3, 3, (4, 6), context_block=0)
    decoder.init_weights()
    latent, context, ids = inputs()
    latent.requires_grad_()
    with torch.autocast('cpu', torch.bfloat16, enabled=dtype == torch.bfloat16):
        together = decoder(latent, context[0], ids)
        alone = torch.cat([decoder(latent[i : i + 1], context[0][i : i + 1], ids[i : i + 1]) for i in range(2)])
    near = dict(rtol=1e-5, atol=1e-5) if dtype == torch.float32 else dict(rtol=0.02, atol=0.02)
    torch.testing.assert_close(together, alone, **near)
    weight = torch.randn(together.shape)  # the sum of squares is constant after a norm: it has no gradient
    parameters = [latent, *decoder.parameters()]
    wanted, gradients = (
        torch.autograd.grad((weight * out.float()).sum(), parameters, retain_graph=True, allow_unused=True)
        for out in (alone, together)
    )
    assert len([value for value in wanted if value is not None]) > 20
    for one, other in zip(gradients, wanted, strict=True):
        if one is None:
            assert other is None
            continue
        scale = other.abs().max()
        torch.testing.assert_close(one / scale, other / scale, **near)


def test_each_decoder_uses_its_own_block():
    neck = BootMAENeck(**FACTS, pixel=dict(width=16, context_block=0), feature=dict(context_block=2))
    latent, context, ids = inputs()
    before = neck(latent, context, ids)
    other = {**context, 0: torch.randn(2, 8, 24)}
    after = neck(latent, other, ids)
    assert not torch.allclose(before['pixel'], after['pixel'])
    assert torch.equal(before['feature'], after['feature'])


def test_without_injection_there_is_no_cross_attention():
    neck = BootMAENeck(**FACTS, pixel=dict(width=16, context_block=None), feature=None)
    assert neck.context_blocks == set()
    assert not [name for name, _ in neck.named_parameters() if 'cross' in name or 'context' in name]
    latent, context, ids = inputs()
    assert neck(latent, {}, ids)['pixel'].shape == (2, 17, 16)


def test_mask_tokens_differ_only_in_position():
    decoder = TargetAwareDecoder(24, 16, 1, 4, (4, 6), context_block=None)
    latent, _, _ = inputs()
    same = decoder(latent, None, torch.tensor([[3, 3], [5, 9]]))
    torch.testing.assert_close(same[0, 0], same[0, 1])
    assert not torch.allclose(same[1, 0], same[1, 1])


def test_initial_weights():
    decoder = TargetAwareDecoder(24, 16, 1, 3, (4, 6), context_block=0)
    decoder.init_weights()
    attention = decoder.blocks[0].self_attn  # k and v of width 15 initialized separately, as the authors' q, k and v
    assert attention.kv.weight.abs().max() > (6 / (2 * 15 + 16)) ** 0.5
    assert attention.kv.weight.abs().max() <= (6 / (15 + 16)) ** 0.5
    assert decoder.blocks[0].cross_attn.kv.weight.abs().max() <= (6 / (2 * 15 + 24)) ** 0.5
    assert 0 < decoder.mask_token.abs().max() <= 0.02


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(pixel=None, feature=None), 'the neck needs a decoder, but pixel and feature are None'),
        (
            dict(pixel=dict(widht=8)),
            r"pixel has unknown option\(s\) \['widht'\]; valid options: width, depth, context_block",
        ),
        (dict(pixel=dict(context_block=3)), r'neck.pixel.context_block must be .*in -3\.\.2, .*3'),
        (dict(feature=dict(context_block=-4)), r'neck.feature.context_block must be .*in -3\.\.2, .*-4'),
        (dict(pixel=dict(context_block=0.0)), 'pixel.context_block must be a valid integer, but is 0.0'),
        (dict(pixel=dict(depth=0)), 'pixel.depth must be greater than or equal to 1, but is 0'),
        (dict(pixel=dict(width=18)), 'pixel.width must be a multiple of 4, but is 18'),
        (dict(feature=dict(num_heads=0)), 'feature.num_heads must be greater than or equal to 1, but is 0'),
        (dict(feature=dict(num_heads=25)), 'num_heads must be at most the width of the decoder 24, but is 25'),
        (dict(feature=dict(mlp_ratio=0)), 'feature.mlp_ratio must be greater than 0, but is 0'),
        (dict(feature=dict(mlp_ratio=0.04)), 'neck.feature.*mlp_ratio'),
        (dict(pixel=dict(eps=-1e-6)), 'pixel.eps must be greater than 0, but is -1e-06'),
        (dict(with_cp='yes'), "with_cp must be a valid boolean, but is 'yes'"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ConfigError, match=message):
        BootMAENeck(**FACTS, **options)
