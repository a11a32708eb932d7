"""Reads packed images, the cache that tools/pack_dataset.py writes."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bootmae_mm.registry import DATASETS
from bootmae_mm.validation import Count, MissingFileError, require, validated

from .archives import Archives
from .base import IndexedImages
from .pack_writer import INDEX, MANIFEST


class Pack(Archives):
    """Images of a pack, by number.

    Args:
        root: Folder of the archives.

    Raises:
        MissingFileError: If there is no pack, the pack is not finished, or an archive is missing.
        ConfigError: If an archive is truncated.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        missing = [name for name in (MANIFEST, INDEX) if not (self.root / name).is_file()]
        if missing:
            raise MissingFileError(
                f'no finished pack in {root} ({missing[0]} is missing); tools/pack_dataset.py writes or finishes one'
            )
        self.format = json.loads((self.root / MANIFEST).read_text())['options']['format']
        with np.load(self.root / INDEX) as index:
            super().__init__(sorted(self.root.glob('images-*.zip')), index['table'], index['names'], index['name_ends'])
        if len(self.table) and len(self.files) <= self.table[:, 0].max():
            raise MissingFileError(f'an archive is missing in {root}: there are {len(self.files)}')
        sizes = np.array([archive.stat().st_size for archive in self.files], dtype=np.int64)
        beyond = np.flatnonzero(self.table[:, 1:3].sum(axis=1) > sizes[self.table[:, 0]])
        cut = [str(self.files[number]) for number in self.table[beyond[:1], 0]]
        require(not cut, f'{cut} is shorter than the index says; copy it, or pack the images, again')

    def image(self, index: int) -> np.ndarray | bytes:
        """Pixels (H, W, 3) uint8, without a copy, or the bytes of a JPEG file."""
        content = self.content(index)
        if self.format == 'jpeg':
            return bytes(content)
        height, width = self.table[index, 4:].tolist()  # after archive, offset, bytes and CRC-32
        return np.frombuffer(content[len(content) - 3 * height * width :], np.uint8).reshape(height, width, 3)

    def is_intact(self, index: int) -> bool:
        """Whether the bytes still have the checksum of the index."""
        return zlib.crc32(self.content(index)) == self.table[index, 3]

    def damaged(self, done: Callable[[], None] = lambda: None) -> list[str]:
        """Names of images whose bytes have changed; ``done`` is called after each image."""
        names = []
        for index in range(len(self)):
            if not self.is_intact(index):
                names.append(self.name(index))
            done()
        return names


@DATASETS.register_module()
class PackedImages(IndexedImages):
    """Images of a pack, without labels; works with the pipeline of :class:`ImageFolder`.

    Args:
        data_root: Folder of the pack, see ``tools/pack_dataset.py``.
        folder: Subfolder with the pack, such as ``'train'``; ``data_root`` itself by default.
        verify: Compare the checksum of every image that is read.
        max_images: Number of images to use, the first ones; all by default.
        **kwargs: Arguments of :class:`SeededDataset` and mmengine's ``BaseDataset`` (``pipeline``, ...).

    Raises:
        MissingFileError: If there is no complete pack.
        ConfigError: If an archive is truncated, or a checksum is wrong.
    """

    @validated
    def __init__(
        self, data_root: str, folder: str = '', verify: bool = False, max_images: Count | None = None, **kwargs: Any
    ) -> None:
        self.folder = folder
        self.verify = verify
        super().__init__(max_images=max_images, data_root=data_root, **kwargs)

    def open(self) -> int:
        """Read the index of the pack."""
        self.pack = Pack(Path(self.data_root, self.folder))
        return len(self.pack)

    def read(self, idx: int) -> dict:
        """``img_path``, and ``img`` or ``img_bytes``."""
        if self.verify:
            name = self.pack.name(idx)
            require(self.pack.is_intact(idx), f'{name} in {self.pack.root} is damaged: its checksum is wrong')
        image = self.pack.image(idx)
        return {'img_path': self.pack.name(idx), 'img_bytes' if isinstance(image, bytes) else 'img': image}
