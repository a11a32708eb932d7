"""Problems of labels, found before training: COCO files, segmentation maps, heads that cannot learn.

Each function yields problems as one line; :func:`refuse_first` turns the first one into an error.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log
from PIL import Image, UnidentifiedImageError
from torch import nn
from torch.utils.data import Dataset

from bootmae_mm.data.paths import is_hidden
from bootmae_mm.validation import ConfigError

ORIENTATION = 0x0112  # EXIF tag; 1 is upright, 5 to 8 are rotated by 90 degrees
MAX_SCANNED = 5000  # samples of a data set whose file headers are read, in seconds
GRAY_MODES = {'1', 'L', 'P', 'I', 'I;16', 'I;16B', 'I;16L'}  # modes of Pillow with one channel


def datasets_of(cfg: Any) -> Iterator[dict]:
    """Configs of the innermost datasets in the config of a loader."""
    if isinstance(cfg, dict):
        inner = [cfg['dataset']] if 'dataset' in cfg else cfg.get('datasets')
        if inner is None:
            yield cfg
        else:
            for part in inner:
                yield from datasets_of(part)


def refuse_first(problems: Iterable[str]) -> None:
    """Raise the first problem.

    Raises:
        ConfigError: If there is one.
    """
    for problem in problems:
        raise ConfigError(problem)


def coco_problems(dataset: dict, training: bool) -> Iterator[str]:
    """Problems of annotation files in COCO's format.

    Args:
        dataset: Config of a dataset, which may be a wrapper.
        training: Whether there must be objects to learn from.
    """
    for part in datasets_of(dataset):
        path = Path(part.get('data_root') or '', part.get('ann_file') or '')
        if path.suffix != '.json' or not path.is_file():
            continue
        steps = [step for step in part.get('pipeline') or [] if isinstance(step, dict)]
        masks = any(step.get('with_mask') for step in steps)
        try:
            content = json.loads(path.read_text(encoding='utf-8'))
        except ValueError as error:
            yield f'{path} is not complete JSON: {error}'
            return
        if not isinstance(content, dict) or 'images' not in content:
            continue  # of another format
        absent = {'annotations', 'categories'} - set(content)
        if absent or not content['images']:
            yield f'{path} has no {" and no ".join(sorted(absent)) or "images"}'
        yield from _entry_problems(path, content, masks)
        yield from _object_problems(path, content, (part.get('metainfo') or {}).get('classes'), training)


def _entry_problems(path: Path, content: dict, masks: bool) -> Iterator[str]:
    known = {image.get('id') for image in content['images']}
    ids: set[int] = set()
    for index, entry in enumerate(content['annotations']):
        box = entry.get('bbox')
        reason = ''
        if isinstance(box, list) and (len(box) != 4 or not all(isinstance(value, Real) for value in box)):
            reason = f'a bbox that is not four numbers: {box!r}'
        elif entry.get('image_id') not in known and 'image_id' in entry:
            reason = f'an image_id of no image: {entry["image_id"]!r}'
        elif entry.get('id') in ids:
            reason = f'an id that occurs twice: {entry["id"]!r}'
        elif masks and entry.get('segmentation') == []:
            reason = 'an empty segmentation'
        if reason:
            yield f'{path}: annotations[{index}] has {reason}'
        ids.add(entry.get('id'))
    annotation: dict[str, Any] = dict(
        id=Integral, image_id=Integral, category_id=Integral, bbox=list, area=Real, iscrowd=Integral
    )
    keys: dict[str, dict[str, Any]] = {
        'images': dict(id=Integral, file_name=str, height=Real, width=Real),
        'annotations': annotation,
        'categories': dict(id=Integral, name=str),
    }
    if masks:
        keys['annotations']['segmentation'] = (list, dict)
    advice = dict(iscrowd='add "iscrowd": 0 to each', area='add the area of each in pixels', id='number them with ints')
    for part, wanted in keys.items():
        for key, kind in wanted.items():
            bad = [index for index, entry in enumerate(content[part]) if not isinstance(entry.get(key), kind)]
            if bad:
                found = content[part][bad[0]].get(key, 'missing')
                hint = advice.get(key, '')
                yield (
                    f'{path}: {len(bad)} of {len(content[part])} {part} have no usable {key!r} (the first, '
                    f'{part}[{bad[0]}]: {str(found)[:40]!r})' + (f'; {hint}' if hint else '')
                )


def _object_problems(path: Path, content: dict, classes: Any, training: bool) -> Iterator[str]:
    names = {category['id']: category['name'] for category in content['categories']}
    reasons: Counter[str] = Counter()
    for annotation in content['annotations']:
        width, height = annotation['bbox'][2:4]
        if annotation['iscrowd']:
            reasons['iscrowd=1'] += 1
        elif width < 1 or height < 1 or annotation['area'] <= 0:
            reasons['a box narrower than a pixel, or an area that is not positive'] += 1
        elif classes is not None and names.get(annotation['category_id']) not in classes:
            reasons['another category than the classes of the dataset'] += 1
        else:
            return
    counts = ', '.join(f'{count} with {reason}' for reason, count in reasons.items()) or 'there are no annotations'
    if not set(names.values()) & set(classes or names.values()):
        return  # reported in more detail when the data set is built
    if training:
        yield f'{path} has no object to learn from: {counts}'
    print_log(f'{path} has no object to detect: {counts}; its score is meaningless', logger='current', level=30)


def label_map_problems(dataset: Dataset) -> Iterator[str]:
    """Problems of segmentation maps, by the headers of their files: sizes, channels, EXIF orientation.

    A photograph with an orientation tag is rotated when it is loaded, but its map is not.
    """
    turns = _turns_images(dataset)
    root = getattr(_inner(dataset), 'data_root', None) or ''
    ambiguous = []
    for index in _some(len(dataset)):
        info = dataset.get_data_info(index)
        image_path, map_path = info.get('img_path'), info.get('seg_map_path')
        if not image_path or not map_path or '://' in f'{image_path}{map_path}':
            return
        if any(
            map(is_hidden, Path(image_path).relative_to(root).parts if Path(image_path).is_relative_to(root) else ())
        ):
            yield f'{image_path} is in a hidden folder, and a duplicate of another image: remove it'
        if not Path(map_path).is_file():
            yield f'{image_path} has no map {map_path} (seg_map_path, seg_map_suffix)'
        header = _header(map_path)
        if header is not None and header[2] not in GRAY_MODES:
            yield (
                f'{map_path} has colors ({header[2]}); a map has one channel with class ids 0, 1, ...: replace each '
                'color by its id'
            )
        if header is not None and header[2].startswith('I'):
            with Image.open(map_path) as opened:
                largest = int(np.asarray(opened).max())
            if largest > 255:
                yield f'{map_path} has ids up to {largest}; mmseg reads 8 bits, of which 0 to 254 are classes'
        image = _header(image_path)
        if header is None or image is None:
            continue
        size, orientation, _ = image
        loaded = size[::-1] if turns and orientation > 4 else size
        if loaded != header[0] and size == header[0]:
            yield (
                f'{image_path} has EXIF orientation {orientation} and is rotated when loaded, its map {map_path} is '
                "not: rotate the pixels and remove the tag, or load with color_type='color_ignore_orientation'"
            )
        if loaded != header[0]:
            yield f'{image_path} has {loaded[0]}x{loaded[1]} pixels, its map {map_path} {header[0][0]}x{header[0][1]}'
        if turns and orientation > 1 and size == loaded:
            ambiguous.append(image_path)
    _warn_of_orientation(ambiguous, 'maps')


def image_size_problems(dataset: Dataset) -> Iterator[str]:
    """Images whose size, rotated by their EXIF orientation when loaded, is not that of the COCO file."""
    turns = _turns_images(dataset)
    ambiguous = []
    for index in _some(len(dataset)):
        info = dataset.get_data_info(index)
        path = info.get('img_path')
        if not path or '://' in path or not {'height', 'width', 'instances'} <= set(info):
            return
        header = _header(path)
        if header is None:
            continue
        size = header[0][::-1] if turns and header[1] > 4 else header[0]
        if turns and header[1] > 1 and size == header[0] == (info['width'], info['height']):
            ambiguous.append(path)
        if size != (info['width'], info['height']):
            turned = f' (EXIF orientation {header[1]})' if header[1] > 1 else ''
            yield (
                f'{path} is loaded with {size[0]}x{size[1]} pixels{turned}, but its annotations are for '
                f'{info["width"]}x{info["height"]}'
                + ('; rotate the pixels and remove the tag, or set color_type in LoadImageFromFile' if turned else '')
            )
    _warn_of_orientation(ambiguous, 'boxes')


def _turns_images(dataset: Dataset) -> bool:
    """Whether the pipeline rotates images by their EXIF orientation when it loads them."""
    steps = getattr(getattr(_inner(dataset), 'pipeline', None), 'transforms', [])
    return not any('ignore' in str(getattr(step, 'color_type', '')) for step in steps)


def _warn_of_orientation(paths: list[str], labels: str) -> None:
    if paths:
        print_log(
            f'{len(paths)} images have an EXIF orientation and are rotated when loaded, such as {paths[0]}; do their '
            f'{labels} fit? Their sizes do not tell',
            logger='current',
            level=30,
        )


def _inner(dataset: Dataset) -> Dataset:
    while True:
        inner = getattr(dataset, 'dataset', None) or next(iter(getattr(dataset, 'datasets', [])), None)
        if inner is None:
            return dataset
        dataset = inner


def _some(count: int) -> range:
    """All indices, or evenly spaced ones if there are many."""
    return range(0, count, -(-count // MAX_SCANNED) if count else 1)


def _header(path: str) -> tuple[tuple[int, int], int, str] | None:
    """Width and height, orientation and mode of an image file; None if Pillow cannot read it."""
    try:
        with Image.open(path) as image:
            try:
                orientation = image.getexif().get(ORIENTATION, 1)
            except (SyntaxError, ValueError, KeyError, TypeError, OSError, struct.error):  # broken EXIF
                orientation = 1
            return image.size, orientation if isinstance(orientation, int) else 1, image.mode
    except (UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError, struct.error):
        return None  # its decoder will report it


def zero_label_problems(dataset: Dataset) -> Iterator[str]:
    """Different ``reduce_zero_label`` in a dataset and in its pipeline, which mmseg only asserts."""
    inner = _inner(dataset)
    wanted = getattr(inner, 'reduce_zero_label', None)
    for step in getattr(getattr(inner, 'pipeline', None), 'transforms', []):
        given = getattr(step, 'reduce_zero_label', None)
        if wanted is not None and given is not None and given != wanted:
            yield (
                f'reduce_zero_label is {wanted} in {type(inner).__name__} and {given} in {type(step).__name__} of its '
                'pipeline; both must be the same'
            )


def head_problems(model: nn.Module, batch_size: int, world_size: int) -> Iterator[str]:
    """Heads that cannot learn (softmax over one class), or not with this batch (batch norm over a single value)."""
    for path, module in model.named_modules():
        losses = [getattr(module, name, None) for name in ('loss_decode', 'loss_module')]
        softmax = any(
            loss is not None and not any(getattr(part, 'use_sigmoid', False) for part in loss.modules())
            for loss in losses
            if isinstance(loss, nn.Module)
        )
        if softmax and 1 in (getattr(module, 'num_classes', None), getattr(module, 'out_channels', None)):
            yield (
                f'{path} has one class under softmax, whose loss is always 0: make background class 0 and set '
                'num_classes=2'
            )
        if hasattr(module, 'psp_modules') and batch_size * world_size == 1:
            norms = [m for m in module.psp_modules.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
            if norms:
                yield (
                    f'{path} pools to a single pixel before batch norm, which needs at least two images: '
                    "train_dataloader.batch_size=2, or norm_cfg=dict(type='GN', num_groups=32)"
                )
