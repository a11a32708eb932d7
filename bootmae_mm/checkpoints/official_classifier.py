"""The authors' fine-tuned classifiers (``BootMAE_*_FT.pth``) for this project's ``configs/cls/*_ft_*.py``.

Their model (``modeling_finetune_bootmae.py``) has the mean of the patch tokens after the last block, a norm
(``fc_norm``) and a linear head. Files hold the weights under ``model`` (and their average under ``model_ema``), or, as
written by DeepSpeed, under ``module`` in float16; or the weights alone.
"""

from __future__ import annotations

from torch import Tensor

from bootmae_mm.validation import require

from .names import ENCODER, join_biases
from .official import Conversion

TABLE = (
    *((theirs, f'backbone.{ours}') for theirs, ours in ENCODER if theirs != 'norm.{}'),
    ('fc_norm.{}', 'backbone.ln2.{}'),
    ('head.{}', 'head.fc.{}'),
)
# Keys that may hold the weights; the first one found is used: the authors report the accuracy of the average.
PLACES = ('model_ema', 'model', 'module')
NEEDED = {'blocks.0.attn.q_bias', 'fc_norm.weight', 'head.weight'}


def _weights(checkpoint: dict, place: str | None = None) -> tuple[str, dict[str, Tensor]]:
    """Key of the weights, and the weights; '' for a file of the weights alone."""
    for name in PLACES if place is None else (place,):
        state = checkpoint.get(name)
        if isinstance(state, dict) and set(plain := _without_module(state)) >= NEEDED:
            return name, plain
    return '', _without_module(checkpoint)


def _without_module(state: dict) -> dict:
    """The weights without the prefix of a distributed wrapper."""
    return {name.removeprefix('module.'): value for name, value in state.items()}


def is_official_classifier(checkpoint: dict) -> bool:
    """Whether a checkpoint is a fine-tuned classifier of the authors."""
    return set(_weights(checkpoint)[1]) >= NEEDED


def classifier_to_project(checkpoint: dict, place: str | None = None) -> Conversion:
    """Convert a classifier of the authors.

    Args:
        checkpoint: Content of the file.
        place: ``'model_ema'``, ``'model'`` or ``'module'``; by default the first of them in the file.

    Returns:
        A checkpoint with ``state_dict`` (float32) and ``meta``; without optimizer states.

    Raises:
        ConfigError: If the weights are not there, or a key is unknown.
    """
    source, state = _weights(checkpoint, place)
    require(
        place in (None, source) and set(state) >= NEEDED,
        f'no weights of a classifier of the authors under {place or " or ".join(PLACES)}; the file has '
        f'{sorted(checkpoint)[:5]}',
    )
    result, moves = join_biases(state, TABLE, 'not a fine-tuned classifier of BootMAE with mean pooling: unknown key')
    if source:
        moves = [(f'{source}.{name}', target) for name, target in moves]
    meta = dict(source='LightDXY/BootMAE', weights=source or 'the file itself')
    return Conversion(dict(state_dict={name: value.float() for name, value in result.items()}, meta=meta), moves)
