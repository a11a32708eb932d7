"""The authors' segmentation models, against an independent implementation of their forward pass."""

import pytest
import torch
from mmengine.registry import init_default_scope
from torch.nn import functional as F

from bootmae_mm.checkpoints.official_segmentor import segmentor_to_project
from bootmae_mm.registry import MODELS
from bootmae_mm.validation import ConfigError
from tests.downstream import tiny

DEPTH, WIDTH, HEADS, GRID, PATCH = 12, 24, 3, 4, 16


def their_state(ours):
    """A random state dict in their names; keys and shapes of ``Segmentation/backbone/beit.py``."""
    tokens = GRID * GRID + 1
    shapes = {
        'cls_token': (1, 1, WIDTH),
        'pos_embed': (1, tokens, WIDTH),
        'patch_embed.proj.weight': (WIDTH, 3, PATCH, PATCH),
        'patch_embed.proj.bias': (WIDTH,),
    }
    for index in range(DEPTH):
        block = f'blocks.{index}'
        shapes |= {
            f'{block}.gamma_1': (WIDTH,),
            f'{block}.gamma_2': (WIDTH,),
            f'{block}.attn.q_bias': (WIDTH,),
            f'{block}.attn.v_bias': (WIDTH,),
            f'{block}.attn.relative_position_bias_table': ((2 * GRID - 1) ** 2 + 3, HEADS),
            f'{block}.attn.qkv.weight': (3 * WIDTH, WIDTH),
            f'{block}.attn.proj.weight': (WIDTH, WIDTH),
            f'{block}.attn.proj.bias': (WIDTH,),
            f'{block}.mlp.fc1.weight': (48, WIDTH),
            f'{block}.mlp.fc1.bias': (48,),
            f'{block}.mlp.fc2.weight': (WIDTH, 48),
            f'{block}.mlp.fc2.bias': (WIDTH,),
        }
        for norm in ('norm1', 'norm2'):
            shapes |= {f'{block}.{norm}.weight': (WIDTH,), f'{block}.{norm}.bias': (WIDTH,)}
    for layer in ('fpn1.0', 'fpn1.3', 'fpn2.0'):
        shapes |= {f'{layer}.weight': (WIDTH, WIDTH, 2, 2), f'{layer}.bias': (WIDTH,)}
    for name in ('weight', 'bias', 'running_mean', 'running_var'):
        shapes[f'fpn1.1.{name}'] = (WIDTH,)
    state = {f'backbone.{name}': 0.3 * torch.randn(shape) for name, shape in shapes.items()}
    state['backbone.fpn1.1.running_var'].abs_()
    state['backbone.fpn1.1.num_batches_tracked'] = torch.tensor(7)
    for index in range(DEPTH):
        state[f'backbone.blocks.{index}.attn.relative_position_index'] = their_index()
    # The names of mmseg's heads have not changed.
    heads = {name: torch.randn_like(value.float()) for name, value in ours.items() if '_head.' in name}
    return state | {name: value.abs() for name, value in heads.items()}


def their_index():
    """Rows of the table: offsets in row-major order, then class token to patch, patch to class token, itself."""
    index = torch.zeros(GRID * GRID + 1, GRID * GRID + 1, dtype=torch.long)
    for i in range(GRID * GRID):
        for j in range(GRID * GRID):
            row, column = i // GRID - j // GRID + GRID - 1, i % GRID - j % GRID + GRID - 1
            index[1 + i, 1 + j] = row * (2 * GRID - 1) + column
    last = (2 * GRID - 1) ** 2
    index[0, :], index[:, 0], index[0, 0] = last, last + 1, last + 2
    return index


