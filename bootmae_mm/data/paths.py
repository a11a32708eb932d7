"""Paths of the images below a folder: those that are found, and those that a list names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmengine.logging import print_log


def found_images(root: str | Path, extensions: Sequence[str]) -> list[str]:
    """Paths of all images below a folder, at any depth, sorted.

    Links are followed, but no folder is visited twice: a link to a folder above would never end. Hidden files and
    folders are passed over (:func:`is_hidden`); how many of them are images, the log says.

    Args:
        root: The folder.
        extensions: Of the files that count as images, lower case.

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
        if (status.st_dev, status.st_ino) in visited:
            print_log(f'{folder} leads to a folder that was visited already; passed over', logger='current')
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        hidden += [os.path.join(folder, name, '') for name in folders if is_hidden(name)]
        folders[:] = sorted(name for name in folders if not is_hidden(name))  # the same way in every process
        for name in filter(is_image, names):
            (hidden if is_hidden(name) else paths).append(os.path.join(folder, name))
    if hidden:
        print_log(
            f'{len(hidden)} hidden files and folders are passed over, such as {min(hidden)}', logger='current', level=30
        )
    return sorted(paths)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is one that programs keep for themselves: ``._a.jpg``, ``.ipynb_checkpoints``."""
    return name.startswith('.') or name == '__MACOSX'


def listed_images(root: str | Path, path: str | Path) -> list[str]:
    """Paths of the images that a text file names, one a line, relative to a folder; a second column is ignored.

    Args:
        root: The folder.
        path: Of the list, in UTF-8.

    Raises:
        FileNotFoundError: If there is no such list.
        ValueError: If it is no text in UTF-8, or names a file outside the folder.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'no list of images {path} (ann_file)')
    try:
        lines = Path(path).read_text(encoding='utf-8').splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f'{path} (ann_file) is no list in UTF-8: {error}') from error
    names = []
    for line in lines:
        name, _, label = line.strip().rpartition(' ')
        names.append(name if name and label.isdigit() else line.strip())
    names = [name for name in names if name]
    check_inside(names, root, path)
    return [str(Path(root, name)) for name in names]


def check_inside(names: Iterable[str], root: str | Path, source: str | Path) -> None:
    """Check that no name leads out of a folder. (Links in the folder are whose it is, and followed.)

    Raises:
        ValueError: If one does, with the first and their number.
    """
    outside = [
        name
        for name in names
        if os.path.isabs(name) or ('..' in name and os.path.normpath(name).split(os.sep)[0] == '..')
    ]
    if outside:
        raise ValueError(f'{len(outside)} of the paths in {source} lead out of {root}, such as {outside[0]}')
