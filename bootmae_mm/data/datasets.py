"""Images without labels in a folder, and the digits of scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bootmae_mm.registry import DATASETS
from bootmae_mm.validation import Count, MissingFileError, Share, Side, require, validated

from .base import SeededDataset, UnlabeledImages
from .paths import found_images, listed_images


@DATASETS.register_module()
class ImageFolder(UnlabeledImages):
    """All images below a folder, without labels and without class folders.

    Links are followed, but no folder is visited twice.

    Unreadable images are skipped and counted, see :class:`UnlabeledImages`.

    Args:
        data_root: The folder.
        folder: Subfolder to use, such as ``'train'``; the whole folder by default.
        ann_file: List of the images to use, with paths relative to the folder: text with one path per line (a second
            column, a label, is ignored), or a table, ``.csv``, ``.tsv`` or ``.parquet``. Saves the scan of a folder.
        column: Column of a table that has the paths.
        extensions: Lower-case endings of image files; by default the usual ones, or ``.npy`` and ``.dcm`` in a folder
            with nothing else.
        max_unreadable: See :class:`UnlabeledImages`.
        max_images: See :class:`UnlabeledImages`.
        unreadable_file: See :class:`UnlabeledImages`.
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
        self.extensions = extensions
        self.column = column
        self.image_list = ann_file
        super().__init__(max_unreadable, max_images, unreadable_file, data_root=data_root, **kwargs)

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
