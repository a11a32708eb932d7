"""Images in ZIP and TAR archives, read by index: any order, without unpacking, also from S3 and the web."""

from __future__ import annotations

import fcntl
import mmap
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from mmengine.logging import print_log

from bootmae_mm.registry import DATASETS
from bootmae_mm.validation import ConfigError, Count, MissingFileError, Share, require, validated

from .base import IndexedImages
from .paths import ARRAYS, EXTENSIONS, is_hidden

ENDINGS = ('.tar', '.zip')
DEFLATED = zipfile.ZIP_DEFLATED
CACHE = '~/.cache/bootmae_mm/archives'


class Archives:
    """Entries of archives, by number; each process maps a file when it first needs it.

    Args:
        files: Paths of the archives.
        table: For each entry the number of its archive, its first byte and its size; further columns are allowed.
        names: Names of the entries, joined, as bytes.
        ends: End of each name.
        deflated: Whether each entry is compressed, as in ZIP; by default none is.
    """

    def __init__(
        self,
        files: Sequence[Path],
        table: np.ndarray,
        names: np.ndarray,
        ends: np.ndarray,
        deflated: np.ndarray | None = None,
    ) -> None:
        self.files = list(files)
        self.table, self._names, self._ends, self._deflated = table, names, ends, deflated
        self._maps: dict[int, mmap.mmap] = {}  # by number of the file

    @classmethod
    def scan(cls, files: Sequence[Path], extensions: Sequence[str]) -> Archives:
        """Find the images in archives, in the order of the archives.

        Raises:
            ConfigError: If a file is no archive, or a TAR file is compressed.
        """
        rows, names, deflated = [], [], []
        for number, file in enumerate(files):
            for name, start, size, is_deflated in _entries(file):
                if name.lower().endswith(tuple(extensions)) and not any(map(is_hidden, name.split('/'))):
                    rows.append((number, start, size))
                    names.append(name)
                    deflated.append(is_deflated)
        table = np.array(rows, dtype=np.int64).reshape(-1, 3)
        return cls(files, table, *joined_names(names), np.array(deflated, dtype=bool))

    def __len__(self) -> int:
        return len(self.table)

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_maps': {}}  # a map cannot be pickled

    def name(self, index: int) -> str:
        """Name of an entry."""
        start = self._ends[index - 1] if index else 0
        return self._names[start : self._ends[index]].tobytes().decode(errors='surrogateescape')

    def content(self, index: int) -> memoryview:
        """Bytes of an entry; without a copy unless it is compressed."""
        number, start, size = self.table[index, :3].tolist()
        if number not in self._maps:
            with open(self.files[number], 'rb') as file:
                self._maps[number] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        content = memoryview(self._maps[number])[start : start + size]
        is_deflated = self._deflated is not None and self._deflated[index]
        return memoryview(zlib.decompress(content, -15)) if is_deflated else content


