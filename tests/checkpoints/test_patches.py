"""Patch embeddings for other channels and sizes, against timm's."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_patch_embed
from timm.models import adapt_input_conv

from bootmae_mm.checkpoints.patches import fit_patch_embed, resample_patches


@pytest.mark.parametrize('size', [8, 14, 16, 20])
def test_patch_sizes_as_timm(size):
    weight = torch.randn(5, 3, 16, 16)
    expected = resample_patch_embed(weight, [size, size]) if size != 16 else weight
    torch.testing.assert_close(fit_patch_embed(weight, 3, size), expected, rtol=1e-4, atol=1e-4)


def test_enlarged_patches_give_the_tokens_of_the_original_ones():
    weight, pixels = torch.randn(5, 3, 8, 8), torch.randn(2, 3, 8, 8)
    enlarged = F.interpolate(pixels, (12, 12), mode='bicubic', antialias=True)
    expected = F.conv2d(pixels, weight)
    torch.testing.assert_close(F.conv2d(enlarged, resample_patches(weight, 12)), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('channels', [1, 2, 3, 4, 6, 13])
def test_channels_as_timm(channels):
    weight = torch.randn(5, 3, 4, 4)
    found = fit_patch_embed(weight, channels, 4)
    torch.testing.assert_close(found, adapt_input_conv(channels, weight))
    # An image whose channels are all alike gives the same tokens.
    pixels = torch.randn(2, 1, 4, 4)
    alike = (F.conv2d(pixels.expand(-1, count, -1, -1), value) for count, value in ((3, weight), (channels, found)))
    if channels in (1, 3, 6):
        torch.testing.assert_close(*alike, rtol=1e-4, atol=1e-4)