def their_features(state, images):
    """Outputs of blocks 3, 5, 7, 11, rescaled, as their forward computes them."""
    state = {name.removeprefix('backbone.'): value for name, value in state.items() if name.startswith('backbone.')}

    def norm(x, name):
        return F.layer_norm(x, (WIDTH,), state[f'{name}.weight'], state[f'{name}.bias'], 1e-6)

    x = F.conv2d(images, state['patch_embed.proj.weight'], state['patch_embed.proj.bias'], stride=PATCH)
    x = torch.cat([state['cls_token'].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    x = x + state['pos_embed']
    features = []
    for index in range(DEPTH):
        block = f'blocks.{index}'
        bias = torch.cat([state[f'{block}.attn.q_bias'], torch.zeros(WIDTH), state[f'{block}.attn.v_bias']])
        qkv = F.linear(norm(x, f'{block}.norm1'), state[f'{block}.attn.qkv.weight'], bias)
        q, k, v = qkv.unflatten(2, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        table = state[f'{block}.attn.relative_position_bias_table']
        logits = (WIDTH // HEADS) ** -0.5 * q @ k.transpose(2, 3) + table[their_index()].permute(2, 0, 1)
        out = (logits.softmax(dim=3) @ v).transpose(1, 2).flatten(2)
        out = F.linear(out, state[f'{block}.attn.proj.weight'], state[f'{block}.attn.proj.bias'])
        x = x + state[f'{block}.gamma_1'] * out
        hidden = F.linear(norm(x, f'{block}.norm2'), state[f'{block}.mlp.fc1.weight'], state[f'{block}.mlp.fc1.bias'])
        out = F.linear(F.gelu(hidden), state[f'{block}.mlp.fc2.weight'], state[f'{block}.mlp.fc2.bias'])
        x = x + state[f'{block}.gamma_2'] * out
        if index in (3, 5, 7, 11):
            features.append(x[:, 1:].transpose(1, 2).unflatten(2, (GRID, GRID)))

    def up(x, name):
        return F.conv_transpose2d(x, state[f'{name}.weight'], state[f'{name}.bias'], stride=2)

    normed = F.batch_norm(
        up(features[0], 'fpn1.0'),
        *(state[f'fpn1.1.{name}'] for name in ('running_mean', 'running_var', 'weight', 'bias')),
    )
    return [up(F.gelu(normed), 'fpn1.3'), up(features[1], 'fpn2.0'), features[2], F.max_pool2d(features[3], 2)]


@pytest.fixture
def upernet(tmp_path):
    cfg = tiny('seg/bootmae_vitb_upernet_ade20k', tmp_path, tmp_path)
    init_default_scope('mmseg')
    model = MODELS.build(cfg.model)
    model.train(False)
    return model


@torch.no_grad()
def test_converted_weights_compute_the_same_features(upernet, tmp_path, run_tool):
    theirs = their_state(upernet.state_dict())
    torch.save(dict(state_dict=theirs, meta=dict(iter=160000), optimizer={}), tmp_path / 'theirs.pth')
    status, out, message = run_tool('convert_official.py', tmp_path / 'theirs.pth', tmp_path / 'ours.pth')
    assert status == 0, message
    assert 'backbone.fpn1.3.weight' in out and 'neck.upsample_4x.3.weight' in out
    converted = torch.load(tmp_path / 'ours.pth', weights_only=True)['state_dict']
    upernet.load_state_dict(converted)  # strict
    # Attention would ignore a bias of the keys, but other programs would not.
    assert converted['backbone.layers.1.attn.qkv.bias'][WIDTH : 2 * WIDTH].eq(0).all()
    images = torch.randn(2, 3, 64, 64)
    for found, wanted in zip(upernet.extract_feat(images), their_features(theirs, images), strict=True):
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_other_checkpoints_are_refused(upernet):
    with pytest.raises(ConfigError, match='not a segmentation checkpoint of the authors'):
        segmentor_to_project(dict(state_dict=upernet.state_dict()))
    theirs = their_state(upernet.state_dict())
    theirs['backbone.blocks.0.surprise'] = torch.zeros(1)
    with pytest.raises(ConfigError, match="unknown key 'backbone.blocks.0.surprise'"):
        segmentor_to_project(dict(state_dict=theirs))
