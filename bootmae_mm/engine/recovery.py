"""What a run needs to go on after an interruption: whole checkpoints, the latest good one, a work_dir of its own."""

from __future__ import annotations

import fcntl
import os
import zipfile
from pathlib import Path
from typing import IO

from mmengine.logging import print_log

from bootmae_mm.interop.checkpoint import load_file

LAST = 'last_checkpoint'
PATTERNS = ('epoch_*.pth', 'iter_*.pth', 'interrupted_*.pth')


def write_durably(part: Path, path: Path) -> None:
    """Give a file that is written its name, such that after a crash there is the old file or the new one.

    Args:
        part: What was written, in the same folder.
        path: Its name from now on.
    """
    with open(part, 'rb') as file:
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, or None.

    ``torch.save`` writes a ZIP archive with a CRC-32 of every tensor; all of them are computed anew here.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            if broken is not None:
                return f'the checksum of {broken} is wrong'
        load_file(path)
    except Exception as error:  # noqa: BLE001  whatever a broken file brings about
        return f'{type(error).__name__}: {error}' if not path.is_file() or path.stat().st_size else 'it is empty'
    return None


def latest_checkpoint(work_dir: str | Path) -> Path | None:
    """The newest checkpoint of a run that is whole; those that are not are named in the log and skipped.

    Args:
        work_dir: Of the run.

    Returns:
        Its path, or None where no checkpoint was written yet.

    Raises:
        ValueError: If there are checkpoints and none of them is whole: starting anew would lose the run silently.
    """
    folder = Path(work_dir)
    found = sorted(
        (path for pattern in PATTERNS for path in folder.glob(pattern)),
        key=lambda path: (path.stat().st_mtime_ns, path.name),
        reverse=True,
    )
    named = folder / LAST
    if named.is_file():
        last = Path(named.read_text(encoding='utf-8').strip())
        # A work_dir may have moved since; its files are looked for where it is now.
        last = last if last.is_file() else folder / last.name
        if last.is_file():
            found = [last] + [path for path in found if path.resolve() != last.resolve()]
    for path in found:
        reason = damage(path)
        if reason is None:
            return path
        print_log(f'checkpoint {path} is damaged and skipped: {reason}', logger='current', level=40)
    if found:
        raise ValueError(
            f'none of the {len(found)} checkpoints in {folder} is whole ({", ".join(p.name for p in found[:5])}); '
            'to start anew, use another --work-dir'
        )
    return None


def lock(work_dir: str | Path) -> IO:
    """Take a work_dir for this run; it is free again once the file that is returned is closed or the process ends.

    Raises:
        ValueError: If another run has it.
    """
    folder = Path(work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / '.lock', 'a+', encoding='utf-8')  # noqa: SIM115  open as long as the run
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise ValueError(f'another run ({holder}) uses {folder}; name another --work-dir') from None
    # Workers of the loader outlive a killed run by seconds; the lock is not theirs.
    os.register_at_fork(after_in_child=file.close)
    file.truncate(0)
    file.write(f'process {os.getpid()} on {os.uname().nodename}')
    file.flush()
    return file