def joined_names(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Names as one string of bytes, and the end of each: a list of a million strings would be copied to each worker."""
    text = [name.encode(errors='surrogateescape') for name in names]
    ends = np.cumsum([len(name) for name in text], dtype=np.int64)
    return np.frombuffer(b''.join(text), np.uint8), ends


def start_of(entry: zipfile.ZipInfo, file: BinaryIO) -> int:
    """First byte of an entry of a ZIP file, after its local header."""
    file.seek(entry.header_offset + 26)
    name_length, extra_length = struct.unpack('<HH', file.read(4))
    return entry.header_offset + 30 + name_length + extra_length


def _entries(path: Path) -> Iterator[tuple[str, int, int, bool]]:
    """Name, first byte, size in the archive, and whether it is compressed, of each file in an archive."""
    try:
        if zipfile.is_zipfile(path):
            with open(path, 'rb') as file, zipfile.ZipFile(file) as content:
                for entry in content.infolist():
                    known = entry.compress_type in (zipfile.ZIP_STORED, DEFLATED) and not entry.flag_bits & 1
                    require(
                        entry.is_dir() or known, f'{path}: {entry.filename} is encrypted, or its compression unknown'
                    )
                    if not entry.is_dir():
                        is_deflated = entry.compress_type == DEFLATED
                        yield entry.filename, start_of(entry, file), entry.compress_size, is_deflated
        else:
            with tarfile.open(path, 'r:') as tar:  # uncompressed
                for member in tar:
                    if member.isfile() and not member.issparse():
                        yield member.name, member.offset_data, member.size, False
    except (tarfile.TarError, zipfile.BadZipFile) as error:
        advice = 'neither a ZIP file nor an uncompressed TAR file'
        raise ConfigError(f'{path} is {advice} ({error}); images are compressed already: gunzip it') from error


def expanded(pattern: str) -> list[str]:
    """``train-{000..123}.tar`` as a list, as in webdataset; other patterns alone."""
    found = re.search(r'\{(\d+)\.\.(\d+)\}', pattern)
    if found is None:
        return [pattern]
    first, last = found[1], found[2]
    numbers = range(int(first), int(last) + 1)
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [part for number in numbers for part in expanded(f'{before}{number:0{len(first)}}{after}')]


def is_archives(root: str) -> bool:
    """Whether a path or URL is one of archives, or a folder with archives and nothing else at its top."""
    if root.endswith(ENDINGS):
        return True
    if not Path(root).is_dir():
        return False
    names = [path.name for path in Path(root).iterdir() if not is_hidden(path.name)]
    archives = [name for name in names if name.endswith(ENDINGS)]
    others = [name for name in names if name not in archives and Path(root, name).suffix not in ('.json', '.txt')]
    return bool(archives) and not others


def find_archives(root: str, cache: str | Path = CACHE) -> list[Path]:
    """Local paths of archives.

    Args:
        root: A folder; or a path or URL, with ``*`` (paths only) and ``{000..123}``.
        cache: Folder that archives of URLs are copied to, once.

    Raises:
        MissingFileError: If there is no such archive.
        ConfigError: If a package for the URL is missing.
    """
    if '://' in root:
        return [_fetched(url, Path(cache).expanduser()) for url in expanded(root)]
    if Path(root).is_dir():
        found = sorted(
            path for path in Path(root).rglob('*') if path.name.endswith(ENDINGS) and not is_hidden(path.name)
        )
    else:
        found = []
        for part in expanded(root):
            paths = sorted(map(Path, glob(part)))
            if not paths:
                raise MissingFileError(f'no archive {part}')
            found += paths
    if not found:
        raise MissingFileError(f'no archive in {root}: no file ends in {" or ".join(ENDINGS)}')
    return found


def _fetched(url: str, cache: Path) -> Path:
    """Copy of an archive in the cache; one process of a machine copies it, the others wait."""
    try:
        import fsspec
    except ImportError as error:
        raise ConfigError(f"{url} needs fsspec: pip install 'bootmae_mm[sources]'") from error
    target = cache / re.sub(r'[^\w.-]+', '_', url)
    if target.is_file():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / f'.{target.name}.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, also by a crash
        if not target.is_file():
            print_log(f'copying {url} to {target}', logger='current')
            part = target.with_name(f'{target.name}.part')
            try:
                files, path = fsspec.core.url_to_fs(url)
                files.get_file(path, str(part))
            except FileNotFoundError as error:
                raise MissingFileError(f'no archive {url}') from error
            except (ImportError, ValueError) as error:  # no package, or unknown protocol
                raise ConfigError(f'{url} cannot be read: {error}') from error
            part.replace(target)
    return target


@DATASETS.register_module()
class ImageArchives(IndexedImages):
    """Images in ZIP and TAR archives, such as the shards of webdataset, without labels.

    The images are found once, and then read by index from files that are mapped into memory, so that the order is
    random over all archives and a run resumes exactly, as with :class:`ImageFolder`. Archives of URLs are copied to a
    local folder first. Other entries (labels, texts) are ignored.

    Args:
        data_root: A folder of archives; or a path or URL with ``*`` (paths only) and ``{000..123}``, such as
            ``'s3://bucket/train-{000..123}.tar'``.
        folder: Subfolder of ``data_root``.
        extensions: Lower-case endings of images.
        cache: Folder for archives of URLs.
        max_unreadable, max_images, unreadable_file: See :class:`UnlabeledImages`.
        **kwargs: Arguments of :class:`SeededDataset` and mmengine's ``BaseDataset`` (``pipeline``, ...).

    Raises:
        MissingFileError: If there is no such archive.
        ConfigError: If a file is no archive, or there is no image.
    """

    @validated
    def __init__(
        self,
        data_root: str,
        folder: str = '',
        extensions: Sequence[str] = (*EXTENSIONS, *ARRAYS),
        cache: str = CACHE,
        max_unreadable: Share = 0.01,
        max_images: Count | None = None,
        unreadable_file: str = '',
        **kwargs: Any,
    ) -> None:
        self.folder = folder
        self.extensions = tuple(extensions)
        self.cache = cache
        self.source = f'{data_root.rstrip("/")}/{folder}' if folder else data_root
        super().__init__(max_unreadable, max_images, unreadable_file, data_root='', **kwargs)

    def open(self) -> int:
        """Find the images."""
        files = find_archives(self.source, self.cache)
        self.archives = Archives.scan(files, self.extensions)
        require(len(self.archives), f'no image in the {len(files)} archive(s) of {self.source}')
        print_log(f'{len(self.archives):,} images in {len(files):,} archive(s) of {self.source}', logger='current')
        return len(self.archives)

    def read(self, idx: int) -> dict:
        """``img_path`` (of the archive and in it) and ``img_bytes``."""
        file = self.archives.files[self.archives.table[idx, 0]]
        try:
            content = bytes(self.archives.content(idx))
        except zlib.error:
            content = b''  # counted as unreadable
        return dict(img_path=f'{file}/{self.archives.name(idx)}', img_bytes=content)
