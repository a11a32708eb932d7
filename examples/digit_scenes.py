"""Scenes and forms of real digits: labeled data for all downstream tasks.

scikit-learn's handwritten digits (the training split in training scenes, the others in validation scenes). In scenes
they are pasted on textured backgrounds with random size, rotation, color and overlap, and bars cross them; in forms
they stand in the cells of a grid, white on black, as the demo's encoder has seen them. The visible part of every digit
is known.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from bootmae_mm.data import Digits
from bootmae_mm.validation import ConfigError, require

from .instances import coco_annotation

CLASSES = ('background', *'0123456789')
SPLITS = dict(training='train', validation='test')
# Opacity of a pasted digit: above SOLID its pixels, down to VISIBLE its soft border, which has no label.
SOLID, VISIBLE = 0.5, 0.15
# Visible share of a digit below which it is a crowd region for COCO (not evaluated) and has no label for ADE20K.
MIN_VISIBLE = 0.4
CELL = 16  # side of a form's cells in pixels: that of the demo's images
FILLED = 0.7  # share of a form's cells with a digit


@dataclass
class Instance:
    """One digit in a scene.

    Attributes:
        label: Digit, 0..9.
        mask: Visible pixels, (H, W) bool.
        area: Number of pixels before anything covered it.
    """

    label: int
    mask: np.ndarray
    area: int

    @property
    def hidden(self) -> bool:
        """Whether too little of it is visible."""
        return self.mask.sum() < max(MIN_VISIBLE * self.area, 12)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x, y, width, height of the visible part in pixels."""
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        return (
            int(columns[0]),
            int(rows[0]),
            int(columns[-1] - columns[0] + 1),
            int(rows[-1] - rows[0] + 1),
        )


@dataclass
class Scene:
    """A picture and its labels.

    Attributes:
        image: (H, W, 3) uint8.
        segmentation: (H, W) uint8 as in ADE20K: 0 no label, 1 background, 2 + digit.
        instances: Digits that are at least partly visible.
    """

    image: np.ndarray
    segmentation: np.ndarray
    instances: list[Instance] = field(default_factory=list)


def _texture(rng: np.random.RandomState, size: int) -> np.ndarray:
    """(size, size, 3) float in 0..255: smooth noise of three grains and stripes, rather dark."""
    total = np.zeros((size, size, 3))
    for cells, strength in ((3, 60), (8, 35), (24, 20)):
        noise = rng.randint(0, 256, (cells, cells, 3)).astype(np.uint8)
        smooth = Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)
        total += strength * (np.asarray(smooth) / 255.0)
    row, column = np.mgrid[:size, :size]
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 20)
    stripes = np.sin((row * np.sin(angle) + column * np.cos(angle)) * 2 * np.pi / period)
    return total + 12 * stripes[:, :, None]


