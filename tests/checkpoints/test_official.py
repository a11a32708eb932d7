"""The authors' pretraining checkpoints: exact conversion in both directions."""

import argparse
import re

import pytest
import torch

from bootmae_mm.checkpoints.official import state_to_official, to_official, to_project
from bootmae_mm.checkpoints.reading import load_file
from bootmae_mm.registry import MODELS
from bootmae_mm.validation import ConfigError
from tests.conftest import build, tiny_config


def official_state(dims, depth, patch=16, decoder_dims=512, decoder_depth=2, grid=14, heads=12, seed=0):
    """A random state dict in the names and shapes of the authors' model file."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def put(name, *shape):
        state[name] = torch.randn(*shape, generator=generator)

    def block(name, width, context=None):
        inner = heads * (width // heads)
        for norm in ('norm1', 'norm2') + (('norm3',) if context else ()):
            put(f'{name}.{norm}.weight', width)
            put(f'{name}.{norm}.bias', width)
        put(f'{name}.attn.q_bias', inner)
        put(f'{name}.attn.v_bias', inner)
        put(f'{name}.attn.qkv.weight', 3 * inner, width)
        put(f'{name}.attn.proj.weight', width, inner)
        put(f'{name}.attn.proj.bias', width)
        put(f'{name}.mlp.fc1.weight', 4 * width, width)
        put(f'{name}.mlp.fc1.bias', 4 * width)
        put(f'{name}.mlp.fc2.weight', width, 4 * width)
        put(f'{name}.mlp.fc2.bias', width)
        if context:
            put(f'{name}.norm4.weight', context)
            put(f'{name}.norm4.bias', context)
            put(f'{name}.c_attn.q_bias', inner)
            put(f'{name}.c_attn.v_bias', inner)
            put(f'{name}.c_attn.q.weight', inner, width)
            put(f'{name}.c_attn.kv.weight', 2 * inner, context)
            put(f'{name}.c_attn.proj.weight', width, inner)
            put(f'{name}.c_attn.proj.bias', width)

    put('pos_embed', 1, 1 + grid * grid, dims)
    put('de_pos_embed', 1, 1 + grid * grid, decoder_dims)
    put('cls_token', 1, 1, dims)
    put('patch_embed.proj.weight', dims, 3, patch, patch)
    put('patch_embed.proj.bias', dims)
    for index in range(depth):
        block(f'blocks.{index}', dims)
    put('norm.weight', dims)
    put('norm.bias', dims)
    for suffix, width in (('', decoder_dims), ('_1', dims)):
        put(f'mask_token{suffix}', 1, 1, width)
        put(f'down{suffix}.weight', width, dims)
        put(f'down{suffix}.bias', width)
        for index in range(decoder_depth):
            block(f'decode_blocks{suffix}.{index}', width, dims)
        put(f'decode_norm{suffix}.weight', width)
        put(f'decode_norm{suffix}.bias', width)
    put('lm_head.proj.weight', decoder_dims, 3, patch, patch)
    put('lm_head.proj.bias', 3)
    put('lm_head_1.weight', dims, dims)
    put('lm_head_1.bias', dims)
    return state


def official_checkpoint(**shape):
    return dict(
        model=official_state(**shape),
        optimizer=dict(state={0: dict(step=5, exp_avg=torch.randn(3))}, param_groups=[dict(lr=0.1, params=[0])]),
        epoch=799,
        scaler=dict(scale=65536.0),
        args=argparse.Namespace(model='bootmae_base', lr=1.5e-4, mask_num=147.0),
        model_ema=official_state(**shape, seed=1),
    )


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert a == b


SIZES = {
    'tiny': (
        dict(dims=24, depth=3, patch=8, decoder_dims=16, grid=4, heads=3),
        dict(arch=dict(embed_dims=24, num_layers=3, num_heads=3, feedforward_channels=96), img_size=32, patch_size=8),
    ),
    'base': (dict(dims=768, depth=12), dict(arch='b')),
    'large': (dict(dims=1024, depth=24, heads=16), dict(arch='l')),
}


@pytest.mark.parametrize('size', SIZES)
def test_round_trip_is_exact_and_fits_the_model(size):
    shape, backbone = SIZES[size]
    checkpoint = official_checkpoint(**shape)
    conversion = to_project(checkpoint)
    with torch.device('meta'):
        model = MODELS.build(
            tiny_config(
                backbone=dict(type='bootmae_mm.BootMAEViT', **backbone),
                neck=dict(type='bootmae_mm.BootMAENeck', pixel=dict(width=shape.get('decoder_dims', 512))),
            )
        )
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    assert {name: value.shape for name, value in conversion.checkpoint['state_dict'].items()} == wanted
    # The list of moves has every key of the source.
    sources = {source for source, _ in conversion.moves}
    assert sources == {f'{part}.{key}' for part in ('model', 'model_ema') for key in checkpoint[part]} | {
        'optimizer',
        'epoch',
        'scaler',
        'args',
    }
    assert_same(to_official(conversion.checkpoint).checkpoint, checkpoint)


def test_parameter_count_is_the_authors():
    """115.6 M with the fixed position embeddings, as in the authors' model file, which has no key biases."""
    count = sum(value.numel() for value in official_state(768, 12).values())
    assert count == 115_625_411
    with torch.device('meta'):
        model = MODELS.build(
            tiny_config(backbone=dict(type='bootmae_mm.BootMAEViT', arch='b'), neck=dict(type='bootmae_mm.BootMAENeck'))
        )
    ours = sum(value.numel() for name, value in model.state_dict().items() if not name.startswith('teacher.'))
    key_biases = 768 * 12 + (504 + 768) * 2 * 2  # encoder; both attentions in two blocks of two decoders
    shared_embedding = 197 * 768  # the authors' feature predictor uses the one of the encoder
    assert ours - key_biases - shared_embedding == count


