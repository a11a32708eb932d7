"""Whether reading a checkpoint may run code in it: torch's own switches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

TRUSTED = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
SAFE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'


def choose_trust(trusted: bool) -> None:
    """Decide for this process and its children whether reading a checkpoint may run code in it.

    Uses torch's own switches, which apply to every ``torch.load``: mmengine reads files too (``load_from``,
    ``init_cfg=dict(type='Pretrained')``), and falls back to running their code if it cannot read them safely.
    """
    os.environ[SAFE] = '0' if trusted else '1'
    os.environ[TRUSTED] = '1' if trusted else '0'


def is_trusted() -> bool:
    """Whether checkpoints may run code, by torch's switch."""
    return os.environ.get(TRUSTED, '0') in ('1', 'y', 'yes', 'true')


@contextmanager
def data_only() -> Iterator[None]:
    """Within the block, no ``torch.load`` runs code of a file, unless checkpoints are trusted."""
    before = os.environ.get(SAFE)
    if not is_trusted():
        os.environ[SAFE] = '1'
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(SAFE, None)
        else:
            os.environ[SAFE] = before
