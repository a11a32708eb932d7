"""The authors' UperNet checkpoints (``Segmentation/`` of LightDXY/BootMAE, on mmseg 0.x) for this project's UperNet.

Their backbone has BEiT's names, a relative-position bias and two layer scales (gammas) per block, and contains the
layers that rescale its outputs, which are the neck here.
"""

from __future__ import annotations

from bootmae_mm.validation import require

from .names import ENCODER, join_biases
from .official import Conversion

TABLE = (
    *((f'backbone.{theirs}', f'backbone.{ours}') for theirs, ours in ENCODER if theirs != 'norm.{}'),
    (
        'backbone.blocks.{}.attn.relative_position_bias_table',
        'backbone.layers.{}.attn.rel_pos_bias.relative_position_bias_table',
    ),
    ('backbone.blocks.{}.gamma_1', 'backbone.layers.{}.attn.gamma1.weight'),
    ('backbone.blocks.{}.gamma_2', 'backbone.layers.{}.ffn.gamma2.weight'),
    ('backbone.fpn1.{}.{}', 'neck.upsample_4x.{}.{}'),
    ('backbone.fpn2.{}.{}', 'neck.upsample_2x.{}.{}'),
)
# A buffer of theirs; computed from the size of the image here.
BUFFER = 'relative_position_index'


def is_official_segmentor(checkpoint: dict) -> bool:
    """Whether a checkpoint is a segmentation model of the authors."""
    return 'backbone.blocks.0.attn.q_bias' in checkpoint.get('state_dict', {})


def segmentor_to_project(checkpoint: dict) -> Conversion:
    """Convert a segmentation checkpoint of the authors for ``configs/seg``.

    Args:
        checkpoint: Checkpoint with ``state_dict``.

    Returns:
        A checkpoint with ``state_dict`` and ``meta``; without optimizer states, whose parameter groups differ.

    Raises:
        ConfigError: If it is not a checkpoint of theirs, or a key of the backbone is unknown.
    """
    require(
        is_official_segmentor(checkpoint),
        'not a segmentation checkpoint of the authors: backbone.blocks.0.attn.q_bias is missing; the file has '
        f'{sorted(checkpoint.get("state_dict", checkpoint))[:3]}',
    )
    state = {name: value for name, value in checkpoint['state_dict'].items() if not name.endswith(BUFFER)}
    backbone = {name: value for name, value in state.items() if name.startswith('backbone.')}
    # The names of mmseg's heads have not changed.
    heads = {name: value for name, value in state.items() if name not in backbone}
    result, moves = join_biases(backbone, TABLE, 'not a segmentation checkpoint of BootMAE: unknown key')
    moves += [(name, name) for name in heads]
    return Conversion(dict(state_dict={**result, **heads}, meta=dict(source='LightDXY/BootMAE')), moves)
