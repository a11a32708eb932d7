"""Embeddings of many images, written in parts so that an interrupted call resumes."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from mmengine.logging import print_log
from torch.utils.data import DataLoader, Dataset

from bootmae_mm.checkpoints.writing import replace_atomically
from bootmae_mm.data.paths import images_of
from bootmae_mm.engine.recovery import checkpoint_in
from bootmae_mm.progress import bar
from bootmae_mm.validation import Count, Natural, Share, require, validated

from .encoder import Encoder, load_encoder

FORMATS = ('.npy', '.csv', '.parquet')
PART = 1024  # images of a part, the most that an interruption costs
Part = tuple[np.ndarray, np.ndarray]  # indices of its readable images, and their features


@dataclass(frozen=True)
class Embeddings:
    """Features of images.

    Attributes:
        paths: Paths of the N images, those that could not be read left out.
        features: (N, D), or (N, L, D) for patch tokens; float32.
    """

    paths: list[str]
    features: np.ndarray


@validated
def embed(
    checkpoint: str | Path | Encoder,
    images: str | Path | Sequence[str | Path],
    to: str | Path | None = None,
    tokens: Literal['mean', 'cls', 'patches'] = 'mean',
    batch_size: Count = 64,
    num_workers: Natural = 0,
    max_unreadable: Share = 0.01,
    prefix: str | None = None,
    device: str | None = None,
) -> Embeddings:
    """Compute features of images with a pretrained encoder.

    With ``to``, the features are written in parts, and a second call with the same arguments resumes. Several processes
    (``bootmae embed --devices``, or torchrun) share the parts; the first process joins them.

    Args:
        checkpoint: A checkpoint, the work_dir of a run, or an :class:`Encoder`.
        images: Image files and folders of them, at any depth.
        to: File to write: ``.npy``, with the paths in ``NAME.paths.txt``; ``.csv`` or ``.parquet``, with a column
            ``path`` and a column for each of the D features.
        tokens: The mean of the patch tokens, the class token, or all patch tokens (``.npy`` only).
        batch_size: Images at a time.
        num_workers: Processes that read images, for each process that computes.
        max_unreadable: Largest share of images that cannot be read; they are logged, and left out.
        prefix: ``'backbone.'`` for the student (default), ``'teacher.'`` for the momentum encoder.
        device: Device; by default a GPU if there is one.

    Returns:
        Paths and features; of several processes, in the first one only.

    Raises:
        MissingFileError: If there is no such checkpoint, image or folder.
        ConfigError: If the format is unknown, or too many images cannot be read.
    """
    sources = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    paths = images_of(sources)
    target = None if to is None else Path(to)
    if target is not None:
        _check_format(target, tokens)
    rank, world = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
    require(world == 1 or target is not None, 'several processes need a file to write to')
    parts = [paths[start : start + PART] for start in range(0, len(paths), PART)]
    store = None if target is None else _Store(target, _fingerprint(checkpoint, paths, tokens, prefix), rank, world)
    done: dict[int, Part] = {}
    encoder = None
    count = sum(len(part) for part in parts[rank::world])
    with bar('Embedding', count) as advance:
        for number in range(rank, len(parts), world):
            found = store.finished(number) if store else None
            if found is None:
                if encoder is None:
                    encoder = checkpoint if isinstance(checkpoint, Encoder) else load_encoder(checkpoint, prefix=prefix)
                    device = device or ('cuda' if torch.cuda.is_available() else str(encoder.mean.device))
                    encoder.to(_device_of(device))
                found = _embed_part(encoder, parts[number], tokens, batch_size, num_workers, advance)
                if store:
                    store.write(number, found, is_complete=len(found[0]) == len(parts[number]))
            else:
                advance(len(parts[number]))
            if rank == 0:
                done[number] = found
    if store and rank == 0:
        done.update({number: store.wait(number) for number in range(len(parts)) if number not in done})
    result = _joined(parts, [done[number] for number in sorted(done)], max_unreadable)
    if store and rank == 0:
        assert target is not None
        _write(target, result)
        store.remove()
    return result


def _device_of(device: str) -> str:
    """The GPU of this process."""
    return f'cuda:{int(os.environ.get("LOCAL_RANK", 0))}' if device == 'cuda' and 'RANK' in os.environ else device


def _check_format(target: Path, tokens: str) -> None:
    require(target.suffix in FORMATS, f'unknown format {target.name!r}; formats: {", ".join(FORMATS)}')
    require(tokens != 'patches' or target.suffix == '.npy', "tokens='patches' can only be written as .npy")
    if target.suffix == '.parquet':
        import pyarrow  # noqa: F401  before hours of work


def _fingerprint(checkpoint: str | Path | Encoder, paths: list[str], tokens: str, prefix: str | None) -> str:
    """What the parts depend on."""
    if isinstance(checkpoint, Encoder):
        with torch.no_grad():
            source = repr([float(value.double().sum()) for value in checkpoint.state_dict().values()])
    else:
        file = checkpoint_in(checkpoint)
        stamp = os.stat(file).st_mtime_ns if Path(file).is_file() else 0
        source = f'{Path(file).resolve()} {stamp}'
    return hashlib.sha256(
        '\n'.join([source, tokens, str(prefix), str(PART), *paths]).encode('utf-8', 'surrogateescape')
    ).hexdigest()[:16]


class _Pictures(Dataset):
    """Preprocessed pixels by index, or the reason why an image cannot be read."""

    def __init__(self, encoder: Encoder, paths: list[str]) -> None:
        self.encoder, self.paths = encoder, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, np.ndarray | str]:
        try:
            return index, self.encoder.resized(self.encoder._pixels(self.paths[index]))
        except Exception as error:  # noqa: BLE001  decoders raise anything on a broken file
            return index, str(error) or type(error).__name__


def _embed_part(
    encoder: Encoder, paths: list[str], tokens: str, batch_size: int, num_workers: int, advance: object
) -> Part:
    """Indices of the readable images, and their features."""
    loader = DataLoader(_Pictures(encoder, paths), batch_size, num_workers=num_workers, collate_fn=list)
    indices: list[int] = []
    features: list[np.ndarray] = []
    for batch in loader:
        good = [(index, pixels) for index, pixels in batch if isinstance(pixels, np.ndarray)]
        for index, reason in batch:
            if isinstance(reason, str):
                print_log(f'unreadable image left out: {paths[index]}: {reason}', logger='current', level=30)
        if good:
            pixels = torch.from_numpy(np.stack([pixels for _, pixels in good])).permute(0, 3, 1, 2)  # (B, C, H, W)
            with torch.no_grad():
                found = getattr(encoder(pixels.to(encoder.mean.device)), tokens)
            features.append(found.float().cpu().numpy())
            indices += [index for index, _ in good]
        advance(len(batch))  # type: ignore[operator]
    shape = (0, encoder.embed_dims) if tokens != 'patches' else (0, np.prod(encoder.grid_size), encoder.embed_dims)
    return np.array(indices, dtype=np.int64), np.concatenate(features) if features else np.zeros(shape, np.float32)


class _Store:
    """Finished parts beside the file to write, shared by the processes of a call and by later calls.

    A part without all of its images counts for its own call only: they may be readable in a later one.
    """

    def __init__(self, target: Path, fingerprint: str, rank: int, world: int) -> None:
        self.folder = target.with_name(f'.{target.name}.{fingerprint}.parts')
        self.folder.mkdir(parents=True, exist_ok=True)
        self.call = os.environ.get('TORCHELASTIC_RUN_ID', 'call') if world > 1 else str(os.getpid())
        self.world = world
        (self.folder / f'started.{rank}.{self.call}').touch()

    def _file(self, number: int, is_complete: bool) -> Path:
        return self.folder / (f'{number:06}.npz' if is_complete else f'{number:06}.{self.call}.npz')

    def finished(self, number: int) -> Part | None:
        """A complete part of this or an earlier call, or None."""
        return self._read(self._file(number, is_complete=True))

    def _read(self, file: Path) -> Part | None:
        if not file.is_file():
            return None
        with np.load(file) as part:
            return part['indices'], part['features']

    def write(self, number: int, part: Part, is_complete: bool) -> None:
        """Write a part under its name once all of it is there."""
        temporary = self.folder / f'.{number:06}.{os.getpid()}'
        with open(temporary, 'wb') as file:
            np.savez(file, indices=part[0], features=part[1])
        replace_atomically(temporary, self._file(number, is_complete))

    def wait(self, number: int) -> Part:
        """A part that another process writes; torchrun ends this process if that one fails."""
        while (part := self.finished(number) or self._read(self._file(number, is_complete=False))) is None:
            time.sleep(0.5)
        return part

    def remove(self) -> None:
        """Remove the folder, once no process of this call can look for it anymore."""
        while len(list(self.folder.glob(f'started.*.{self.call}'))) < self.world:
            time.sleep(0.5)
        shutil.rmtree(self.folder)


def _joined(parts: list[list[str]], done: list[Part], max_unreadable: float) -> Embeddings:
    paths = [part[index] for part, (indices, _) in zip(parts, done) for index in indices]
    total = sum(len(part) for part in parts[: len(done)])
    missing = total - len(paths)
    allowed = f'more than max_unreadable={max_unreadable} allows'
    require(missing <= max_unreadable * total, f'{missing} of {total} images cannot be read, {allowed}')
    return Embeddings(
        paths, np.concatenate([features for _, features in done]) if done else np.zeros((0, 0), np.float32)
    )


def _write(target: Path, result: Embeddings) -> None:
    """Write the features in the format of the file's name, under that name once it is complete."""
    part = target.with_name(f'.{target.name}.part')
    columns = [f'f{index}' for index in range(result.features.shape[-1])]
    if target.suffix == '.npy':
        listing = target.with_suffix('.paths.txt')
        listing.write_text('\n'.join(result.paths) + '\n', encoding='utf-8', errors='surrogateescape')
        with open(part, 'wb') as file:
            np.save(file, result.features)
    elif target.suffix == '.csv':
        with open(part, 'w', newline='', encoding='utf-8', errors='surrogateescape') as file:
            writer = csv.writer(file)
            writer.writerow(['path', *columns])
            # 9 digits restore every float32.
            writer.writerows(
                [path, *(f'{value:.9g}' for value in row)] for path, row in zip(result.paths, result.features)
            )
    else:
        import pyarrow
        import pyarrow.parquet

        arrays = {name: result.features[:, index] for index, name in enumerate(columns)}
        pyarrow.parquet.write_table(pyarrow.table({'path': result.paths, **arrays}), part)
    replace_atomically(part, target)
