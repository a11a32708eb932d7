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
from typing import Any, NamedTuple

import numpy as np
from mmengine.logging import print_log

from bootmae_mm.registry import DATASETS
from bootmae_mm.validation import ConfigError, Count, MissingFileError, Share, require, validated

from .array_files import mapped_pixels
from .base import IndexedImages
from .decoding import UnreadableImageError
from .paths import ARRAYS, EXTENSIONS, is_hidden

ENDINGS = ('.tar', '.zip')
DEFLATED = zipfile.ZIP_DEFLATED
IN_TAR = -1  # how an entry is stored; in ZIP it is the number of a compression
CACHE = '~/.cache/bootmae_mm/archives'


class Archives:
    """Images in archives, by number; each process maps a file when it first needs it.

    Args:
        files: Paths of the archives.
        extensions: Lower-case endings of images.

    Attributes:
        files: Paths of the archives.

    Raises:
        ConfigError: If a file is no archive, or a TAR file is compressed.
    """

    def __init__(self, files: Sequence[Path], extensions: Sequence[str] = (*EXTENSIONS, *ARRAYS)) -> None:
        self.files = list(files)
        entries: list[_Entry] = []
        of_file: list[int] = []
        for number, file in enumerate(self.files):
            found = [entry for entry in _entries(file) if _is_image(entry.name, tuple(extensions))]
            entries += found
            of_file += [number] * len(found)
        rows = [(number, *entry[1:]) for number, entry in zip(of_file, entries, strict=True)]
        self.table = np.array(rows, dtype=np.int64).reshape(-1, 5)  # file, start, size, how it is stored, CRC-32
        self._names, self._ends = joined_names([entry.name for entry in entries])
        self._maps: dict[int, mmap.mmap] = {}  # by number of the file

    def __len__(self) -> int:
        return len(self.table)

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_maps': {}}  # a map cannot be pickled

    def name(self, index: int) -> str:
        """Name of an image in its archive."""
        start = self._ends[index - 1] if index else 0
        return self._names[start : self._ends[index]].tobytes().decode(errors='surrogateescape')

    def path(self, index: int) -> str:
        """Path of the archive, and name in it."""
        return f'{self.files[self.table[index, 0]]}/{self.name(index)}'

    def content(self, index: int) -> memoryview:
        """Bytes of an image; without a copy unless they are compressed.

        Raises:
            UnreadableImageError: If the file ends before, or the compressed bytes are damaged.
        """
        number, start, size, stored, _ = self.table[index].tolist()
        if number not in self._maps:
            with open(self.files[number], 'rb') as file:
                self._maps[number] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        data = memoryview(self._maps[number])
        if stored != IN_TAR:  # start is that of the local header, which ends with the name and an extra field
            header = data[start : start + 30]
            start += 30 + sum(struct.unpack('<HH', header[26:])) if len(header) == 30 else 30
        content = data[start : start + size]
        if len(content) < size:
            raise UnreadableImageError(self.path(index), 'the archive is cut off')
        try:
            return memoryview(zlib.decompress(content, -15)) if stored == DEFLATED else content
        except zlib.error as error:
            raise UnreadableImageError(self.path(index), f'the archive is damaged: {error}') from error

    def is_intact(self, index: int) -> bool:
        """Whether an image still has its checksum; of TAR, which has none, whether it is there."""
        try:
            content = self.content(index)
        except UnreadableImageError:
            return False
        return self.table[index, 3] == IN_TAR or zlib.crc32(content) == self.table[index, 4]


class _Entry(NamedTuple):
    """A file in an archive: name, first byte (in ZIP of its local header), size there, how it is stored, CRC-32."""

    name: str
    start: int
    size: int
    stored: int
    crc: int


def _is_image(name: str, extensions: tuple[str, ...]) -> bool:
    return name.lower().endswith(extensions) and not any(map(is_hidden, name.split('/')))


def joined_names(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Names as one string of bytes, and the end of each: a list of a million strings would be copied to each worker."""
    text = [name.encode(errors='surrogateescape') for name in names]
    ends = np.cumsum([len(name) for name in text], dtype=np.int64)
    return np.frombuffer(b''.join(text), np.uint8), ends


def _entries(path: Path) -> Iterator[_Entry]:
    """The files in an archive."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as content:  # reads the directory at its end only
                for entry in content.infolist():
                    known = entry.compress_type in (zipfile.ZIP_STORED, DEFLATED) and not entry.flag_bits & 1
                    require(
                        entry.is_dir() or known, f'{path}: {entry.filename} is encrypted, or its compression unknown'
                    )
                    if not entry.is_dir():
                        how = entry.compress_type
                        yield _Entry(entry.filename, entry.header_offset, entry.compress_size, how, entry.CRC)
        else:
            with tarfile.open(path, 'r:') as tar:  # uncompressed
                for member in tar:
                    if member.isfile() and not member.issparse():
                        yield _Entry(member.name, member.offset_data, member.size, IN_TAR, 0)
    except (tarfile.TarError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f'{path} is neither a ZIP file nor an uncompressed TAR file ({error}); it may be cut off, or compressed: '
            'images are compressed already, so unpack a .tar.gz to a .tar'
        ) from error


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
        verify: Compare the checksum of every image that is read (of ZIP, as TAR has none).
        max_unreadable: See :class:`UnlabeledImages`.
        max_images: See :class:`UnlabeledImages`.
        unreadable_file: See :class:`UnlabeledImages`.
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
        verify: bool = False,
        max_unreadable: Share = 0.01,
        max_images: Count | None = None,
        unreadable_file: str = '',
        **kwargs: Any,
    ) -> None:
        self.folder = folder
        self.extensions = tuple(extensions)
        self.cache = cache
        self.verify = verify
        self.source = f'{data_root.rstrip("/")}/{folder}' if folder else data_root
        super().__init__(max_unreadable, max_images, unreadable_file, data_root='', **kwargs)

    def open(self) -> int:
        """Find the images."""
        files = find_archives(self.source, self.cache)
        self.archives = Archives(files, self.extensions)
        require(len(self.archives), f'no image in the {len(files)} archive(s) of {self.source}')
        print_log(f'{len(self.archives):,} images in {len(files):,} archive(s) of {self.source}', logger='current')
        return len(self.archives)

    def read(self, idx: int) -> dict:
        """``img_path`` (of the archive and in it), and ``img`` (pixels of 8 bits in ``.npy``) or ``img_bytes``."""
        path = self.archives.path(idx)
        if self.verify:
            require(self.archives.is_intact(idx), f'{path} is damaged: its checksum is wrong')
        content = self.archives.content(idx)
        pixels = mapped_pixels(content)
        return dict(img_path=path, img_bytes=bytes(content)) if pixels is None else dict(img_path=path, img=pixels)
