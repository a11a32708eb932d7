"""The backbone's pass for downstream tasks."""

import pytest
import torch
from mmpretrain.models.utils import resize_pos_embed
from torch.nn import functional as F

from bootmae_mm.models import BootMAEViT
from bootmae_mm.models.relative_position import _index_on
from bootmae_mm.validation import ConfigError
from tests.conftest import TINY_ARCH, build, tiny_config

OPTIONS = dict(arch=dict(TINY_ARCH), img_size=(32, 48), patch_size=8, out_type='featmap', final_norm=False)


def vit(**changes):
    model = BootMAEViT(**{**OPTIONS, **changes})
    model.init_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or 'bias_table' in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def same_weights(model, **changes):
    """The same encoder with other options."""
    other = BootMAEViT(**{**OPTIONS, **changes}).eval()
    own = other.state_dict()
    state = {name: value for name, value in model.state_dict().items() if name in own}
    if other.cls_token is None:
        state['pos_embed'] = model.pos_embed[:, 1:] if model.cls_token is not None else model.pos_embed
    other.load_state_dict(state, strict=False)
    return other


def test_with_all_options_off_it_is_the_pretraining_teacher():
    model = build(tiny_config())
    images = torch.randn(2, 3, 32, 48)
    all_ids = torch.arange(24).expand(2, -1)
    wanted = model.teacher.encode_patches(images, all_ids)
    (found,) = same_weights(model.teacher)(images)
    assert found.shape == (2, 24, 4, 6)
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), wanted, rtol=1e-5, atol=1e-6)


def test_outputs_of_chosen_blocks():
    model = vit(out_indices=(0, -1), final_norm=True)
    images = torch.randn(2, 3, 32, 48)
    first, last = model(images)
    _, context = model.encode_visible(images, torch.arange(24).expand(2, -1), {0, 2})
    torch.testing.assert_close(first.flatten(2).transpose(1, 2), context[0][:, 1:])
    torch.testing.assert_close(last.flatten(2).transpose(1, 2), model.ln1(context[2])[:, 1:])
    assert model.out_indices == [0, 2]


@pytest.mark.parametrize('final_norm', [False, True])
def test_maps_with_class_tokens(final_norm):
    model = vit(out_type='featmap_cls_token', out_indices=(0, -1), final_norm=final_norm)
    images = torch.randn(2, 3, 40, 48)
    outs = model(images)
    maps = same_weights(model, out_indices=(0, -1), final_norm=final_norm)(images)
    raw = same_weights(model, out_indices=(0, -1), final_norm=final_norm, out_type='raw')(images)
    assert len(outs) == 2 and maps[0].shape == (2, 24, 5, 6)
    for (found, token), wanted, tokens in zip(outs, maps, raw, strict=True):
        assert torch.equal(found, wanted)
        assert torch.equal(token, tokens[:, 0])
    assert not torch.allclose(outs[0][1], outs[1][1])
    assert model.state_dict().keys() == same_weights(model, final_norm=final_norm).state_dict().keys()


def test_blocks_after_the_last_output_do_not_run():
    model = vit(out_indices=0)
    model.layers[1] = None
    assert len(model(torch.randn(1, 3, 32, 48))) == 1


def test_pooled_features_have_their_own_norm():
    model = vit(out_type='avg_featmap')
    images = torch.randn(2, 3, 32, 48)
    (pooled,) = model(images)
    (features,) = same_weights(model)(images)
    wanted = F.layer_norm(features.mean(dim=(2, 3)), (24,), model.ln2.weight, model.ln2.bias, 1e-6)
    torch.testing.assert_close(pooled, wanted)
    assert 'ln2.weight' in model.fresh_weights and 'ln1.weight' not in model.fresh_weights


