"""Attention: against softmax attention written out."""

import pytest
import torch

from bootmae_mm.models.attention import DecoderAttention, SelfAttention, window_bands
from bootmae_mm.validation import ConfigError


def plain(q, k, v, heads):
    """Softmax attention, written out."""
    split = lambda x: x.view(*x.shape[:2], heads, -1).transpose(1, 2)  # noqa: E731
    q, k, v = split(q), split(k), split(v)
    weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def test_self_attention_ignores_the_key_bias_and_never_trains_it():
    attention = SelfAttention(12, 3)
    torch.nn.init.normal_(attention.qkv.bias)
    x = torch.randn(2, 5, 12)
    q, k, v = torch.nn.functional.linear(x, attention.qkv.weight, attention.qkv.bias).chunk(3, dim=2)
    wanted = attention.proj(plain(q, k, v, 3))  # with the bias: softmax cancels it
    torch.testing.assert_close(attention(x), wanted)
    attention(x).square().sum().backward()
    assert torch.equal(attention.qkv.bias.grad[12:24], torch.zeros(12))
    assert attention.qkv.bias.grad[:12].abs().min() > 0
    assert attention.qkv.bias.grad[24:].abs().min() > 0


def test_fewer_queries_give_the_same_rows():
    attention = SelfAttention(12, 3)
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(attention(x, x[:, 3:]), attention(x)[:, 3:])


@pytest.mark.parametrize('batch', [1, 2])
def test_decoder_attention_by_hand_with_a_width_not_divisible_by_the_heads(batch):
    attention = DecoderAttention(16, 10, 3)  # heads of width 5: inner width 15
    assert attention.proj.weight.shape == (16, 15)
    torch.nn.init.normal_(attention.kv.bias)
    query, context = torch.randn(batch, 4, 16), torch.randn(batch, 7, 10)
    k, v = attention.kv(context).chunk(2, dim=2)
    wanted = attention.proj(plain(attention.q(query), k, v, 3))
    torch.testing.assert_close(attention(query, context), wanted)
    names, parameters = zip(*attention.named_parameters(), strict=True)
    gradients = torch.autograd.grad(wanted.square().sum(), parameters)
    for name, found, by_hand in zip(
        names, torch.autograd.grad(attention(query, context).square().sum(), parameters), gradients, strict=True
    ):
        if name == 'kv.bias':
            assert torch.equal(found[:15], torch.zeros(15))
            found, by_hand = found[15:], by_hand[15:]
        torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-4)


def test_impossible_number_of_heads():
    with pytest.raises(ConfigError, match='num_heads must be at most the width of the decoder 8, but is 9'):
        DecoderAttention(8, 8, 9)


@pytest.mark.parametrize(
    ('length', 'size', 'wanted'),
    [
        (70, 16, [(0, 64, 16), (64, 70, 6)]),
        (64, 16, [(0, 64, 16)]),
        (6, 16, [(0, 6, 6)]),
        (5, 1, [(0, 5, 1)]),
    ],
)
def test_window_bands(length, size, wanted):
    assert window_bands(length, size) == wanted
