"""Atomic writing, and checksums of checkpoint files."""

from __future__ import annotations

import errno
import os
import zipfile
from pathlib import Path


def replace_atomically(part: Path, path: Path) -> None:
    """Atomically rename a fully written file, so that a crash leaves the old file or the new one.

    Args:
        part: The written file, in the same folder.
        path: Its final path.
    """
    with open(part, 'rb') as file:
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        # Some network file systems cannot sync folders; the file is there.
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.ENOTSUP):
            raise
    finally:
        os.close(folder)


def wrong_checksum(path: Path) -> str | None:
    """What is wrong with the ZIP archive that a checkpoint is, or None; nothing is unpickled.

    ``torch.save`` writes a CRC-32 of every tensor and of the rest; all are recomputed here.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except zipfile.BadZipFile:
        return 'it is not a ZIP archive as torch.save writes them' if path.stat().st_size else 'it is empty'
    except Exception as error:  # noqa: BLE001  a broken file may raise anything
        return f'{type(error).__name__}: {error}'
    return None if broken is None else f'the checksum of {broken} is wrong'
