"""What a run writes to the console, and what to its log file only."""

from __future__ import annotations

import logging

from mmengine.logging import MMLogger

MAX_LINES = 30  # of a record on the console; mmengine logs the config, the environment and all hooks at the start
# About mmengine's own code, or repeated in every epoch.
FILE_ONLY = (
    'Exp name: ',
    'Distributed training is not used',
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
)


def for_console(record: logging.LogRecord) -> bool:
    """Whether the console shows a record; the log file has all of them."""
    text = record.getMessage()
    is_short = text.count('\n') < MAX_LINES or record.levelno >= logging.WARNING
    return is_short and not text.startswith(FILE_ONLY) and not text.startswith('\n---')


class _Early(logging.Handler):
    """Keeps the records from before a run has its log file."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


_early = _Early()


def keep_early_records() -> None:
    """Keep what is logged while a config is read, for the log file of its run."""
    logger = MMLogger.get_current_instance()
    _early.records.clear()
    if _early not in logger.handlers:
        logger.addHandler(_early)


def set_up(logger: MMLogger) -> None:
    """Give the log file of a run the early records, and the console less than all."""
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            for record in _early.records:
                if record.levelno >= handler.level:
                    handler.handle(record)
        elif isinstance(handler, logging.StreamHandler):
            handler.addFilter(for_console)
    _early.records.clear()