@pytest.mark.parametrize('size', [(32, 48), (48, 32), (64, 64), (37, 50), (8, 8), (1, 90)])
def test_any_size(size):
    model = vit()
    images = torch.randn(1, 3, *size)
    (features,) = model(images)
    rows, columns = -(-size[0] // 8), -(-size[1] // 8)
    assert features.shape == (1, 24, rows, columns)
    # The same as for an image padded by hand, in a model built for this size.
    padded = F.pad(images, (0, 8 * columns - size[1], 0, 8 * rows - size[0]))
    other = BootMAEViT(**{**OPTIONS, 'img_size': (8 * rows, 8 * columns)}).eval()
    embed = resize_pos_embed(model.pos_embed, (4, 6), (rows, columns))
    other.load_state_dict({**model.state_dict(), 'pos_embed': embed})
    torch.testing.assert_close(other(padded)[0], features)


def test_attention_in_windows_is_attention_on_each_piece():
    """A grid of 5 x 7 in windows of 3: the smaller windows at the border, too, see their own patches only."""
    model = vit(with_cls_token=False, img_size=(40, 56))
    windows = same_weights(model, with_cls_token=False, img_size=(40, 56), window_size=3)
    x = torch.randn(2, 35, 24)
    attn, plain = windows.layers[0].attn, model.layers[0].attn
    found = attn(x, grid=(5, 7)).unflatten(1, (5, 7))
    tokens = x.unflatten(1, (5, 7))
    for top, bottom in ((0, 3), (3, 5)):
        for left, right in ((0, 3), (3, 6), (6, 7)):
            piece = tokens[:, top:bottom, left:right].flatten(1, 2)
            wanted = plain(piece).unflatten(1, (bottom - top, right - left))
            torch.testing.assert_close(found[:, top:bottom, left:right], wanted)


def test_global_blocks_among_windows():
    options = dict(with_cls_token=False, window_size=2)
    model = vit(**options, global_blocks=(-1,))
    assert [layer.attn.window_size for layer in model.layers] == [2, 2, 0]
    images = torch.randn(1, 3, 32, 48)
    changed = images.clone()
    changed[..., -8:] += 1  # the last column of patches

    def reach(model):
        return (model(changed)[0] - model(images)[0]).abs().amax(dim=(0, 1, 2)) > 1e-6

    assert reach(model).all()
    only_windows = same_weights(model, **options)
    assert reach(only_windows).tolist() == [False] * 4 + [True] * 2
    all_global = same_weights(model, **options, global_blocks=(0, 1, 2))
    no_windows = same_weights(model, with_cls_token=False)
    assert torch.equal(all_global(images)[0], no_windows(images)[0])


def attention_by_hand(attn, x, bias):
    """Softmax attention with an explicit bias (heads, N, N)."""
    heads, width = attn.num_heads, attn.embed_dims
    qkv_bias = attn.qkv.bias.clone()
    qkv_bias[width : 2 * width] = 0
    q, k, v = F.linear(x, attn.qkv.weight, qkv_bias).chunk(3, dim=2)
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    logits = q @ k.transpose(2, 3) * (width // heads) ** -0.5 + bias
    return attn.proj((logits.softmax(dim=3) @ v).transpose(1, 2).flatten(2))


def bias_by_hand(table, grid, table_grid, class_token):
    """The bias, one pair of tokens at a time."""
    rows, columns = grid
    places = [(row, column) for row in range(rows) for column in range(columns)]
    width = 2 * table_grid[1] - 1
    area = (2 * table_grid[0] - 1) * width
    tokens = [None, *places] if class_token else places
    bias = torch.zeros(table.shape[1], len(tokens), len(tokens))
    for i, query in enumerate(tokens):
        for j, key in enumerate(tokens):
            if query is None or key is None:
                row = area + (2 if query is None and key is None else 0 if query is None else 1)
            else:
                row = (query[0] - key[0] + table_grid[0] - 1) * width + query[1] - key[1] + table_grid[1] - 1
            bias[:, i, j] = table[row]
    return bias


@pytest.mark.parametrize('class_token', [True, False])
@pytest.mark.parametrize('grid', [(4, 6), (3, 5)])
def test_relative_position_bias(class_token, grid):
    model = vit(rel_pos_bias=True, with_cls_token=class_token)
    attn = model.layers[1].attn
    x = torch.randn(2, grid[0] * grid[1] + class_token, 24)
    bias = bias_by_hand(attn.rel_pos_bias.relative_position_bias_table, grid, (4, 6), class_token)
    torch.testing.assert_close(attn(x, grid=grid), attention_by_hand(attn, x, bias), rtol=1e-4, atol=1e-5)


def test_relative_position_bias_in_windows():
    model = vit(rel_pos_bias=True, with_cls_token=False, window_size=3)
    attn = model.layers[0].attn
    x = torch.randn(1, 24, 24)
    found = attn(x, grid=(4, 6)).unflatten(1, (4, 6))
    piece = x.unflatten(1, (4, 6))[:, 3:, :3].flatten(1, 2)  # the lower left window is one row high
    bias = bias_by_hand(attn.rel_pos_bias.relative_position_bias_table, (1, 3), (3, 3), False)
    wanted = attention_by_hand(attn, piece, bias).unflatten(1, (1, 3))
    torch.testing.assert_close(found[:, 3:, :3], wanted, rtol=1e-4, atol=1e-5)


def test_a_new_bias_changes_nothing_and_gets_gradients():
    model = vit()
    biased = same_weights(model, rel_pos_bias=True)
    images = torch.randn(1, 3, 40, 72)  # larger than the table
    torch.testing.assert_close(biased(images)[0], model(images)[0])
    biased(images)[0].square().sum().backward()
    assert all(layer.attn.rel_pos_bias.relative_position_bias_table.grad.abs().max() > 0 for layer in biased.layers)


def test_the_bias_can_be_fused():
    # Otherwise torch's attention on a GPU silently falls back to a kernel that holds all logits.
    for class_token, grid in ((True, (4, 6)), (False, (3, 5)), (True, (6, 7))):
        attn = vit(rel_pos_bias=True, with_cls_token=class_token).layers[0].attn
        assert attn.rel_pos_bias(grid).is_contiguous()


def test_the_index_of_the_bias_is_cached_and_can_be_used_in_training_after_inference():
    _index_on.cache_clear()
    model = vit(rel_pos_bias=True)
    with torch.inference_mode():
        model(torch.randn(1, 3, 32, 48))
    model(torch.randn(1, 3, 32, 48))[0].sum().backward()
    assert _index_on.cache_info().misses == 1


def test_layer_scale_of_one_changes_nothing():
    model = vit()
    scaled = same_weights(model, layer_scale_init_value=1.0)
    images = torch.randn(1, 3, 32, 48)
    torch.testing.assert_close(scaled(images)[0], model(images)[0])
    scaled.layers[0].ffn.gamma2.weight.data.zero_()
    assert not torch.allclose(scaled(images)[0], model(images)[0])


def test_activation_checkpointing_changes_neither_output_nor_gradient():
    images = torch.randn(2, 3, 32, 48)
    results = []
    for with_cp in (False, True):
        torch.manual_seed(1)
        model = vit(with_cp=with_cp, drop_path_rate=0.5, rel_pos_bias=True).train()
        (features,) = model(images)
        features.square().sum().backward()
        results.append((features, [parameter.grad for parameter in model.parameters() if parameter.requires_grad]))
    assert torch.equal(results[0][0], results[1][0])
    for plain, checkpointed in zip(results[0][1], results[1][1], strict=True):
        if plain is not None:
            torch.testing.assert_close(plain, checkpointed)


def test_frozen_stages():
    model = vit(frozen_stages=2, drop_path_rate=0.3, drop_rate=0.1, learn_pos_embed=True)
    model.train()
    trained = {name.split('.')[0] + '.' + name.split('.')[1] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {'layers.2'}
    assert not model.layers[1].training and model.layers[2].training and not model.drop_after_pos.training
    model = vit(frozen_stages=0)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {'cls_token', 'pos_embed', 'patch_embed.projection.weight', 'patch_embed.projection.bias'}
    model = vit(frozen_stages=3, out_type='avg_featmap', final_norm=True)
    assert not any(p.requires_grad for p in model.parameters())
    assert vit(learn_pos_embed=True).pos_embed.requires_grad


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(out_indices=3), r'out_indices 3 must be different blocks in 0\.\.2 or, from the end, -3\.\.-1'),
        (dict(out_indices=(0, -4)), r'out_indices \(0, -4\) must be different blocks'),
        (dict(out_indices=(0.5,)), r'out_indices \(0.5,\) must be different blocks'),
        (dict(out_indices=True), 'out_indices True must be different blocks'),
        (dict(out_indices=()), 'out_indices must name a block'),
        (dict(out_indices=(2, -1)), r'out_indices \(2, -1\) must be different blocks'),
        (dict(frozen_stages=4), r'frozen_stages must be in -1\.\.3, but is 4'),
        (dict(frozen_stages=-2), r'frozen_stages must be in -1\.\.3, but is -2'),
        (dict(window_size=2), 'window_size needs with_cls_token=False'),
        (
            dict(out_type='featmap_cls_token', with_cls_token=False),
            "^out_type='featmap_cls_token' needs with_cls_token=True$",
        ),
        (dict(window_size=-1, with_cls_token=False), 'window_size must be greater than or equal to 0, but is -1'),
        (dict(global_blocks=(0,)), 'global_blocks needs window_size'),
        (dict(global_blocks=(5,), window_size=2, with_cls_token=False), 'global_blocks .*5.* must be different blocks'),
    ],
)
def test_impossible_options(changes, message):
    with pytest.raises(ConfigError, match=message):
        vit(**changes)


def test_an_unknown_output_is_refused_by_mmpretrain():
    with pytest.raises(ValueError, match='out_type'):
        vit(out_type='map')


@pytest.mark.parametrize(
    'changes', [dict(rel_pos_bias=True), dict(window_size=2, with_cls_token=False), dict(final_norm=False)]
)
def test_pretraining_has_neither_windows_nor_bias_and_needs_the_final_norm(changes):
    backbone = {**tiny_config()['backbone'], **changes, 'out_type': 'featmap'}
    with pytest.raises(ConfigError, match='needs window_size=0, rel_pos_bias=False and final_norm=True'):
        build(tiny_config(backbone=backbone))
