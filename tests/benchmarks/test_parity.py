"""Parity with the authors' program, and proof that the comparison can fail."""

import json

import pytest
import torch

from benchmarks.parity import Parity
from bootmae_mm.models import attention, heads, targets
from bootmae_mm.models.neck import TargetAwareDecoder
from tests.conftest import ROOT

REFERENCE = ROOT / 'tests/reference/tiny_a'


def failing(parity):
    return {difference.name for difference in parity.run() if not difference.passes}


# tiny_b: an MLP ratio of 2.5 and an eps of 1e-3, in the encoder and in both decoders.
@pytest.mark.parametrize('name', ['tiny_a', 'tiny_b'])
def test_everything_is_within_tolerance(name):
    parity = Parity.from_files(REFERENCE.with_name(name))
    differences = parity.run()
    assert [d for d in differences if not d.passes] == []
    names = {d.name.split('/')[0] for d in differences}
    assert names >= {
        'mask',
        'pixel_pred',
        'feature_pred',
        'feature_target',
        'pixel_loss',
        'feature_loss',
        'total_loss',
        'pixel_loss without weight mask',
        'feature_loss without weight mask',
        'grad',
        'final_model',
        'final_ema',
        'step 4: total_loss',
    }
    compared = {d.name for d in differences}
    for group in ('grad', 'final_model', 'final_ema'):
        assert {f'{group}/{name}' for name in parity.group(group)} <= compared
    assert all(d.scale > 0 for d in differences if '/' not in d.name)


@pytest.mark.parametrize(
    'name',
    [
        'pixel_pred',
        'feature_pred',
        'feature_target',
        'mask',
        'grad/blocks.0.attn.q_bias',
        'grad/mask_token_1',
        'final_model/decode_blocks.1.c_attn.kv.weight',
        'final_ema/blocks.1.mlp.fc1.weight',
        'final_ema/lm_head_1.bias',
    ],
)
def test_one_perturbed_tensor_is_found(name):
    parity = Parity.from_files(REFERENCE)
    masked = parity.batch(0)['ids_mask'][0, 0].item()
    value = parity.tensors[name].clone()
    change = 2e-4 * value.abs().max()  # small, but above both tolerances
    if name == 'pixel_pred':
        row, column = divmod(masked, 4)
        value[0, 0, 8 * row, 8 * column] += change
    elif name in ('feature_pred', 'feature_target'):
        value[0, masked, 0] += change
    else:
        value.view(-1)[0] += change
    parity.tensors[name] = value
    assert failing(parity) == {name}


@pytest.mark.parametrize('key', ['pixel_loss', 'feature_loss', 'total_loss', 'pixel_loss_without_weight_mask'])
def test_a_perturbed_loss_is_found(key):
    parity = Parity.from_files(REFERENCE)
    parity.reference['first'][key] *= 1 + 1e-4
    assert failing(parity) == {key.replace('_without', ' without').replace('_weight_mask', ' weight mask')}


def test_a_missing_and_an_extra_tensor_are_found():
    parity = Parity.from_files(REFERENCE)
    parity.tensors['final_ema/new'] = torch.ones(1)
    del parity.tensors['grad/norm.bias']
    assert failing(parity) == {'final_ema/new', 'grad/norm.bias (not in the reference)'}


@pytest.mark.parametrize(
    'break_it',
    [
        lambda m: m.setattr(heads.BootMAEHead, 'compared', lambda self, x: x),
        lambda m: m.setattr(
            targets.PixelTarget,
            'mean_std',
            lambda self, p: (p.mean((3, 4), keepdim=True), (p.var((3, 4), keepdim=True) + 1e-5).sqrt()),
        ),
        lambda m: m.setattr(attention, 'without_key_bias', lambda bias, *_: -bias),
        lambda m: m.setattr('bootmae_mm.models.algorithm.loss_weights', lambda ids, grid, w: torch.ones(ids.shape)),
        lambda m: m.setattr('benchmarks.parity.ema_update', lambda t, s, d: None),
        lambda m: m.setattr('bootmae_mm.engine.optimizers.GroupedOptimWrapperConstructor.decays', lambda *_: True),
    ],
)
def test_broken_code_is_found(monkeypatch, break_it):
    break_it(monkeypatch)
    assert failing(Parity.from_files(REFERENCE))


@pytest.mark.parametrize('option', ['mlp_ratio', 'eps'])
def test_an_option_that_is_applied_to_the_encoder_only_is_found(monkeypatch, option):
    make = TargetAwareDecoder.__init__
    plain = dict(mlp_ratio=4.0, eps=1e-6)[option]
    monkeypatch.setattr(TargetAwareDecoder, '__init__', lambda self, *a, **k: make(self, *a, **{**k, option: plain}))
    parity = Parity.from_files(REFERENCE.with_name('tiny_b'))
    if option == 'eps':
        assert len(failing(parity)) > 100
    else:
        with pytest.raises(RuntimeError, match='size mismatch'):
            parity.run()


def test_tool(tmp_path, run_tool):
    status, out, _ = run_tool('check_parity.py', REFERENCE)
    assert status == 0 and '436 of 436 quantities within tolerance' in out
    reference = json.loads(REFERENCE.with_suffix('.json').read_text())
    reference['first']['total_loss'] += 1e-3
    (tmp_path / 'off.json').write_text(json.dumps(reference))
    (tmp_path / 'off.safetensors').write_bytes(REFERENCE.with_suffix('.safetensors').read_bytes())
    status, out, message = run_tool('check_parity.py', tmp_path / 'off')
    assert status == 1 and message == 'error: 1 of 436 differ: total_loss'
    status, _, message = run_tool('check_parity.py', tmp_path / 'missing')
    assert status == 1 and message.startswith('error: no reference file')