def _pasted(rng: np.random.RandomState, digit: np.ndarray, size: int) -> np.ndarray:
    """Opacity of a digit on the scene, (size, size) in 0..1."""
    side = rng.randint(size // 4, size * 7 // 16)
    picture = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
    picture = picture.rotate(rng.uniform(-30, 30), Image.Resampling.BICUBIC, expand=True)
    # Up to a quarter of it may be outside.
    low, high = -(picture.width // 4), size - picture.width * 3 // 4
    canvas = Image.new('L', (size, size))
    canvas.paste(picture, (rng.randint(low, high), rng.randint(low, high)))
    return np.asarray(canvas) / 255.0


def _bar(rng: np.random.RandomState, size: int) -> np.ndarray:
    """Opacity of a bar across the scene, (size, size) of 0 and 1."""
    row, column = np.mgrid[:size, :size]
    angle, place = rng.uniform(0, np.pi), rng.uniform(0.2, 0.8, 2) * size
    distance = np.abs((row - place[0]) * np.sin(angle) + (column - place[1]) * np.cos(angle))
    return (distance < rng.uniform(1.0, 2.0)).astype(float)


def make_scene(digits: np.ndarray, labels: np.ndarray, rng: np.random.RandomState, size: int = 64) -> Scene:
    """Make one scene.

    Args:
        digits: Gray pictures to choose from, (N, h, w) uint8.
        labels: Labels of the pictures, (N,).
        rng: Random generator.
        size: Side of the scene in pixels.

    Returns:
        The scene.
    """
    image = _texture(rng, size)
    segmentation = np.ones((size, size), np.uint8)
    instances: list[Instance] = []

    def cover(opacity: np.ndarray) -> None:
        for instance in instances:
            instance.mask &= opacity < VISIBLE

    for chosen in rng.randint(0, len(digits), rng.randint(3, 7)):
        opacity = _pasted(rng, digits[chosen], size)
        cover(opacity)
        color = rng.uniform(170, 255, 3)
        image = image * (1 - opacity[:, :, None]) + color * opacity[:, :, None]
        mask = opacity > SOLID
        segmentation[opacity >= VISIBLE] = 0
        segmentation[mask] = 2 + labels[chosen]
        instances.append(Instance(int(labels[chosen]), mask, int(mask.sum())))
    for _ in range(rng.randint(0, 3)):
        opacity = _bar(rng, size)
        cover(opacity)
        image = np.where(opacity[:, :, None] > 0, _texture(rng, size), image)
        segmentation[opacity > 0] = 1
    image = image + rng.normal(0, 6, image.shape)

    instances = [instance for instance in instances if instance.mask.any()]
    for instance in instances:
        if instance.hidden:
            segmentation[instance.mask] = 0
    return Scene(image.clip(0, 255).astype(np.uint8), segmentation, instances)


def make_form(digits: np.ndarray, labels: np.ndarray, rng: np.random.RandomState, size: int = 64) -> Scene:
    """Make one form: a digit in most of its cells.

    Args:
        digits: Gray pictures to choose from, (N, CELL, CELL) uint8.
        labels: Labels of the pictures, (N,).
        rng: Random generator.
        size: Side of the form in pixels, a multiple of :data:`CELL`.

    Returns:
        The form.
    """
    require(size % CELL == 0, f'the size of a form must be a multiple of {CELL} pixels, but is {size}')
    image, segmentation = np.zeros((size, size), np.uint8), np.ones((size, size), np.uint8)
    instances = []
    for row in range(0, size, CELL):
        for column in range(0, size, CELL):
            if rng.uniform() >= FILLED:
                continue
            chosen, cell = rng.randint(len(digits)), np.s_[row : row + CELL, column : column + CELL]
            image[cell] = digits[chosen]
            opacity = image[cell] / 255.0
            mask = np.zeros((size, size), bool)
            mask[cell] = opacity > SOLID
            segmentation[cell][opacity >= VISIBLE] = 0
            segmentation[mask] = 2 + labels[chosen]
            instances.append(Instance(int(labels[chosen]), mask, int(mask.sum())))
    return Scene(image[:, :, None].repeat(3, axis=2), segmentation, instances)


def cell_of(form: Scene, instance: Instance) -> Image.Image:
    """The cell of a form with a digit."""
    x, y = (place // CELL * CELL for place in instance.box[:2])
    return Image.fromarray(form.image[y : y + CELL, x : x + CELL])


def crop_of(scene: Scene, instance: Instance, side: int = 32) -> Image.Image:
    """Square crop around a digit, resized to ``side``."""
    x, y, width, height = instance.box
    half = 0.575 * max(width, height)
    center = x + width / 2, y + height / 2
    box = (center[0] - half, center[1] - half, center[0] + half, center[1] + half)
    return Image.fromarray(scene.image).transform(
        (side, side), Image.Transform.EXTENT, box, resample=Image.Resampling.BICUBIC
    )


@dataclass(frozen=True)
class Kind:
    """A kind of scenes: what makes one from digits of ``side`` pixels, and what cuts a digit out of it."""

    make: Callable[[np.ndarray, np.ndarray, np.random.RandomState, int], Scene]
    side: int
    cut: Callable[[Scene, Instance], Image.Image]


KINDS = dict(scenes=Kind(make_scene, 32, crop_of), forms=Kind(make_form, CELL, cell_of))


def write_scenes(
    root: str | Path,
    counts: dict[str, int],
    size: int = 64,
    seed: int = 0,
    done: Callable[[], object] = lambda: None,
    kind: str = 'scenes',
) -> dict[str, dict[str, int]]:
    """Write a data set. The same arguments give the same files.

    Layout: ``images/SPLIT/*.png`` and ``annotations/SPLIT/*.png`` as in ADE20K (0 is no label),
    ``instances_SPLIT.json`` as in COCO, ``digits/SPLIT/LABEL/*.png`` with crops of single digits to classify.

    Args:
        root: Output folder, empty or new.
        counts: Numbers of scenes by split, ``training`` and ``validation``.
        size: Side of the scenes in pixels, at least 32.
        seed: Random seed.
        done: Callback after every scene.
        kind: ``'scenes'`` or ``'forms'``.

    Returns:
        Numbers of images, digits, hidden digits and crops by split.

    Raises:
        ConfigError: For invalid sizes or counts.
        FileExistsError: If the folder is not empty.
    """
    root = Path(root)
    if size < 32:
        raise ConfigError(f'size must be at least 32 pixels, but is {size}')
    if set(counts) - set(SPLITS) or any(count < 1 for count in counts.values()):
        raise ConfigError(f'counts must be positive, of {", ".join(SPLITS)}, but are {counts}')
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f'{root} is not empty')
    return {split: _write_split(root, split, count, size, seed, done, KINDS[kind]) for split, count in counts.items()}


def _write_split(
    root: Path, split: str, count: int, size: int, seed: int, done: Callable[[], object], kind: Kind
) -> dict[str, int]:
    """Write the scenes of one split; return their numbers."""
    source = Digits(split=SPLITS[split], img_size=kind.side, pipeline=[])
    samples = [source.get_data_info(index) for index in range(len(source))]
    digits = np.stack([sample['img'][:, :, 0] for sample in samples])
    labels = np.array([sample['gt_label'] for sample in samples])
    for folder in (f'images/{split}', f'annotations/{split}', *(f'digits/{split}/{label}' for label in range(10))):
        (root / folder).mkdir(parents=True)
    images: list[dict] = []
    annotations: list[dict] = []
    pieces = 0
    for index in range(count):
        # One generator per scene: more scenes do not change the first ones.
        rng = np.random.RandomState([seed, list(SPLITS).index(split), index])
        scene = kind.make(digits, labels, rng, size)
        name = f'{split}_{index:05d}.png'
        Image.fromarray(scene.image).save(root / 'images' / split / name)
        Image.fromarray(scene.segmentation).save(root / 'annotations' / split / name)
        images.append(dict(id=index + 1, file_name=name, height=size, width=size))
        for number, instance in enumerate(scene.instances):
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=index + 1,
                    **coco_annotation(instance.mask, instance.label + 1, instance.hidden),
                )
            )
            if instance.mask.sum() >= 0.6 * instance.area and not instance.hidden:
                piece = root / 'digits' / split / str(instance.label) / f'{index:05d}_{number}.png'
                kind.cut(scene, instance).save(piece)
                pieces += 1
        done()
    categories = [dict(id=label + 1, name=str(label)) for label in range(10)]
    text = json.dumps(dict(images=images, annotations=annotations, categories=categories))
    (root / f'instances_{split}.json').write_text(text)
    hidden = sum(annotation['iscrowd'] for annotation in annotations)
    return dict(images=count, digits=len(annotations), hidden=hidden, pieces=pieces)
