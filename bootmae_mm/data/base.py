"""Base classes of data sets: seeded samples, and unreadable images that are skipped and counted."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from bootmae_mm.validation import ConfigError

from .decoding import UnreadableImageError
from .mask_types import build_masking
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


class UnlabeledImages(SeededDataset):
    """Images without labels, of which some may be unreadable.

    An unreadable image is skipped (the next one takes its place), logged, listed in a file, and counted across workers.
    The run stops and names the files once more than ``max_unreadable`` of the images seen so far are unreadable (of at
    least 1,000 images, or of all if there are fewer).

    Args:
        max_unreadable: Largest share of unreadable images, in [0, 1].
        max_images: Number of images to use, the first ones; all by default.
        unreadable_file: Text file that lists unreadable images, one line each: path, tab, reason. The Runner sets it to
            ``unreadable_images.txt`` in its work_dir.
        **kwargs: Arguments of :class:`SeededDataset` and mmengine's ``BaseDataset`` (``pipeline``, ...).
    """

    def __init__(
        self, max_unreadable: float = 0.01, max_images: int | None = None, unreadable_file: str = '', **kwargs: Any
    ) -> None:
        self.max_unreadable = max_unreadable
        self.max_images = max_images
        self.unreadable_file = unreadable_file
        super().__init__(**kwargs)
        # Shared with the workers, so that all of them count together.
        self._seen = torch.zeros(len(self), dtype=torch.uint8).share_memory_()
        self._unreadable = torch.zeros(len(self), dtype=torch.uint8).share_memory_()

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
        raise ConfigError(f'none of the {len(self)} images can be read, such as {self.get_data_info(0)["img_path"]}')

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


class IndexedImages(UnlabeledImages):
    """Images that an index finds by their number, instead of mmengine's list of one dict per image.

    Subclasses open the index and read an image.
    """

    _fully_initialized: bool  # mmengine's

    def open(self) -> int:
        """Open the index; return the number of images."""
        raise NotImplementedError

    def read(self, idx: int) -> dict:
        """The keys of image ``idx`` for the pipeline: ``img_path``, and ``img_bytes`` or ``img``."""
        raise NotImplementedError

    def full_init(self) -> None:
        """Open the index, once."""
        if not self._fully_initialized:
            found = self.open()
            self._count = found if self.max_images is None else min(found, self.max_images)
            self._fully_initialized = True

    def __len__(self) -> int:
        self.full_init()
        return self._count

    def get_data_info(self, idx: int) -> dict:
        """The keys of an image for the pipeline."""
        self.full_init()
        idx = int(idx) % self._count  # negative ones too
        return dict(self.read(idx), sample_idx=idx)
