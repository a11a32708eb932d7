"""Writing a cache of shortened images: ZIP archives with an index beside them.

The archives are plain ones without compression, so that any program reads them and every image can be got at by its
place: JPEG files, or arrays of pixels as numpy writes them (.npy). Each holds its CRC-32, which the format demands.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from .decoding import UnreadableImageError
from .transforms import LoadRGB, resize

FORMATS = ('raw', 'jpeg')
MANIFEST, INDEX, UNREADABLE = 'pack.json', 'index.npz', 'unreadable.txt'


@dataclass(frozen=True)
class PackOptions:
    """How images are packed.

    Attributes:
        edge: Images whose shorter edge is longer are shortened to it, in pixels; none is enlarged.
        format: ``'raw'``: pixels, nothing to decode; ``'jpeg'``: a sixth of the space (photographs, quality 95).
        quality: Of JPEG, 1..95.
        images_per_archive: As it says.
    """

    edge: int = 256
    format: str = 'raw'
    quality: int = 95
    images_per_archive: int = 2000

    def __post_init__(self) -> None:
        if self.edge < 1 or self.images_per_archive < 1 or not 1 <= self.quality <= 95:
            raise ValueError(
                'edge and images_per_archive must be at least 1 and quality in 1..95, but are '
                f'{self.edge}, {self.images_per_archive} and {self.quality}'
            )
        if self.format not in FORMATS:
            raise ValueError(f'format must be one of {", ".join(FORMATS)}, but is {self.format!r}')


def shortened(img: np.ndarray, edge: int) -> np.ndarray:
    """(H, W, 3) uint8 with its shorter edge at most ``edge``."""
    height, width = img.shape[:2]
    shorter = min(height, width)
    if shorter <= edge:
        return img
    return resize(img, (round(height * edge / shorter), round(width * edge / shorter)))


def encoded(img: np.ndarray, options: PackOptions) -> bytes:
    """The content of an entry."""
    buffer = io.BytesIO()
    if options.format == 'raw':
        np.save(buffer, np.ascontiguousarray(img), allow_pickle=False)
    else:
        # Colours at full resolution: they were halved once already, and the crop enlarges.
        Image.fromarray(img).save(buffer, 'JPEG', quality=options.quality, subsampling=0)
    return buffer.getvalue()


def pack(
    root: str | Path,
    names: Sequence[str],
    out: str | Path,
    options: PackOptions,
    workers: int = 1,
    max_unreadable: float = 0.01,
    done: Callable[[int], None] = lambda count: None,
) -> dict:
    """Pack images; archives that are there already from an interrupted call with the same arguments are kept.

    Args:
        root: Folder of the images.
        names: Their paths in it.
        out: Folder for the archives, made if missing.
        options: How.
        workers: Processes.
        max_unreadable: Largest share of unreadable images; they are left out and named in ``unreadable.txt``.
        done: Called with the number of images as an archive is finished.

    Returns:
        ``images``, ``unreadable``, ``bytes``.

    Raises:
        ValueError: If ``out`` holds another pack, a name is not in UTF-8, or too many images cannot be read.
        OSError: If the disk is full, or will be.
    """
    bad = next((name for name in names if not _is_text(name)), None)
    if bad is not None:
        raise ValueError(f'{bad!r}: a name that is not in UTF-8 does not fit into an archive; rename the file')
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256('\0'.join(names).encode()).hexdigest()
    manifest = dict(options=asdict(options), images=len(names), names_sha256=digest, version=1)
    _write_manifest(out, manifest)
    size = options.images_per_archive
    jobs = [
        (out / f'images-{start // size:05}.zip', list(names[start : start + size]))
        for start in range(0, len(names), size)
    ]
    _check_space(out, Path(root), jobs, options)
    work = partial(_write_archive, root=str(root), options=options)
    if workers > 1:
        # Not fork: a library's threads may run here already.
        with get_context('spawn').Pool(workers) as pool:
            for count in pool.imap_unordered(work, jobs):
                done(count)
    else:
        for job in jobs:
            done(work(job))
    archives = [archive for archive, _ in jobs]
    table, packed_names = _index(archives, options)
    unreadable = sorted(set(names) - set(packed_names))
    (out / UNREADABLE).write_text(''.join(f'{name}\n' for name in unreadable))
    if len(unreadable) > max_unreadable * len(names):
        raise ValueError(
            f'{len(unreadable)} of {len(names)} images cannot be read, more than max_unreadable={max_unreadable} '
            f'allows; they are named in {out / UNREADABLE}'
        )
    _write_index(out / INDEX, table, packed_names)
    return dict(
        images=len(packed_names), unreadable=len(unreadable), bytes=sum(file.stat().st_size for file in archives)
    )


def _is_text(name: str) -> bool:
    """Whether a name is in UTF-8: others come from the file system with their bytes in disguise."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _write_manifest(out: Path, manifest: dict) -> None:
    file = out / MANIFEST
    if file.is_file():
        if json.loads(file.read_text()) != manifest:
            raise ValueError(f'{out} holds a pack of other images or with other options; name another folder')
    elif any(out.iterdir()):
        raise ValueError(f'{out} is not empty and holds no pack')
    else:
        file.write_text(json.dumps(manifest, indent=2) + '\n')


