"""What a run needs to go on after an interruption: whole checkpoints, the latest good one, a work_dir of its own."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import zipfile
from pathlib import Path
from typing import IO

from mmengine.config import Config
from mmengine.logging import print_log

from bootmae_mm.checkpoints.reading import load_file, local_file

LAST = 'last_checkpoint'
LOCK = '.lock'
STARTED = '.started'
# Other names are copies for other purposes, or what mmengine leaves for publication.
NAMES = re.compile(r'(epoch|iter|interrupted)_(\d+)\.pth')


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
    except OSError as error:
        # Some network file systems do not know that of folders; the file is there.
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.ENOTSUP):
            raise
    finally:
        os.close(folder)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, or None.

    ``torch.save`` writes a ZIP archive with a CRC-32 of every tensor and of the rest; all are computed anew here. What
    zipfile does not look at, torch's own reader does, without reading the tensors again.
    """
    reason = wrong_checksum(path)
    if reason is not None:
        return reason
    try:
        load_file(path, mmap=True)
    except Exception as error:  # noqa: BLE001  whatever a broken file brings about
        return f'{type(error).__name__}: {error}'
    return None


def wrong_checksum(path: Path) -> str | None:
    """What is wrong with the archive that a checkpoint is, or None; nothing of it is unpickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except zipfile.BadZipFile:
        return 'it is no ZIP archive, as torch.save writes them' if path.stat().st_size else 'it is empty'
    except Exception as error:  # noqa: BLE001  whatever a broken file brings about
        return f'{type(error).__name__}: {error}'
    return None if broken is None else f'the checksum of {broken} is wrong'


def name_last(work_dir: str | Path, path: Path) -> None:
    """Note in a work_dir which checkpoint is the last one, such that the note is always whole."""
    part = Path(work_dir, f'.{LAST}.part')
    part.write_text(str(path), encoding='utf-8')
    write_durably(part, Path(work_dir, LAST))


def latest_checkpoint(work_dir: str | Path, since: float = 0.0) -> Path | None:
    """The newest checkpoint of a run that is whole; those that are not are named in the log and skipped.

    Args:
        work_dir: Of the run.
        since: Only checkpoints written then or later, in seconds since 1970; all by default.

    Returns:
        Its path, or None where no checkpoint was written yet.

    Raises:
        ValueError: If there are checkpoints and none of them is whole: starting anew would lose the run silently.
    """
    folder = Path(work_dir)
    there = set(folder.glob('*.pth'))
    named, last = folder / LAST, None
    if named.is_file():
        last = Path(named.read_text(encoding='utf-8').strip())
        # A work_dir may have moved since, or be a copy; its files are looked for where it is now.
        last = folder / last.name if (folder / last.name).is_file() else last
        # Of a CheckpointHook with an out_dir; not of another work_dir, which this one may be a copy of.
        if last.parent != Path() and not (last.parent / LOCK).exists():
            there |= set(last.parent.glob('*.pth'))
    found = sorted(
        (path for path in there if NAMES.fullmatch(path.name)),
        key=lambda path: (path.stat().st_mtime_ns, path.name),
        reverse=True,
    )
    if last is not None and last.is_file():
        # Those written after the note, by a run that could not change it, come first.
        noted = named.stat().st_mtime_ns
        later = [path for path in found if path.stat().st_mtime_ns > noted and not _is_earlier(path, last)]
        rest = [path for path in found if path not in later and path.resolve() != last.resolve()]
        found = [*later, last, *rest]
    found = [path for path in found if path.stat().st_mtime >= since]
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


def _is_earlier(path: Path, last: Path) -> bool:
    """By number, where both count the same thing: copies of files may have any time."""
    here, there = (NAMES.fullmatch(name.name) for name in (path, last))
    return bool(here and there and (here[1] == 'epoch') == (there[1] == 'epoch') and int(here[2]) <= int(there[2]))


def choose_start(cfg: Config, resume: str | None, restarted: bool) -> None:
    """Set ``load_from`` and ``resume`` of a config to what its run begins with.

    A run that torchrun started again goes on from what it has written itself, whatever else the work_dir holds. Where
    there is no checkpoint to go on from, the config's own ``load_from`` stays.

    Args:
        cfg: With ``work_dir``; changed in place.
        resume: Of the command line: a checkpoint, ``'auto'`` for the latest of the work_dir, or None.
        restarted: Whether torchrun has started this process again after another one had died.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If it is damaged, or all checkpoints of the work_dir are.
    """
    if resume not in (None, 'auto'):
        cfg.load_from, cfg.resume = resume, True
    automatic = resume == 'auto' or (cfg.get('resume') and not cfg.get('load_from'))
    found = None
    if automatic or _has_started(cfg.work_dir, restarted):
        since = 0.0 if automatic else Path(cfg.work_dir, STARTED).stat().st_mtime
        found = latest_checkpoint(cfg.work_dir, since)
        if found is not None:
            cfg.load_from, cfg.resume = str(found), True
    cfg.resume = bool(cfg.get('resume') and cfg.get('load_from'))
    if not cfg.get('load_from') or '://' in cfg.load_from:
        return
    if Path(cfg.load_from).is_dir() and not cfg.resume:
        cfg.load_from = str(local_file(cfg.load_from))  # of transformers or timm
    if not Path(cfg.load_from).is_file():
        raise FileNotFoundError(f'no checkpoint {cfg.load_from}')
    if cfg.resume and found is None:
        reason = wrong_checksum(Path(cfg.load_from))
        if reason is not None:
            raise ValueError(f'checkpoint {cfg.load_from} is damaged: {reason}')


def _has_started(work_dir: str | Path, restarted: bool) -> bool:
    """Whether this process is one of a restart, and of a run that had come as far as its work_dir before."""
    started = Path(work_dir, STARTED)
    return restarted and started.is_file() and started.read_text(encoding='utf-8') == _run_id()


def _run_id() -> str:
    """torchrun's, the same in all its restarts."""
    return os.environ.get('TORCHELASTIC_RUN_ID', '')


def lock(work_dir: str | Path, restarted: bool = False) -> IO:
    """Take a work_dir for this run; it is free again once the file that is returned is closed or the process ends.

    Args:
        work_dir: Of the run; made if there is none.
        restarted: As for :func:`choose_start`; otherwise the time of the start is noted.

    Returns:
        An open file, which holds the lock.

    Raises:
        ValueError: If another run has it.
    """
    folder = Path(work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / LOCK, 'a+', encoding='utf-8')  # noqa: SIM115  open as long as the run
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise ValueError(f'another run ({holder}) uses {folder}; name another --work-dir') from None
    except OSError as error:
        print_log(f'no lock on {folder}: its file system has none ({error})', logger='current', level=30)
    # Workers of the loader outlive a killed run by seconds; the lock is not theirs.
    os.register_at_fork(after_in_child=file.close)
    file.truncate(0)
    file.write(f'process {os.getpid()} on {os.uname().nodename}')
    file.flush()
    if not _has_started(folder, restarted):
        (folder / STARTED).write_text(_run_id(), encoding='utf-8')
    return file
