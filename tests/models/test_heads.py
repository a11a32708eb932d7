"""The heads: predictions, losses and statistics, by hand."""

import pytest
import torch

from bootmae_mm.models import BootMAEFeatureHead, BootMAEHead, BootMAEPixelHead
from bootmae_mm.validation import ConfigError
from tests.conftest import model_info


def test_pixel_prediction_is_the_transposed_convolution():
    head = BootMAEPixelHead(in_channels=10, info=model_info())
    tokens = torch.randn(2, 6, 10)
    image = head.projection(tokens.transpose(1, 2).reshape(2, 10, 2, 3))  # (2, 3, 8, 12)
    patches = head(tokens)
    assert patches.shape == (2, 6, 3, 4, 4)
    torch.testing.assert_close(patches[:, 4], image[:, :, 4:8, 4:8])


def test_pixel_loss_by_hand():
    head = BootMAEPixelHead(in_channels=10, info=model_info())
    images, tokens, ids = torch.rand(1, 3, 8, 12), torch.randn(1, 2, 10), torch.tensor([[1, 5]])
    target = head.target(images, ids)
    error = (head(tokens) - target) ** 2
    wanted = (2.0 * error[0, 0].mean() + 0.5 * error[0, 1].mean()) / 2
    errors, losses = head.loss(tokens, target, torch.tensor([[2.0, 0.5]]))
    torch.testing.assert_close(errors, error.flatten(2).mean(2).detach())
    assert list(losses) == ['loss']
    torch.testing.assert_close(losses['loss'], wanted)


def normed(x):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()


def test_feature_loss_and_statistics_by_hand():
    head = BootMAEFeatureHead(in_channels=6, info=model_info())
    tokens, target, weights = torch.randn(2, 3, 6), torch.randn(2, 3, 8), torch.rand(2, 3)
    prediction = head(tokens)
    _, losses = head.loss(tokens, target, weights)
    wanted = (weights * ((normed(prediction) - normed(target)) ** 2).mean(-1)).mean()
    torch.testing.assert_close(losses['loss'], wanted)
    torch.testing.assert_close(losses['pred_norm'], prediction.norm(dim=2).mean())
    torch.testing.assert_close(losses['target_norm'], target.norm(dim=2).mean())
    torch.testing.assert_close(losses['target_std'], normed(target).flatten(0, 1).std(0, correction=0).mean())
    assert [name for name, value in losses.items() if value.requires_grad] == ['loss']
    _, moved = head.loss(tokens, 5 * target - 2, weights)  # scale and shift do not count
    torch.testing.assert_close(moved['loss'], losses['loss'], rtol=1e-4, atol=1e-5)


def test_plain_head_compares_without_a_norm():
    head = BootMAEHead(6, model_info(), dict(type='bootmae_mm.TeacherTarget'))
    tokens, target, weights = torch.randn(2, 3, 6), torch.randn(2, 3, 8), torch.rand(2, 3)
    wanted = (weights * ((head(tokens) - target) ** 2).mean(-1)).mean()
    torch.testing.assert_close(head.loss(tokens, target, weights)[1]['loss'], wanted)
    head.weighted = False
    assert head.loss(tokens, target, weights)[1]['loss'] == head.loss(tokens, target, torch.ones(2, 3))[1]['loss']


def test_head_is_initialized_as_the_authors_do():
    head = BootMAEFeatureHead(in_channels=6, info=model_info())
    head.init_weights()
    bound = (6 / (6 + 8)) ** 0.5
    assert 0.8 * bound < head.projection.weight.abs().max() <= bound
    assert head.projection.bias.abs().max() == 0


def test_impossible_options():
    with pytest.raises(ConfigError, match="^normalize must be 'channel', 'patch' or 'none', but is 'whiten'$"):
        BootMAEPixelHead(in_channels=8, info=model_info(), normalize='whiten')
    with pytest.raises(ConfigError, match='^in_channels must be greater than or equal to 1, but is 0$'):
        BootMAEPixelHead(in_channels=0, info=model_info())
    with pytest.raises(ConfigError, match='^eps must be greater than 0, but is 0$'):
        BootMAEFeatureHead(in_channels=8, info=model_info(), eps=0)
    cross_entropy = dict(type='bootmae_mm.PatchCrossEntropy')
    soft = dict(type='bootmae_mm.PatchSoftCrossEntropy')
    with pytest.raises(ConfigError, match='PatchSoftCrossEntropy compares distributions, but the target Teacher'):
        BootMAEFeatureHead(in_channels=8, info=model_info(), loss=soft)
    with pytest.raises(ConfigError, match='PatchCrossEntropy compares codes, but the target TeacherTarget gives num'):
        BootMAEFeatureHead(in_channels=8, info=model_info(), loss=cross_entropy)
