"""The encoder in timm's names (``vit_*_patch16``), which MAE's and DeiT's authors use too."""

from __future__ import annotations

from torch import Tensor

from .official import ENCODER, rename

# timm has one bias for q, k and v, as here; the authors of BootMAE have two of the three.
TABLE = (
    *((theirs, ours) for theirs, ours in ENCODER if '#' not in ours),
    ('blocks.{}.attn.qkv.bias', 'layers.{}.attn.qkv.bias'),
)


def is_timm(state: dict) -> bool:
    """Whether a state dict holds a vision transformer in timm's names."""
    return 'blocks.0.attn.qkv.weight' in state and 'patch_embed.proj.weight' in state


def from_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename to this project's names; what is not part of the encoder (a head, MAE's decoder) keeps its own."""
    return {rename(name, TABLE) or name: value for name, value in state.items()}


def to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename an encoder's weights to timm's names.

    Raises:
        ValueError: If timm's plain vision transformer has no place for a weight.
    """
    back = tuple((ours, theirs) for theirs, ours in TABLE)
    result = {}
    for name, value in state.items():
        target = rename(name, back)
        if target is None:
            raise ValueError(f"timm's vision transformer has no place for {name}")
        result[target] = value
    return result
