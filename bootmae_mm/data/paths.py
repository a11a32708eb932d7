"""Paths of images: found below a folder, or read from a list."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmengine.logging import print_log

from bootmae_mm.validation import ConfigError, MissingFileError, require

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.pgm', '.gif')


def found_images(root: str | Path, extensions: Sequence[str]) -> list[str]:
    """Paths of all images below a folder, at any depth, sorted.

    Links are followed, but no folder is visited twice, so that a link to a parent folder ends. Hidden files and folders
    (:func:`is_hidden`) are skipped; the log says how many.

    Args:
        root: The folder.
        extensions: Lower-case endings of image files.

    Raises:
        OSError: If a folder cannot be listed: its images would silently be missing.
    """

    def fail(error: OSError) -> None:
        raise error

    def is_image(name: str) -> bool:
        return name.lower().endswith(tuple(extensions))

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
    if hidden:
        print_log(
            f'{len(hidden)} hidden files and folders are skipped, such as {min(hidden)}', logger='current', level=30
        )
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
            found = found_images(source, EXTENSIONS)
            require(found, f'no image in {source}: no file ends in {", ".join(EXTENSIONS)}')
            paths += found
        elif Path(source).is_file():
            paths.append(str(source))
        else:
            raise MissingFileError(f'no image or folder {source}')
    return paths


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or created by a program: ``._a.jpg``, ``.ipynb_checkpoints``."""
    return name.startswith('.') or name == '__MACOSX'


def listed_images(root: str | Path, path: str | Path) -> list[str]:
    """Paths of images listed in a text file, one per line, relative to a folder; a second column is ignored.

    Args:
        root: The folder.
        path: Path of the list, in UTF-8.

    Raises:
        MissingFileError: If there is no such list.
        ConfigError: If it is not UTF-8 text, or names a file outside the folder.
    """
    if not Path(path).is_file():
        raise MissingFileError(f'no list of images {path} (ann_file)')
    try:
        lines = Path(path).read_text(encoding='utf-8').splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f'{path} (ann_file) is not a list in UTF-8: {error}') from error
    names = []
    for line in lines:
        name, _, label = line.strip().rpartition(' ')  # paths may contain blanks
        names.append(name if name and label.isdigit() else line.strip())
    names = [name for name in names if name]
    check_inside(names, root, path)
    return [str(Path(root, name)) for name in names]


def check_inside(names: Iterable[str], root: str | Path, source: str | Path) -> None:
    """Check that no name leads out of a folder. (Links inside the folder are trusted, and followed.)

    Raises:
        ConfigError: If some do, with their number and the first one.
    """
    outside = [
        name
        for name in names
        if os.path.isabs(name) or ('..' in name and os.path.normpath(name).split(os.sep)[0] == '..')
    ]
    require(not outside, f'{len(outside)} of the paths in {source} lead out of {root}, such as {outside[:1]}')
