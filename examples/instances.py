"""Objects for detection from maps for segmentation: the connected regions of a class, in COCO's format.

Objects of a class that touch are one region, and one that is covered in its middle is two: labels for a comparison of
detectors, not the truth.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from bootmae_mm.data.paths import found_images
from bootmae_mm.validation import require


def coco_annotation(mask: np.ndarray, category: int, crowd: bool = False) -> dict[str, Any]:
    """COCO annotation of an object without ids: run-length mask, box, area, iscrowd.

    Args:
        mask: Its pixels, (H, W) bool.
        category: Its ``category_id``.
        crowd: Whether detectors are neither trained nor evaluated on it.
    """
    from pycocotools import mask as masks

    encoded = masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(
        category_id=category,
        segmentation=dict(size=[int(n) for n in encoded['size']], counts=encoded['counts'].decode('ascii')),
        bbox=[float(n) for n in masks.toBbox(encoded)],
        area=float(masks.area(encoded)),
        iscrowd=int(crowd),
    )


def instances_of(labels: np.ndarray, categories: Mapping[int, str], min_area: int) -> list[dict[str, Any]]:
    """Annotations of the connected regions of a map; those below ``min_area`` pixels are crowds.

    Args:
        labels: Map of labels, (H, W) uint8.
        categories: Names by label of the map; the label is the ``category_id``, too.
        min_area: Pixels of an object at least.
    """
    found = []
    for label in categories:
        count, regions, stats, _ = cv2.connectedComponentsWithStats((labels == label).astype(np.uint8), connectivity=8)
        for region in range(1, count):
            small = stats[region, cv2.CC_STAT_AREA] < min_area
            found.append(coco_annotation(regions == region, label, crowd=bool(small)))
    return found


def write_instances(
    images: str | Path,
    maps: str | Path,
    to: str | Path,
    categories: Mapping[int, str],
    min_area: int = 36,
) -> dict[str, int]:
    """Write a COCO file for a folder of images with maps of their pixels' labels.

    Args:
        images: Folder of images.
        maps: Folder of maps, PNG files with the images' names.
        to: File to write.
        categories: Names by label of the maps.
        min_area: Pixels of an object at least; smaller regions are crowds.

    Returns:
        Numbers of images, objects and small regions.

    Raises:
        ConfigError: If a map is missing or of another size, a label has no object, or two have the same name.
    """
    require(len(set(categories.values())) == len(categories), f'two classes have the same name: {dict(categories)}')
    require(Path(to).parent.is_dir(), f'no folder {Path(to).parent}')
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, image in enumerate(found_images(images), start=1):
        name = Path(image).relative_to(images)
        path = Path(maps) / name.with_suffix('.png')
        require(path.is_file(), f'{image} has no map {path}')
        labels = np.asarray(Image.open(path))
        width, height = Image.open(image).size
        require(
            labels.shape == (height, width),
            f'{path} must have one channel of {width} x {height} pixels, but its shape is {labels.shape}',
        )
        entries.append(dict(id=index, file_name=name.as_posix(), height=height, width=width))
        for annotation in instances_of(labels, categories, min_area):
            annotations.append(dict(id=len(annotations) + 1, image_id=index, **annotation))
    large = {annotation['category_id'] for annotation in annotations if not annotation['iscrowd']}
    missing = ', '.join(str(label) for label in categories if label not in large)
    require(not missing, f'no map in {maps} has a region of {min_area} pixels or more with label {missing}')
    names = [dict(id=label, name=name) for label, name in categories.items()]
    Path(to).write_text(json.dumps(dict(images=entries, annotations=annotations, categories=names)), encoding='utf-8')
    crowds = sum(annotation['iscrowd'] for annotation in annotations)
    return dict(images=len(entries), objects=len(annotations) - crowds, small=crowds)
