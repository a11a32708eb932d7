"""Paths of images: found below a folder, or read from a list."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmengine.logging import print_log

from bootmae_mm.validation import ConfigError, MissingFileError, require

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.pgm', '.gif')
# Endings of files that often hold something else, such as features beside the images they are of.
ARRAYS = ('.npy', '.dcm', '.dicom')
LISTS = ('.txt', '.csv', '.tsv', '.parquet')


def found_images(root: str | Path, extensions: Sequence[str] | None = None) -> list[str]:
    """Paths of all images below a folder, at any depth, sorted.

    Links are followed, but no folder is visited twice, so that a link to a parent folder ends. Hidden files and folders
    (:func:`is_hidden`) are skipped; the log says how many.

    Args:
        root: The folder.
        extensions: Lower-case endings of image files; by default :data:`EXTENSIONS`, or :data:`ARRAYS` in a folder
            without any of them.

    Raises:
        OSError: If a folder cannot be listed: its images would silently be missing.
        ConfigError: If there is no image.
    """
    wanted = (*EXTENSIONS, *ARRAYS) if extensions is None else tuple(extensions)

    def fail(error: OSError) -> None:
        raise error

    def is_image(name: str) -> bool:
        return name.lower().endswith(wanted)

    paths: list[str] = []
    hidden: list[str] = []
    visited = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=fail):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:  # through a link
            print_log(f'{folder} leads to a folder that was visited already: skipped', logger='current')
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        # Hidden folders count as one each: they are not entered.
        hidden += [os.path.join(folder, name, '') for name in folders if is_hidden(name)]
        folders[:] = sorted(name for name in folders if not is_hidden(name))  # the same order in every process
        for name in filter(is_image, names):
            (hidden if is_hidden(name) else paths).append(os.path.join(folder, name))
    if extensions is None:
        usual = [path for path in paths if path.lower().endswith(EXTENSIONS)]
        if usual and len(usual) < len(paths):
            others = f'{len(paths) - len(usual)} arrays (.npy, .dcm) beside {len(usual)} images are not used'
            print_log(f"{others}; to use them, set extensions of the data set, such as ('.npy',)", 'current')
        paths = usual or paths
    if hidden:
        print_log(
            f'{len(hidden)} hidden files and folders are skipped, such as {min(hidden)}', logger='current', level=30
        )
    require(paths, f'no image in {root}: no file ends in {", ".join(wanted)}')
    return sorted(paths)


def images_of(sources: Iterable[str | Path]) -> list[str]:
    """Paths of image files, and of all images below folders, in the order of the sources.

    Raises:
        MissingFileError: If there is no such file or folder.
        ConfigError: If there is no image in a folder.
    """
    paths: list[str] = []
    for source in sources:
        if Path(source).is_dir():
            paths += found_images(source)
        elif Path(source).is_file():
            paths.append(str(source))
        else:
            raise MissingFileError(f'no image or folder {source}')
    return paths


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or created by a program: ``._a.jpg``, ``.ipynb_checkpoints``."""
    return name.startswith('.') or name == '__MACOSX'


def listed_images(root: str | Path, path: str | Path, column: str = 'path') -> list[str]:
    """Paths of images in a list, relative to a folder, or absolute and inside it.

    Args:
        root: The folder.
        path: Path of the list: text in UTF-8 with one path per line (a second column, a label, is ignored); or a table
            with a header, ``.csv`` (commas), ``.tsv`` (tabs) or ``.parquet``.
        column: Name of the column with the paths, in a table.

    Raises:
        MissingFileError: If there is no such list.
        ConfigError: If it is not UTF-8 text or has no such column, or names a file outside the folder.
    """
    if not Path(path).is_file():
        raise MissingFileError(f'no list of images {path} (ann_file)')
    kind = Path(path).suffix.lower()
    try:
        if kind == '.parquet':
            names = _parquet_column(path, column)
        elif kind in ('.csv', '.tsv'):
            with open(path, encoding='utf-8', newline='') as file:
                rows = csv.DictReader(file, delimiter=',' if kind == '.csv' else '\t')
                columns = list(rows.fieldnames or [])
                require(column in columns, _no_column(path, column, columns))
                names = [row[column] or '' for row in rows]
        else:
            lines = Path(path).read_text(encoding='utf-8').splitlines()
            names = [_without_label(line.strip()) for line in lines]
    except UnicodeDecodeError as error:
        raise ConfigError(f'{path} (ann_file) is not a list in UTF-8: {error}') from error
    names = [name for name in names if name]
    check_inside(names, root, path)
    return [str(Path(root, name)) for name in names]


def _without_label(line: str) -> str:
    name, _, label = line.rpartition(' ')  # paths may contain blanks
    return name if name and label.isdigit() else line


def _no_column(path: str | Path, column: str, columns: list[str]) -> str:
    return f'{path} has no column {column!r}, but {columns}; set column of the data set'


def _parquet_column(path: str | Path, column: str) -> list[str]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(f"{path} needs pyarrow: pip install 'bootmae_mm[sources]'") from error
    columns = parquet.read_schema(path).names
    require(column in columns, _no_column(path, column, columns))
    return [str(name) for name in parquet.read_table(path, columns=[column])[column].to_pylist() if name]


def check_inside(names: Iterable[str], root: str | Path, source: str | Path) -> None:
    """Check that no name leads out of a folder. (Links inside the folder are trusted, and followed.)

    Raises:
        ConfigError: If some do, with their number and the first one.
    """
    folder = os.path.abspath(root)
    outside = [name for name in names if _leads_out(name, folder)]
    require(not outside, f'{len(outside)} of the paths in {source} lead out of {root}, such as {outside[:1]}')


def _leads_out(name: str, folder: str) -> bool:
    if os.path.isabs(name):
        return os.path.commonpath([folder, os.path.normpath(name)]) != folder
    return '..' in name and os.path.normpath(name).split(os.sep)[0] == '..'