def _check_space(out: Path, root: Path, jobs: list[tuple[Path, list[str]]], options: PackOptions) -> None:
    """Refuse to start what the disk cannot hold, judged by some of the images."""
    missing = [name for archive, names in jobs if not archive.is_file() for name in names]
    sizes = []
    for name in missing[:: max(1, len(missing) // 20)][:20]:
        try:
            sizes.append(len(encoded(_read(root / name, options), options)))
        except UnreadableImageError:
            continue
    needed = int(np.mean(sizes) * len(missing)) if sizes else 0
    free = shutil.disk_usage(out).free
    if needed > free:
        raise OSError(f'about {needed / 1e9:.1f} GB are needed in {out}, and {free / 1e9:.1f} GB are free')


def _read(path: Path, options: PackOptions) -> np.ndarray:
    return shortened(LoadRGB()(dict(img_path=str(path)))['img'], options.edge)


def _write_archive(job: tuple[Path, list[str]], root: str, options: PackOptions) -> int:
    """Write one archive, under another name until it is complete; return the number of names it stands for."""
    import torch

    torch.set_num_threads(1)
    archive, names = job
    if archive.is_file():
        return len(names)
    part = archive.with_suffix('.part')
    with open(part, 'wb') as file:
        with zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as content:
            for name in names:
                try:
                    data = encoded(_read(Path(root, name), options), options)
                except UnreadableImageError:
                    continue
                # With a fixed date, so that the same images make the same archive.
                content.writestr(zipfile.ZipInfo(name + '.npy' * (options.format == 'raw')), data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(archive)
    return len(names)


def _write_index(path: Path, table: np.ndarray, names: list[str]) -> None:
    text = [name.encode() for name in names]
    ends = np.cumsum([len(name) for name in text], dtype=np.int64)
    part = path.with_name(f'{path.name}.part')
    with open(part, 'wb') as file:
        np.savez(file, table=table, names=np.frombuffer(b''.join(text), np.uint8), name_ends=ends)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _index(archives: list[Path], options: PackOptions) -> tuple[np.ndarray, list[str]]:
    """Where every image is: archive, first byte, bytes, CRC-32, and for pixels height and width; and the names."""
    rows, names = [], []
    for number, archive in enumerate(archives):
        with open(archive, 'rb') as file, zipfile.ZipFile(file) as content:
            for entry in content.infolist():
                file.seek(entry.header_offset + 26)
                name_length, extra_length = np.frombuffer(file.read(4), '<u2').tolist()
                start = entry.header_offset + 30 + name_length + extra_length
                size, height, width = entry.file_size, 0, 0
                if options.format == 'raw':
                    file.seek(start)
                    version = np.lib.format.read_magic(file)
                    assert version == (1, 0)
                    (height, width, _), _, _ = np.lib.format.read_array_header_1_0(file)
                rows.append((number, start, size, entry.CRC, height, width))
                names.append(entry.filename.removesuffix('.npy') if options.format == 'raw' else entry.filename)
    return np.array(rows, dtype=np.int64).reshape(-1, 6), names
