"""The heads: predictions, targets and losses, by hand."""

import pytest
import torch

from bootmae_mm.models import BootMAEFeatureHead, BootMAEPixelHead
from bootmae_mm.validation import ConfigError


def test_pixel_prediction_is_the_transposed_convolution():
    head = BootMAEPixelHead(in_channels=10, patch_size=4)
    tokens = torch.randn(2, 6, 10)
    image = head.projection(tokens.transpose(1, 2).reshape(2, 10, 2, 3))  # (2, 3, 8, 12)
    patches = head(tokens)
    assert patches.shape == (2, 6, 3, 4, 4)
    torch.testing.assert_close(patches[:, 4], image[:, :, 4:8, 4:8])


@pytest.mark.parametrize('normalize', ['channel', 'patch', 'none'])
def test_pixel_target_by_hand(normalize):
    head = BootMAEPixelHead(in_channels=10, patch_size=4, normalize=normalize)
    images = torch.rand(2, 3, 8, 12)
    target = head.target(images, torch.tensor([[4], [0]]))
    patch = images[0, :, 4:8, 4:8]
    wanted = {
        'channel': torch.stack([(c - c.mean()) / (((c - c.mean()) ** 2).mean() + 1e-5).sqrt() for c in patch]),
        'patch': (patch - patch.mean()) / (patch.var() + 1e-6).sqrt(),
        'none': patch,
    }[normalize]
    torch.testing.assert_close(target[0, 0], wanted)


def test_pixel_loss_by_hand():
    head = BootMAEPixelHead(in_channels=10, patch_size=4)
    images, tokens, ids = torch.rand(1, 3, 8, 12), torch.randn(1, 2, 10), torch.tensor([[1, 5]])
    error = (head(tokens) - head.target(images, ids)) ** 2
    wanted = (2.0 * error[0, 0].mean() + 0.5 * error[0, 1].mean()) / 2
    torch.testing.assert_close(head.loss(tokens, images, ids, torch.tensor([[2.0, 0.5]])), wanted)


def test_feature_loss_ignores_scale_and_shift_of_prediction_and_target():
    head = BootMAEFeatureHead(in_channels=8, out_channels=8)
    prediction, target, weights = torch.randn(2, 3, 8), torch.randn(2, 3, 8), torch.rand(2, 3)
    loss = head.loss(prediction, head.target(target), weights)
    norm = lambda x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()  # noqa: E731
    wanted = (weights * ((norm(prediction) - norm(target)) ** 2).mean(-1)).mean()
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(
        head.loss(3 * prediction + 1, head.target(5 * target - 2), weights), loss, rtol=1e-4, atol=1e-5
    )


def test_impossible_options():
    with pytest.raises(ConfigError, match="^normalize must be 'channel', 'patch' or 'none', but is 'whiten'$"):
        BootMAEPixelHead(in_channels=8, patch_size=4, normalize='whiten')
    with pytest.raises(ConfigError, match='^patch_size must be greater than or equal to 1, but is 0$'):
        BootMAEPixelHead(in_channels=8, patch_size=0)
    with pytest.raises(ConfigError, match='^eps must be greater than 0, but is 0$'):
        BootMAEFeatureHead(in_channels=8, out_channels=8, eps=0)
