"""Reading the cache that tools/pack_dataset.py writes."""

from __future__ import annotations

import json
import mmap
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bootmae_mm.registry import DATASETS
from bootmae_mm.values import integer

from .datasets import SeededDataset
from .pack_writer import INDEX, MANIFEST


class Pack:
    """The images of a pack, by number; archives are opened where they are first needed, in each process anew.

    Args:
        root: Folder of the archives.

    Raises:
        FileNotFoundError: If there is no pack, an unfinished one, or an archive is missing.
        ValueError: If an archive is truncated.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not (self.root / MANIFEST).is_file():
            raise FileNotFoundError(f'no pack in {root}: {MANIFEST} is missing; tools/pack_dataset.py writes one')
        if not (self.root / INDEX).is_file():
            raise FileNotFoundError(f'the pack in {root} is not finished; run tools/pack_dataset.py again')
        self.format = json.loads((self.root / MANIFEST).read_text())['options']['format']
        with np.load(self.root / INDEX) as index:
            self.table, self._names, self._ends = index['table'], index['names'], index['name_ends']
        self.archives = sorted(self.root.glob('images-*.zip'))
        if len(self.table) and len(self.archives) <= self.table[:, 0].max():
            raise FileNotFoundError(f'an archive is missing in {root}: there are {len(self.archives)}')
        sizes = np.array([archive.stat().st_size for archive in self.archives], dtype=np.int64)
        beyond = np.flatnonzero(self.table[:, 1:3].sum(axis=1) > sizes[self.table[:, 0]])
        if len(beyond):
            archive = self.archives[self.table[beyond[0], 0]]
            raise ValueError(f'{archive} is shorter than the index says; copy it, or pack the images, again')
        self._maps: dict[int, mmap.mmap] = {}

    def __len__(self) -> int:
        return len(self.table)

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_maps': {}}

    def name(self, index: int) -> str:
        """Path of the image in the folder it was packed from."""
        start = self._ends[index - 1] if index else 0
        return self._names[start : self._ends[index]].tobytes().decode()

    def content(self, index: int) -> memoryview:
        """The bytes of an entry, not copied."""
        number, start, size = self.table[index, :3].tolist()
        if number not in self._maps:
            with open(self.archives[number], 'rb') as file:
                self._maps[number] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return memoryview(self._maps[number])[start : start + size]

    def image(self, index: int) -> np.ndarray | bytes:
        """Pixels (H, W, 3) uint8, not copied, or the bytes of a JPEG file."""
        content = self.content(index)
        if self.format == 'jpeg':
            return bytes(content)
        height, width = self.table[index, 4:].tolist()
        return np.frombuffer(content[len(content) - 3 * height * width :], np.uint8).reshape(height, width, 3)

    def is_intact(self, index: int) -> bool:
        """Whether the bytes have the checksum they were packed with."""
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
class PackedImages(SeededDataset):
    """Images of a pack, without labels; takes the pipeline of :class:`ImageFolder` as it is.

    Args:
        data_root: Folder of the pack, see ``tools/pack_dataset.py``.
        folder: A folder in it that is the pack, such as ``'train'``; itself by default.
        verify: Compare the checksum of every image that is read.
        max_images: Use the first so many only; all by default.
        **kwargs: As for :class:`SeededDataset` and mmengine's ``BaseDataset`` (``pipeline``, ``masking``, ...).

    Raises:
        FileNotFoundError: If there is no complete pack.
        ValueError: If an archive is truncated, or a checksum is wrong.
    """

    _fully_initialized: bool  # mmengine's

    def __init__(
        self, data_root: str, folder: str = '', verify: bool = False, max_images: int | None = None, **kwargs: Any
    ) -> None:
        self.folder = folder
        self.verify = verify
        self.max_images = None if max_images is None else integer(max_images, 'max_images', least=1)
        super().__init__(data_root=data_root, **kwargs)

    def full_init(self) -> None:
        """Read the index, which stands for mmengine's list of one dict an image."""
        if not self._fully_initialized:
            self.pack = Pack(Path(self.data_root, self.folder))
            self._fully_initialized = True

    def __len__(self) -> int:
        self.full_init()
        return len(self.pack) if self.max_images is None else min(self.max_images, len(self.pack))

    def get_data_info(self, idx: int) -> dict:
        """``img_path``, and ``img`` or ``img_bytes``."""
        self.full_init()
        idx = idx % len(self)
        if self.verify and not self.pack.is_intact(idx):
            raise ValueError(f'{self.pack.name(idx)} in {self.pack.root} is damaged: its checksum is wrong')
        image = self.pack.image(idx)
        return dict(
            img_path=self.pack.name(idx), sample_idx=idx, **{'img_bytes' if isinstance(image, bytes) else 'img': image}
        )
