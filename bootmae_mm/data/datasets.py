"""Datasets of images without labels, and the digits of scikit-learn."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from bootmae_mm.registry import DATASETS
from bootmae_mm.validation import ConfigError, Count, MissingFileError, Share, Side, require, validated

from .decoding import UnreadableImageError
from .mask_types import build_masking
from .paths import found_images, listed_images
from .samplers import SeededIndex


class SeededDataset(BaseDataset):
    """Dataset whose random choices follow the seed of a :class:`SeededIndex`, with a mask for every image.

    Args:
        masking: Options of :class:`MaskSampling`, or of another ``type`` of masks; None for no masks. A key of the
            dataset rather than a step of the pipeline, so that a child config can change one option in one line.
        **kwargs: Arguments of mmengine's ``BaseDataset``.
    """

    def __init__(self, masking: dict | None = None, **kwargs: Any) -> None:
        self.masking = None if masking is None else build_masking(masking)
        super().__init__(**kwargs)

    def __getitem__(self, idx: int) -> dict | list[dict]:
        """The sample at ``idx``, after the pipeline; several with :class:`Repeat`."""
        if isinstance(idx, SeededIndex):
            random.seed(idx.seed)
            np.random.seed(idx.seed)
            # Not torch.manual_seed, which seeds all devices: where CUDA is not initialized (in workers) it records a
            # stack trace for every call.
            torch.default_generator.manual_seed(idx.seed)
        sample = super().__getitem__(int(idx))
        if self.masking is None:
            return sample
        return [self.masking(part) for part in sample] if isinstance(sample, list) else self.masking(sample)


@DATASETS.register_module()
class ImageFolder(SeededDataset):
    """All images below a folder, without labels and without class folders.

    Links are followed, but no folder is visited twice.

    An unreadable image is skipped (the next one takes its place), logged, listed in a file, and counted across workers.
    The run stops and names the files once more than ``max_unreadable`` of the images seen so far are unreadable (of at
    least 1,000 images, or of all if there are fewer).

    Args:
        data_root: The folder.
        folder: Subfolder to use, such as ``'train'``; the whole folder by default.
        ann_file: List of the images to use, with paths relative to the folder: text with one path per line (a second
            column, a label, is ignored), or a table, ``.csv``, ``.tsv`` or ``.parquet``. Saves the scan of a folder.
        column: Column of a table that has the paths.
        max_unreadable: Largest share of unreadable images, in [0, 1].
        extensions: Lower-case endings of image files; by default the usual ones, or ``.npy`` and ``.dcm`` in a folder
            with nothing else.
        max_images: Use only the first ``max_images`` images; all by default.
        unreadable_file: Text file that lists unreadable images, one line each: path, tab, reason. The Runner sets it to
            ``unreadable_images.txt`` in its work_dir.
        **kwargs: Arguments of :class:`SeededDataset` and mmengine's ``BaseDataset`` (``pipeline``, ...).

    Raises:
        MissingFileError: If the folder or the list is missing.
        OSError: If a subfolder cannot be listed.
        ConfigError: If there is no image, or the list leads out of the folder.
    """

    @validated
    def __init__(
        self,
        data_root: str,
        folder: str = '',
        ann_file: str = '',
        column: str = 'path',
        max_unreadable: Share = 0.01,
        extensions: Sequence[str] | None = None,
        max_images: Count | None = None,
        unreadable_file: str = '',
        **kwargs: Any,
    ) -> None:
        self.folder = folder
        self.max_unreadable = max_unreadable
        self.extensions = extensions
        self.column = column
        self.max_images = max_images
        self.unreadable_file = unreadable_file
        self.image_list = ann_file
        super().__init__(data_root=data_root, **kwargs)
        # Shared with the workers, so that all of them count together.
        self._seen = torch.zeros(len(self), dtype=torch.uint8).share_memory_()
        self._unreadable = torch.zeros(len(self), dtype=torch.uint8).share_memory_()

    def load_data_list(self) -> list[dict]:
        """Paths of the images, sorted, one dict each."""
        root = Path(self.data_root, self.folder)
        if not root.is_dir():
            raise MissingFileError(f'no folder {root} (data_root); set it with --cfg-options data_root=/your/images')
        if self.image_list:
            paths = listed_images(root, self.image_list, self.column)
            require(paths, f'no image in {self.image_list} (ann_file)')
        else:
            paths = found_images(root, self.extensions)
        return [dict(img_path=path) for path in paths[: self.max_images]]

    def __getitem__(self, idx: int) -> dict | list[dict]:
        """The sample at ``idx``, or the next readable one."""
        position = int(idx)
        for _ in range(len(self)):
            self._seen[position] = 1
            try:
                return super().__getitem__(idx)
            except UnreadableImageError as error:
                self._note_unreadable(position, error)
            position = (position + 1) % len(self)  # the next image, with the seed of this one
            idx = SeededIndex(position, idx.key) if isinstance(idx, SeededIndex) else position
        raise ConfigError(f'none of the {len(self)} images in {self.data_root} can be read')

    def _note_unreadable(self, position: int, error: UnreadableImageError) -> None:
        if not self._unreadable[position]:
            self._unreadable[position] = 1
            print_log(f'unreadable image skipped: {_printable(str(error))}', logger='current', level=30)
            self._list(error)
        count = int(self._unreadable.sum(dtype=torch.int64))
        seen = max(int(self._seen.sum(dtype=torch.int64)), min(len(self), 1000))  # no verdict after a few images
        if count > self.max_unreadable * seen:
            names = [self.get_data_info(i)['img_path'] for i in self._unreadable.nonzero().flatten().tolist()[:10]]
            raise ConfigError(
                f'{count} of {seen} images cannot be read, more than max_unreadable='
                f'{self.max_unreadable} allows: {_printable(", ".join(names))}{" ..." if count > 10 else ""}'
            ) from error

    def _list(self, error: UnreadableImageError) -> None:
        if not self.unreadable_file:
            return
        file = Path(self.unreadable_file)
        path = _printable(error.path)
        try:
            # A full disk may have cut a line inside a character.
            known = file.read_text(encoding='utf-8', errors='replace').splitlines() if file.is_file() else []
            if not any(line.startswith(f'{path}\t') for line in known):
                file.parent.mkdir(parents=True, exist_ok=True)
                with open(file, 'a', encoding='utf-8') as out:  # one write: other processes append too
                    out.write(f'{path}\t{_printable(error.reason)}\n')
        except OSError as failure:  # the image is in the log, too
            print_log(f'{file} cannot be written: {failure}', logger='current', level=40)


def _printable(text: str) -> str:
    """The text in one line, with undecodable and unprintable characters escaped."""
    text = text.encode('utf-8', 'backslashreplace').decode()
    return ''.join(character if character.isprintable() else repr(character)[1:-1] for character in text)


@DATASETS.register_module()
class Digits(SeededDataset):
    """scikit-learn's 1,797 handwritten digits: real images that come with a dependency.

    Source: ``sklearn.datasets.load_digits`` (test set of the UCI optical digits, 8x8 pixels, 17 gray levels), enlarged
    with bicubic interpolation, as RGB.

    Args:
        split: ``'train'`` (1,297 images) or ``'test'`` (the other 500), drawn once with a fixed seed.
        img_size: Side in pixels that they are enlarged to.
        **kwargs: Arguments of :class:`SeededDataset` and mmengine's ``BaseDataset``.
    """

    METAINFO = dict(classes=tuple('0123456789'))

    @validated
    def __init__(self, split: Literal['train', 'test'] = 'train', img_size: Side = 16, **kwargs: Any) -> None:
        self.split = split
        self.side = img_size
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        """Images and labels of the split, one dict each."""
        from PIL import Image
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = np.random.RandomState(0).permutation(len(digits.target))  # the fixed split
        chosen = order[500:] if self.split == 'train' else order[:500]
        data_list = []
        for index in chosen:
            gray = Image.fromarray((digits.images[index] * (255 / 16)).round().astype(np.uint8))
            img = np.asarray(gray.resize((self.side, self.side), Image.Resampling.BICUBIC))
            img = np.repeat(img[:, :, None], 3, axis=2)  # (side, side, 3)
            data_list.append(dict(img=img, img_shape=img.shape[:2], gt_label=int(digits.target[index])))
        return data_list
