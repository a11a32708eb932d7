"""Pictures of reconstructions by the pixel regressor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bootmae_mm.models.heads import BootMAEPixelHead
from bootmae_mm.models.tokens import place_patches, take_patches
from bootmae_mm.validation import require

PANELS = ('original', 'masked', 'reconstruction', 'prediction')
GRAY = 0.5


def predicts_pixels(model: nn.Module) -> bool:
    """Whether there is a pixel branch whose predictions can be drawn."""
    return isinstance(getattr(model, 'pixel_head', None), BootMAEPixelHead)


@torch.no_grad()
def reconstruct(model: nn.Module, images: Tensor, ids_keep: Tensor, ids_mask: Tensor) -> dict[str, Tensor]:
    """Reconstruct images from their kept patches.

    If the target is normalized, the mean and std of the true patch are applied to the prediction.

    Args:
        model: A :class:`BootMAE` with a pixel branch.
        images: Normalized images, (B, C, H, W).
        ids_keep: Indices of the kept patches, (B, V).
        ids_mask: Indices of the masked patches, (B, M).

    Returns:
        ``original``; ``masked`` (gray where masked); ``reconstruction`` (visible patches, and predictions of the masked
        ones); ``prediction`` (predictions everywhere; no loss trains them on visible patches).
        Each (B, C, H, W) in 0..1, float32, on the CPU.

    Raises:
        ConfigError: If the model has no pixel branch.
    """
    require(predicts_pixels(model), 'the model has no pixel branch, so there is nothing to draw')
    decoder, head = model.neck.decoders['pixel'], model.pixel_head
    latent, context = model.backbone.encode_visible(images, ids_keep, model.neck.context_blocks)
    tokens = decoder(latent, context.get(decoder.context_block), ids_mask, ids_keep=ids_keep)
    ids = torch.cat([ids_keep, ids_mask], dim=1)
    target = head.target  # a PixelTarget
    mean, std = target.mean_std(take_patches(images, ids, target.patch_size))
    predicted = head(tokens).float() * std + mean

    prediction = place_patches(images, predicted, ids)
    reconstruction = place_patches(images, predicted[:, ids_keep.shape[1] :], ids_mask)
    preprocessor = model.data_preprocessor
    gray = (255 * GRAY - preprocessor.mean) / preprocessor.std
    empty = gray.expand_as(images).contiguous()
    masked = place_patches(empty, take_patches(images, ids_keep, target.patch_size), ids_keep)
    panels = (images, masked, reconstruction, prediction)
    return {
        name: ((panel.float() * preprocessor.std + preprocessor.mean) / 255).clamp(0, 1).cpu()
        for name, panel in zip(PANELS, panels, strict=True)
    }


def shown_channels(images: Tensor, channels: Sequence[int] | None = None) -> Tensor:
    """Three channels as red, green and blue, or one as gray: (B, C, H, W) -> (B, 3, H, W).

    Args:
        images: The images.
        channels: One or three channels, counted from 0; by default the first three, or the first one if there are less.

    Raises:
        ConfigError: If there is no such channel.
    """
    count = images.shape[1]
    chosen = list(channels) if channels is not None else [0, 1, 2] if count >= 3 else [0]
    fits = len(chosen) in (1, 3) and all(0 <= channel < count for channel in chosen)
    require(fits, f'a picture shows one or three of the channels 0 to {count - 1}, not {chosen}')
    return images[:, chosen].expand(-1, 3, -1, -1)


def draw_reconstruction(
    panels: dict[str, Tensor],
    names: Sequence[str] = (),
    min_height: int = 112,
    channels: Sequence[int] | None = None,
) -> np.ndarray:
    """Draw a labeled picture with one row per image and one column per panel.

    Args:
        panels: Panels from :func:`reconstruct`.
        names: Names of the images, written at the left; none by default.
        min_height: Height in pixels to which small images are enlarged (nearest neighbor).
        channels: Channels to show, see :func:`shown_channels`.

    Returns:
        uint8 array (height, width, 3), RGB.
    """
    from PIL import Image, ImageDraw, ImageFont

    count, _, height, width = next(iter(panels.values())).shape
    factor = max(1, -(-min_height // height))
    height, width, gap, top = height * factor, width * factor, 6, 24
    font = ImageFont.load_default(14)
    left = int(max((font.getlength(name) for name in names), default=0)) + (gap if names else 0)
    page = Image.new('RGB', (left + len(panels) * (width + gap) + gap, top + count * (height + gap)), 'white')
    draw = ImageDraw.Draw(page)
    for row, name in enumerate(names):
        draw.text((gap, top + row * (height + gap)), name, fill='black', font=font)
    for column, (title, images) in enumerate(panels.items()):
        x = left + gap + column * (width + gap)
        label = title if font.getlength(title) <= width else title[: max(1, width // 8)]
        draw.text((x, 4), label, fill='black', font=font)
        pixels = (shown_channels(images, channels) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        for row in range(count):
            image = Image.fromarray(pixels[row]).resize((width, height), Image.Resampling.NEAREST)
            page.paste(image, (x, top + row * (height + gap)))
    return np.asarray(page)
