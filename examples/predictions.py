"""Predictions and ground truth, as contact sheets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

CAPTION = 14


def overlay_map(image: np.ndarray, labels: np.ndarray, palette: np.ndarray, opacity: float = 0.6) -> np.ndarray:
    """Color an image by class.

    Args:
        image: (H, W, 3) uint8.
        labels: (H, W) ints; pixels with ids outside the palette (no label) stay unchanged.
        palette: (classes, 3) uint8.
        opacity: Opacity of the colors.

    Returns:
        (H, W, 3) uint8.
    """
    known = (labels >= 0) & (labels < len(palette))
    colors = palette[np.where(known, labels, 0)]
    mixed = (1 - opacity) * image + opacity * colors
    return np.where(known[:, :, None], mixed, image).astype(np.uint8)


def overlay_instances(
    image: np.ndarray,
    boxes: np.ndarray,
    masks: np.ndarray,
    names: Sequence[str],
    colors: Sequence[tuple[int, int, int]],
    scale: int,
) -> np.ndarray:
    """Draw boxes, masks and names on an enlarged image.

    Args:
        image: (H, W, 3) uint8.
        boxes: (N, 4), left, top, right, bottom in pixels of ``image``.
        masks: (N, H, W) bool.
        names: Text at each box.
        colors: Color of each box.
        scale: Enlargement factor.

    Returns:
        (scale * H, scale * W, 3) uint8.
    """
    image = image.copy()
    for mask, color in zip(masks, colors, strict=True):
        image[mask] = (0.5 * image[mask] + 0.5 * np.array(color)).astype(np.uint8)
    picture = Image.fromarray(image).resize((scale * image.shape[1], scale * image.shape[0]), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    for box, name, color in zip(boxes, names, colors, strict=True):
        left, top, right, bottom = (float(side) * scale for side in box)
        if right > left and bottom > top:
            draw.rectangle((left, top, right - 1, bottom - 1), outline=tuple(color))
        draw.text((left + 2, top), name, fill=(255, 255, 255), stroke_width=1, stroke_fill=(0, 0, 0))
    return np.asarray(picture)


def contact_sheet(rows: dict[str, Sequence[np.ndarray]], gap: int = 3) -> np.ndarray:
    """Arrange pictures of one size in rows with captions.

    Args:
        rows: Caption -> pictures (H, W, 3) uint8.
        gap: Gap between pictures in pixels.

    Returns:
        (., ., 3) uint8.
    """
    sizes = {picture.shape for pictures in rows.values() for picture in pictures}
    assert len(sizes) == 1, sizes
    ((height, width, _),) = sizes
    columns = max(len(pictures) for pictures in rows.values())
    sheet = Image.new('RGB', (columns * (width + gap) + gap, len(rows) * (height + CAPTION + gap)), 'white')
    draw = ImageDraw.Draw(sheet)
    for row, (caption, pictures) in enumerate(rows.items()):
        top = row * (height + CAPTION + gap)
        draw.text((gap, top + 1), caption, fill='black')
        for column, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (gap + column * (width + gap), top + CAPTION))
    return np.asarray(sheet)
