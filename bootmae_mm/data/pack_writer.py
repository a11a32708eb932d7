"""Writes packed images, a cache of reduced images: ZIP archives and an index.

The archives are not compressed, so that any program can read them and every image can be accessed by its offset. They
hold JPEG files or arrays of numpy (.npy), each with its CRC-32.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from bootmae_mm.validation import Count, Options, Side, require

from .decoding import UnreadableImageError
from .loading import LoadImage
from .transforms import resize

FORMATS = ('raw', 'jpeg')  # of PackOptions
MANIFEST, UNREADABLE = 'pack.json', 'unreadable.txt'


class PackOptions(Options):
    """Packing options.

    Attributes:
        edge: Images with a longer shorter side are reduced to this many pixels; none is enlarged.
        format: ``'raw'``: pixels, nothing to decode; ``'jpeg'``: a sixth of the space (photographs, quality 95).
        quality: Quality of JPEG.
        images_per_archive: Images per archive.
    """

    edge: Side = 256
    format: Literal['raw', 'jpeg'] = 'raw'
    quality: Annotated[int, Field(ge=1, le=95)] = 95
    images_per_archive: Count = 2000


def reduced(img: np.ndarray, edge: int) -> np.ndarray:
    """Reduce an image (H, W, 3) uint8 so that its shorter side is at most ``edge``."""
    height, width = img.shape[:2]
    shorter = min(height, width)
    if shorter <= edge:
        return img
    return resize(img, (round(height * edge / shorter), round(width * edge / shorter)))


def encoded(img: np.ndarray, options: PackOptions) -> bytes:
    """Encode an image as the content of an archive entry."""
    buffer = io.BytesIO()
    if options.format == 'raw':
        np.save(buffer, np.ascontiguousarray(img), allow_pickle=False)
    else:
        # Colors at full resolution: they were subsampled once already, and the crop enlarges.
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
    """Pack images. Archives of an interrupted call with the same arguments are kept.

    Args:
        root: Folder of the images.
        names: Paths of the images relative to the folder.
        out: Folder for the archives, created if missing.
        options: Packing options.
        workers: Number of processes.
        max_unreadable: Largest share of unreadable images; they are left out and listed in ``unreadable.txt``.
        done: Callback with the number of images of each finished archive.

    Returns:
        Numbers of ``images``, ``unreadable`` ones and ``bytes``.

    Raises:
        ConfigError: If ``out`` holds another pack, a name is not in UTF-8, or too many images cannot be read.
        OSError: If the disk is full, or would be.
    """
    bad = [name for name in names if not _is_utf8(name)]
    require(not bad, f'{bad[:1]}: the name of the file is not in UTF-8, as archives need; rename it')
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256('\0'.join(names).encode()).hexdigest()
    manifest = dict(options=options.model_dump(), images=len(names), names_sha256=digest, version=1)
    _write_manifest(out, manifest)
    size = options.images_per_archive  # the archives do not depend on the number of workers
    jobs = [
        (out / f'images-{start // size:05}.zip', list(names[start : start + size]))
        for start in range(0, len(names), size)
    ]
    _check_space(out, Path(root), jobs, options)
    work = partial(_write_archive, root=str(root), options=options)
    if workers > 1:
        # Not fork, which is unsafe with the threads of libraries.
        with get_context('spawn').Pool(workers) as pool:
            for count in pool.imap_unordered(work, jobs):
                done(count)
    else:
        for job in jobs:
            done(work(job))
    archives = [archive for archive, _ in jobs]
    packed = {name for archive in archives for name in _packed_names(archive, options)}
    unreadable = sorted(set(names) - packed)
    (out / UNREADABLE).write_text(''.join(f'{name}\n' for name in unreadable))
    require(
        len(unreadable) <= max_unreadable * len(names),
        f'{len(unreadable)} of {len(names)} images cannot be read, more than max_unreadable={max_unreadable} allows; '
        f'they are listed in {out / UNREADABLE}',
    )
    return dict(images=len(packed), unreadable=len(unreadable), bytes=sum(file.stat().st_size for file in archives))


def _packed_names(archive: Path, options: PackOptions) -> list[str]:
    with zipfile.ZipFile(archive) as content:
        return [name.removesuffix('.npy') if options.format == 'raw' else name for name in content.namelist()]


def _is_utf8(name: str) -> bool:
    """Whether a file name is in UTF-8; the bytes of other names come as surrogate escapes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _write_manifest(out: Path, manifest: dict) -> None:
    file = out / MANIFEST
    fits = json.loads(file.read_text()) == manifest if file.is_file() else not any(out.iterdir())
    require(fits, f'{out} holds something else, or a pack of other images or options; choose another folder')
    if not file.is_file():
        file.write_text(json.dumps(manifest, indent=2) + '\n')


def _check_space(out: Path, root: Path, jobs: list[tuple[Path, list[str]]], options: PackOptions) -> None:
    """Refuse a pack that the disk cannot hold, estimated from a sample of the images."""
    missing = [name for archive, names in jobs if not archive.is_file() for name in names]
    sizes = []
    for name in missing[:: max(1, len(missing) // 20)][:20]:  # 20 images, evenly spaced
        try:
            sizes.append(len(encoded(_read(root / name, options), options)))
        except UnreadableImageError:
            continue
    needed = int(np.mean(sizes) * len(missing)) if sizes else 0
    free = shutil.disk_usage(out).free
    if needed > free:
        raise OSError(f'{out} needs about {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free')


def _read(path: Path, options: PackOptions) -> np.ndarray:
    return reduced(LoadImage()(dict(img_path=str(path)))['img'], options.edge)


def _write_archive(job: tuple[Path, list[str]], root: str, options: PackOptions) -> int:
    """Write one archive, under a temporary name until it is complete; return its number of names."""
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
                # A fixed date, so that the same images give the same archive.
                content.writestr(zipfile.ZipInfo(name + '.npy' * (options.format == 'raw')), data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(archive)
    return len(names)
