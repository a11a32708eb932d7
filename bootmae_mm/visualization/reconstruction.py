"""Reconstructions as pictures: what the pixel regressor makes of the visible patches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..models.tokens import place_patches, take_patches

PANELS = ('original', 'masked', 'reconstruction', 'prediction')
GREY = 0.5


@torch.no_grad()
def reconstruct(model: nn.Module, images: Tensor, ids_keep: Tensor, ids_mask: Tensor) -> dict[str, Tensor]:
    """Reconstruct images from their kept patches.

    Where the target is normalised, predictions are of normalised patches; mean and deviation of the true patch are put
    back, as without them the picture looks wrong.

    Args:
        model: A :class:`BootMAE` with a pixel branch.
        images: Normalised, (B, C, H, W).
        ids_keep: (B, V).
        ids_mask: (B, M).

    Returns:
        ``original``; ``masked`` (grey where masked); ``reconstruction`` (predictions in the masked places, the visible
        patches pasted over); ``prediction`` (the network's output everywhere; nothing trains it on visible patches).
        Each (B, C, H, W) in 0..1, float32, on the CPU.

    Raises:
        ValueError: If the model has no pixel branch.
    """
    if getattr(model, 'pixel_head', None) is None:
        raise ValueError('the model has no pixel branch, so there is nothing to draw')
    decoder, head = model.neck.decoders['pixel'], model.pixel_head
    latent, context = model.backbone.encode_visible(images, ids_keep, model.neck.context_blocks)
    tokens = decoder(latent, context.get(decoder.context_block), ids_mask, ids_keep=ids_keep)
    ids = torch.cat([ids_keep, ids_mask], dim=1)
    mean, deviation = head.statistics(take_patches(images, ids, head.patch_size))
    predicted = head(tokens).float() * deviation + mean

    prediction = place_patches(images, predicted, ids)
    reconstruction = place_patches(images, predicted[:, ids_keep.shape[1] :], ids_mask)
    preprocessor = model.data_preprocessor
    grey = (255 * GREY - preprocessor.mean) / preprocessor.std
    empty = grey.expand_as(images).contiguous()
    masked = place_patches(empty, take_patches(images, ids_keep, head.patch_size), ids_keep)
    panels = (images, masked, reconstruction, prediction)
    return {
        name: ((panel.float() * preprocessor.std + preprocessor.mean) / 255).clamp(0, 1).cpu()
        for name, panel in zip(PANELS, panels, strict=True)
    }


def shown_channels(images: Tensor) -> Tensor:
    """Three channels to show of any number: the first three, or the first one as gray. (B, C, H, W) -> (B, 3, H, W)."""
    return images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)


def draw_reconstruction(panels: dict[str, Tensor], names: Sequence[str] = (), least_edge: int = 112) -> np.ndarray:
    """One labelled picture: a row for each image, a column for each panel.

    Args:
        panels: Of :func:`reconstruct`.
        names: Of the images, written at the left; none by default.
        least_edge: Small images are enlarged (pixels stay sharp) until their height has so many pixels.

    Returns:
        uint8 array (height, width, 3), RGB.
    """
    from PIL import Image, ImageDraw, ImageFont

    count, _, height, width = next(iter(panels.values())).shape
    factor = max(1, -(-least_edge // height))
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
        pixels = (shown_channels(images) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        for row in range(count):
            image = Image.fromarray(pixels[row]).resize((width, height), Image.Resampling.NEAREST)
            page.paste(image, (x, top + row * (height + gap)))
    return np.asarray(page)
