"""Predictions beside the ground truth, as contact sheets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

CAPTION = 14


def overlay_map(image: np.ndarray, labels: np.ndarray, palette: np.ndarray, opacity: float = 0.6) -> np.ndarray:
    """Colour an image by class.

    Args:
        image: (H, W, 3) uint8.
        labels: (H, W) ints; those outside the palette (no label) stay as they are.
        palette: (classes, 3) uint8.
        opacity: Of the colours.

    Returns:
        (H, W, 3) uint8.
    """
    known = (labels >= 0) & (labels < len(palette))
    colours = palette[np.where(known, labels, 0)]
    mixed = (1 - opacity) * image + opacity * colours
    return np.where(known[:, :, None], mixed, image).astype(np.uint8)


def overlay_instances(
    image: np.ndarray,
    boxes: np.ndarray,
    masks: np.ndarray,
    names: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
    scale: int,
) -> np.ndarray:
    """Draw boxes, masks and names on an enlarged image.

    Args:
        image: (H, W, 3) uint8.
        boxes: (N, 4), left, top, right, bottom in pixels of ``image``.
        masks: (N, H, W) bool.
        names: What to write at each box.
        colours: Of each.
        scale: Factor of enlargement.

    Returns:
        (scale * H, scale * W, 3) uint8.
    """
    image = image.copy()
    for mask, colour in zip(masks, colours, strict=True):
        image[mask] = (0.5 * image[mask] + 0.5 * np.array(colour)).astype(np.uint8)
    picture = Image.fromarray(image).resize((scale * image.shape[1], scale * image.shape[0]), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    for box, name, colour in zip(boxes, names, colours, strict=True):
        left, top, right, bottom = (float(edge) * scale for edge in box)
        if right > left and bottom > top:
            draw.rectangle((left, top, right - 1, bottom - 1), outline=tuple(colour))
        draw.text((left + 2, top), name, fill=(255, 255, 255), stroke_width=1, stroke_fill=(0, 0, 0))
    return np.asarray(picture)


def contact_sheet(rows: dict[str, Sequence[np.ndarray]], gap: int = 3) -> np.ndarray:
    """Put pictures of one size into rows, each under its caption.

    Args:
        rows: Caption -> pictures (H, W, 3) uint8.
        gap: Pixels between pictures.

    Returns:
        (., ., 3) uint8.

    Raises:
        ValueError: If there is no picture, or their sizes differ.
    """
    sizes = {picture.shape for pictures in rows.values() for picture in pictures}
    if len(sizes) != 1:
        raise ValueError(f'pictures of one size are wanted, not of {sorted(sizes)}')
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
