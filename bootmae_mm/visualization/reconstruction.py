"""Pictures of samples with their masks, and of reconstructions by the pixel regressor."""

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
COLORED = ('features', 'attention')  # panels that are red, green and blue whatever the images are


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
    masked = keep_patches(images, ids_keep, target.patch_size, gray)
    panels = (images, masked, reconstruction, prediction)
    return {
        name: ((panel.float() * preprocessor.std + preprocessor.mean) / 255).clamp(0, 1).cpu()
        for name, panel in zip(PANELS, panels, strict=True)
    }


def keep_patches(images: Tensor, ids_keep: Tensor, patch_size: int, fill: Tensor) -> Tensor:
    """Images of the kept patches on a plain background.

    Args:
        images: (B, C, H, W).
        ids_keep: Indices of the kept patches, (B, V).
        patch_size: Side of a patch in pixels.
        fill: Value of all other pixels, of a shape that can be expanded to that of the images.

    Returns:
        Tensor (B, C, H, W).
    """
    empty = fill.expand_as(images).contiguous()
    return place_patches(empty, take_patches(images, ids_keep, patch_size), ids_keep)


def sample_panels(batch: dict[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
    """Panels of training samples, each beside what its masks leave of it.

    Args:
        batch: ``inputs`` (B, C, H, W) in 0..255, ``ids_keep`` (B * K, V) for K masks per image, perhaps ``view``.
        grid: Rows and columns of patches.

    Returns:
        ``sample``; ``masked`` (gray where masked), or ``masked 1`` ... ``masked K``; ``second view`` if there is one.
        Each (B, C, H, W) in 0..1, float32.

    Raises:
        ConfigError: If the images do not have this grid of square patches.
    """
    images = batch['inputs'].float()
    height, width = images.shape[2:]
    patch_size = height // grid[0]
    fits = (height, width) == (grid[0] * patch_size, grid[1] * patch_size)
    require(fits, f'images of {height}x{width} have no grid of {grid[0]} x {grid[1]} square patches (masking)')
    masks = batch['ids_keep'].unflatten(0, (len(images), -1)).unbind(1)  # K times (B, V)
    gray = torch.tensor(255 * GRAY)
    panels = {'sample': images}
    for number, ids_keep in enumerate(masks, 1):
        title = 'masked' if len(masks) == 1 else f'masked {number}'
        panels[title] = keep_patches(images, ids_keep, patch_size, gray)
    if 'view' in batch:
        panels['second view'] = batch['view'].float()
    return {title: (panel / 255).clamp(0, 1) for title, panel in panels.items()}


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


def draw_panels(
    panels: dict[str, Tensor],
    names: Sequence[str] = (),
    min_height: int = 112,
    channels: Sequence[int] | None = None,
) -> np.ndarray:
    """Draw a labeled picture with one row per image and one column per panel.

    Args:
        panels: Panels from :func:`reconstruct` or :func:`sample_panels`.
        names: Names of the images, written at the left; none by default.
        min_height: Height in pixels to which small images are enlarged (nearest neighbor).
        channels: Channels of images to show, see :func:`shown_channels`; panels of features are colors already.

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
        pixels = (
            (shown_channels(images, None if title in COLORED else channels) * 255)
            .round()
            .byte()
            .permute(0, 2, 3, 1)
            .numpy()
        )
        for row in range(count):
            image = Image.fromarray(pixels[row]).resize((width, height), Image.Resampling.NEAREST)
            page.paste(image, (x, top + row * (height + gap)))
    return np.asarray(page)
