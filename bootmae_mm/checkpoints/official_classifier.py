"""The authors' fine-tuned classifiers (``BootMAE_*_FT.pth``) for this project's ``configs/cls/*_ft_*.py``.

Their model (``modeling_finetune_bootmae.py``) takes the mean of the patch tokens after the last block, a norm
(``fc_norm``) and a linear head. Files hold the weights under ``model`` (and their average under ``model_ema``), or, as
DeepSpeed writes them, under ``module`` in float16; or are the weights alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .names import ENCODER, rename
from .official import Conversion

TABLE = (
    *((theirs, f'backbone.{ours}') for theirs, ours in ENCODER if theirs != 'norm.{}'),
    ('fc_norm.{}', 'backbone.ln2.{}'),
    ('head.{}', 'head.fc.{}'),
)
# Where weights may be, the first that is there is taken: the authors report the accuracy of the average.
PLACES = ('model_ema', 'model', 'module')
NEEDED = {'blocks.0.attn.q_bias', 'fc_norm.weight', 'head.weight'}


def _weights(checkpoint: dict, place: str | None = None) -> tuple[str, dict[str, Tensor]]:
    """Name of the place and the weights in it; '' for a file of the weights alone."""
    for name in PLACES if place is None else (place,):
        state = checkpoint.get(name)
        if isinstance(state, dict) and set(plain := _without_module(state)) >= NEEDED:
            return name, plain
    return '', _without_module(checkpoint)


def _without_module(state: dict) -> dict:
    """Without the prefix that a distributed wrapper leaves."""
    return {name.removeprefix('module.'): value for name, value in state.items()}


def is_official_classification(checkpoint: dict) -> bool:
    """Whether a checkpoint is a fine-tuned classifier of the authors."""
    return set(_weights(checkpoint)[1]) >= NEEDED


def classification_to_project(checkpoint: dict, place: str | None = None) -> Conversion:
    """Convert a classifier of the authors.

    Args:
        checkpoint: Content of the file.
        place: ``'model_ema'``, ``'model'`` or ``'module'``; by default the first of them that is there.

    Returns:
        A checkpoint with ``state_dict`` (float32) and ``meta``; without the optimizer's state.

    Raises:
        ValueError: If the weights are not there, or a key is unknown.
    """
    source, state = _weights(checkpoint, place)
    if place is not None and source != place or not set(state) >= NEEDED:
        raise ValueError(
            f'no weights of a classifier of the authors under {place or " or ".join(PLACES)}; there is '
            f'{sorted(checkpoint)[:5]}'
        )
    result: dict[str, Tensor] = {}
    moves = []
    for name, value in state.items():
        target = rename(name, TABLE)
        if target is None:
            raise ValueError(f'unknown key {name!r}: not a fine-tuned classifier of BootMAE with mean pooling')
        target, _, part = target.partition('#')
        moves.append((f'{source}.{name}' if source else name, target))
        if part == 'q' and name.replace('q_bias', 'v_bias') not in state:
            raise ValueError(f'{name} has no {name.replace("q_bias", "v_bias")} beside it: the file is not whole')
        if part == 'q':  # the keys have no bias there
            value = torch.cat([value, torch.zeros_like(value), state[name.replace('q_bias', 'v_bias')]])
        if part != 'v':
            result[target] = value.float()
    meta = dict(source='LightDXY/BootMAE', weights=source or 'the file itself')
    return Conversion(dict(state_dict=result, meta=meta), moves)
