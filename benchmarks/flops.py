"""Multiply-adds of a pretraining step, from the shapes of the model."""

from __future__ import annotations

from bootmae_mm.models import BootMAE, BootMAEViT
from bootmae_mm.models.neck import DecoderBlock, TargetAwareDecoder

# Forward, gradient of the inputs, gradient of the weights: the same amount each.
TRAINED = 3
# The patch embedding has no gradient of its inputs.
TRAINED_FIRST = 2


def step_macs(model: BootMAE, num_masked: int, needed: bool = False, masks: int = 1) -> dict[str, float]:
    """Multiply-adds per image of a training step: matrix products, including those of attention, nothing else.

    Args:
        model: Model of a pretraining config.
        num_masked: Number of masked patches per image, M.
        needed: False: the method as described, all tokens in all blocks, to compare throughput whatever a program
            saves. True: what is computed here, where the last blocks compute masked patches only and the student embeds
            kept patches only.
        masks: Number of masks per image; the teacher sees an image once.

    Returns:
        By part (``student``, ``teacher``, ``pixel`` and ``feature``, each decoder with its head): multiply-adds of the
        forward pass and, if trained, the backward pass.
    """
    backbone = model.backbone
    patches = backbone.grid_size[0] * backbone.grid_size[1]
    kept = patches - num_masked
    extra = backbone.num_extra_tokens
    parts = dict(
        student=TRAINED_FIRST * (kept if needed else patches) * _embedding(backbone)
        + TRAINED * backbone.num_layers * _encoder_block(backbone, kept + extra)
    )
    if model.feature_head is not None:
        teacher = model.teacher
        # With several masks, the features of all patches are needed, without the class token.
        last = None if not needed else num_masked if masks == 1 else patches
        parts['teacher'] = (
            patches * _embedding(teacher)
            + (teacher.num_layers - 1) * _encoder_block(teacher, patches + extra)
            + _encoder_block(teacher, patches + extra, last)
        )
    for name, head in (('pixel', model.pixel_head), ('feature', model.feature_head)):
        if head is not None:
            answers = num_masked if needed else patches
            decoder = model.neck.decoders[name]
            parts[name] = TRAINED * (
                _decoder(decoder, backbone.embed_dims, kept + extra, num_masked, needed)
                + answers * head.projection.weight.numel()
            )
    return {name: macs if name == 'teacher' else masks * macs for name, macs in parts.items()}


def _embedding(encoder: BootMAEViT) -> int:
    return encoder.patch_embed.projection.weight.numel()


def _attention(queries: int, keys: int, width: int) -> int:
    """Multiply-adds of logits and weighted sum."""
    return 2 * queries * keys * width


def _encoder_block(encoder: BootMAEViT, tokens: int, queries: int | None = None) -> int:
    width, inner = encoder.embed_dims, encoder.arch_settings['feedforward_channels']
    queries = tokens if queries is None else queries
    keys_and_values = 2 * tokens * width**2
    return keys_and_values + 2 * queries * width**2 + _attention(queries, tokens, width) + 2 * queries * width * inner


def _decoder(decoder: TargetAwareDecoder, embed_dims: int, visible: int, num_masked: int, needed: bool) -> int:
    tokens = visible + num_masked
    blocks = list(decoder.blocks)
    total = visible * embed_dims * decoder.width
    total += sum(_decoder_block(block, tokens, visible) for block in blocks[:-1])
    return total + _decoder_block(blocks[-1], tokens, visible, num_masked if needed else None)


def _decoder_block(block: DecoderBlock, tokens: int, visible: int, queries: int | None = None) -> int:
    queries = tokens if queries is None else queries
    attention = block.self_attn
    width, inner = attention.q.in_features, attention.inner_dims
    total = 2 * queries * width * inner + 2 * tokens * width * inner + _attention(queries, tokens, inner)
    if block.injects:
        attention = block.cross_attn
        total += 2 * queries * width * attention.inner_dims + _attention(queries, visible, attention.inner_dims)
        total += visible * attention.kv.weight.numel()
    return total + 2 * queries * width * block.mlp.layers[0][0].out_features
