"""Multiply-adds of a pretraining step, counted from the model's shapes."""

from __future__ import annotations

from bootmae_mm.models import BootMAE, BootMAEViT
from bootmae_mm.models.neck import DecoderBlock, TargetAwareDecoder

# Forward, gradient of the inputs, gradient of the weights: each as much again.
TRAINED = 3
# The patch embedding has no gradient of its inputs.
TRAINED_FIRST = 2


def step_macs(
    model: BootMAE, num_masked: int, needed: bool = False, masks: int = 1, batch: int = 1
) -> dict[str, float]:
    """Multiply-adds an image of a training step: products of matrices (attention's included), nothing else.

    Args:
        model: Of a pretraining config.
        num_masked: Masked patches of an image, M.
        needed: False: the method as written down, all tokens in all blocks; what throughput is compared by, whatever a
            program saves. True: what is computed here, where the last blocks answer for masked patches only, the
            student embeds the kept ones only, and mask tokens are projected once a batch.
        masks: Of each image; the teacher sees it once.
        batch: Masks of a batch, by which what is done once is divided; for ``needed``.

    Returns:
        ``student``, ``teacher``, ``pixel`` and ``feature`` (decoder and head), those that there are -> multiply-adds,
        forward and, where it is trained, backward.
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
        # With several masks the features of all patches are needed, without the class token.
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
                - (_shared(decoder, num_masked, patches, batch) if needed else 0)
                + answers * head.projection.weight.numel()
            )
    return {name: macs if name == 'teacher' else masks * macs for name, macs in parts.items()}


def _embedding(encoder: BootMAEViT) -> int:
    return encoder.patch_embed.projection.weight.numel()


def _attention(queries: int, keys: int, width: int) -> int:
    """Logits and weighted sum."""
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


def _shared(decoder: TargetAwareDecoder, num_masked: int, patches: int, batch: int) -> float:
    """What an image is spared where the first block projects the mask tokens of a batch once."""
    if len(decoder.blocks) == 1 or batch * num_masked <= patches:
        return 0
    attention = decoder.blocks[0].self_attn
    return (num_masked - patches / batch) * (attention.q.weight.numel() + attention.kv.weight.numel())


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
