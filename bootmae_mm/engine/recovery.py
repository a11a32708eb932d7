"""Recovery after an interruption: the latest good checkpoint, and a lock on the work_dir."""

from __future__ import annotations

import fcntl
import os
import re
import time
from pathlib import Path
from typing import IO

from mmengine.config import Config
from mmengine.logging import print_log

from bootmae_mm.checkpoints.reading import load_file, local_file, local_names
from bootmae_mm.checkpoints.writing import replace_atomically, wrong_checksum
from bootmae_mm.installed import weights_path
from bootmae_mm.validation import ConfigError, MissingFileError, require

LAST = 'last_checkpoint'
LOCK = '.lock'
STARTED = '.started'
# Files with other names are copies, or written by mmengine for publication.
NAMES = re.compile(r'(epoch|iter|interrupted)_(\d+)\.pth')


def damage_of(path: Path) -> str | None:
    """What is wrong with a checkpoint file, or None: its checksums, then its structure, by torch's own reader."""
    reason = wrong_checksum(path)
    if reason is None:
        try:
            load_file(path, mmap=True)  # without reading the tensors again
        except Exception as error:  # noqa: BLE001  a broken file may raise anything
            reason = f'{type(error).__name__}: {error}'
    return reason


def write_last(work_dir: str | Path, path: Path) -> None:
    """Atomically record the last checkpoint of a work_dir."""
    part = Path(work_dir, f'.{LAST}.part')
    part.write_text(str(path), encoding='utf-8')
    replace_atomically(part, Path(work_dir, LAST))


def latest_checkpoint(work_dir: str | Path, since: float = 0.0) -> Path | None:
    """The newest intact checkpoint of a run; damaged ones are logged and skipped.

    Args:
        work_dir: Work_dir of the run.
        since: Time in seconds since 1970; older checkpoints are ignored.

    Returns:
        Its path, or None if there is no checkpoint yet.

    Raises:
        ConfigError: If there are checkpoints and all are damaged: a fresh start would silently lose the run.
    """
    folder = Path(work_dir)
    there = set(folder.glob('*.pth'))
    named, last = folder / LAST, None
    if named.is_file():
        last = Path(named.read_text(encoding='utf-8').strip())
        # The work_dir may have been moved or copied: look for the file where it is now.
        last = folder / last.name if (folder / last.name).is_file() else last
        # The out_dir of a CheckpointHook, but not another work_dir, of which this one may be a copy.
        if last.parent != Path() and not (last.parent / LOCK).exists():
            there |= set(last.parent.glob('*.pth'))
    found = sorted(
        (path for path in there if NAMES.fullmatch(path.name)),
        key=lambda path: (path.stat().st_mtime_ns, path.name),
        reverse=True,
    )
    if last is not None and last.is_file():
        # Checkpoints written after the record, by a run that could not update it, come first.
        noted = named.stat().st_mtime_ns
        later = [path for path in found if path.stat().st_mtime_ns > noted and not _is_earlier(path, last)]
        rest = [path for path in found if path not in later and path.resolve() != last.resolve()]
        found = [*later, last, *rest]
    found = [path for path in found if path.stat().st_mtime >= since]
    for path in found:
        reason = damage_of(path)
        if reason is None:
            return path
        print_log(f'checkpoint {path} is damaged and skipped: {reason}', logger='current', level=40)
    names = ', '.join(path.name for path in found[:5])
    advice = 'to start from scratch, use another --work-dir'
    require(not found, f'all {len(found)} checkpoints in {folder} are damaged ({names}); {advice}')
    return None


def checkpoint_in(path: str | Path) -> str:
    """The checkpoint that a path or URL names; of a work_dir, the last one.

    Raises:
        MissingFileError: If there is none in a folder.
    """
    folder = weights_path(path)
    if not folder.is_dir():
        return str(path)
    if local_names(folder):
        return str(folder)
    last = latest_checkpoint(folder)
    if last is None:
        raise MissingFileError(f'no checkpoint in {path}')
    return str(last)


def _is_earlier(path: Path, last: Path) -> bool:
    """Compare by number if both count the same unit: copies of files may have any time."""
    here, there = (NAMES.fullmatch(name.name) for name in (path, last))
    return bool(here and there and (here[1] == 'epoch') == (there[1] == 'epoch') and int(here[2]) <= int(there[2]))


def choose_start(cfg: Config, resume: str | None, restarted: bool) -> None:
    """Set ``load_from`` and ``resume`` of a config to the checkpoint that the run starts from.

    A run restarted by torchrun resumes from its own checkpoints only. Without a checkpoint to resume from, the config's
    ``load_from`` is kept.

    Args:
        cfg: Config with ``work_dir``, changed in place.
        resume: Value of ``--resume``: a checkpoint, ``'auto'`` for the latest in the work_dir, or None.
        restarted: Whether torchrun has restarted this process after another one died.

    Raises:
        MissingFileError: If there is no such checkpoint.
        ConfigError: If it is damaged, or all checkpoints of the work_dir are.
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
        cfg.load_from = str(local_file(cfg.load_from))  # a folder of transformers or timm
    if not Path(cfg.load_from).is_file():
        raise MissingFileError(f'no checkpoint {cfg.load_from}')
    if cfg.resume and found is None:
        reason = wrong_checksum(Path(cfg.load_from))
        require(reason is None, f'checkpoint {cfg.load_from} is damaged: {reason}')


def wait_until_free(work_dir: str | Path, seconds: float = 150.0) -> None:
    """Wait for a run that has the lock of a work_dir, such as one that saves a checkpoint before it ends.

    Args:
        work_dir: Work_dir of the run; it need not exist.
        seconds: Time to wait at most.

    Raises:
        ConfigError: If the run still has the lock then.
    """
    path, end = Path(work_dir) / LOCK, time.monotonic() + seconds
    while path.is_file():
        with open(path, 'a+', encoding='utf-8') as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except (BlockingIOError, PermissionError):
                file.seek(0)
                require(time.monotonic() < end, f'another run ({file.read().strip()}) uses {work_dir}')
            except OSError:  # no locks on this file system
                return
        time.sleep(0.2)


def _has_started(work_dir: str | Path, restarted: bool) -> bool:
    """Whether torchrun restarted this process, and the run had reached its work_dir before."""
    started = Path(work_dir, STARTED)
    return restarted and started.is_file() and started.read_text(encoding='utf-8') == _run_id()


def _run_id() -> str:
    """Run id of torchrun, the same in all restarts."""
    return os.environ.get('TORCHELASTIC_RUN_ID', '')


def lock(work_dir: str | Path, restarted: bool = False) -> IO:
    """Lock a work_dir for this run, until the returned file is closed or the process ends.

    Args:
        work_dir: Work_dir of the run, created if missing.
        restarted: See :func:`choose_start`; if False, the time of the start is recorded.

    Returns:
        Open file that holds the lock.

    Raises:
        ConfigError: If another run has the lock.
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
        raise ConfigError(f'another run ({holder}) uses {folder}; choose another --work-dir') from None
    except OSError as error:
        print_log(f'no lock on {folder}: its file system does not support locks ({error})', logger='current', level=30)
    # Workers of the loader may outlive a killed run by seconds, and must not keep the lock.
    os.register_at_fork(after_in_child=file.close)
    file.truncate(0)
    file.write(f'process {os.getpid()} on {os.uname().nodename}')
    file.flush()
    if not _has_started(folder, restarted):
        (folder / STARTED).write_text(_run_id(), encoding='utf-8')
    return file