def test_a_checkpoint_of_this_project_is_converted_to_the_authors_form_and_back():
    state = build(tiny_config()).state_dict()
    official = to_official(dict(state_dict=state)).checkpoint
    back = to_project(official).checkpoint['state_dict']
    assert back.keys() == state.keys()
    for name, value in state.items():
        if name.endswith(('qkv.bias', '.kv.bias')):  # key biases cancel in softmax and are dropped
            value = value.clone()
            part = slice(24, 48) if 'qkv' in name else slice(0, len(value) // 2)
            value[part] = 0
        assert torch.equal(back[name], value), name


def test_checkpoints_and_weights_without_a_counterpart_are_refused():
    with pytest.raises(ConfigError, match="unknown key 'rel_pos_bias'"):
        to_project(dict(model={**official_state(24, 1, 8, 16, 1, 4, 3), 'rel_pos_bias': torch.zeros(1)}))
    with pytest.raises(ConfigError, match='not a pretraining checkpoint of the authors'):
        to_project(dict(state_dict={}))
    with pytest.raises(ConfigError, match='not a pretraining checkpoint of this project'):
        to_official(dict(model={}))
    with pytest.raises(ConfigError, match="the authors' model has no weight 'neck.something'"):
        state_to_official({'neck.something': torch.zeros(1)})
    state = build(tiny_config()).state_dict()
    state['neck.decoders.feature.pos_embed'] = state['neck.decoders.feature.pos_embed'] + 1
    with pytest.raises(ConfigError, match='one for both'):
        to_official(dict(state_dict=state))


def test_tool_round_trip(tmp_path, run_tool):
    checkpoint = official_checkpoint(**SIZES['tiny'][0])
    torch.save(checkpoint, tmp_path / 'theirs.pth')
    status, out, message = run_tool('convert_official.py', tmp_path / 'theirs.pth', tmp_path / 'ours.pth')
    assert status == 0, message
    assert re.search(r'model.blocks.0.attn.qkv.weight +-> backbone.layers.0.attn.qkv.weight', out)
    torch.load(tmp_path / 'ours.pth', weights_only=True)  # it holds nothing but tensors and plain values
    status, *_ = run_tool('convert_official.py', tmp_path / 'ours.pth', tmp_path / 'again.pth', '--to', 'official')
    assert status == 0
    assert_same(load_file(tmp_path / 'again.pth'), checkpoint)
    assert not list(tmp_path.glob('*.part'))


def test_tool_reports_errors_in_one_line(tmp_path, run_tool):
    (tmp_path / 'text.pth').write_text('not a checkpoint')
    for source in ('nowhere.pth', 'text.pth'):
        status, _, message = run_tool('convert_official.py', tmp_path / source, tmp_path / 'out.pth')
        assert status == 1 and message.startswith('error: ') and '\n' not in message
    assert not (tmp_path / 'out.pth').exists()
