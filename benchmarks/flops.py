"""Multiply-adds of a pretraining step, from the shapes of the model."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bootmae_mm.models import (
    AttentionMasking,
    BootMAE,
    BootMAEViT,
    ClusterTarget,
    ContrastiveHead,
    ErrorTarget,
    PixelTarget,
    PredictedErrorMasking,
)
from bootmae_mm.models.encoder import PretrainingEncoder
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
        By part (``student``, ``teacher``, and by name of the branch, such as ``pixel``, each decoder with its head, and
        the target if another network computes it): multiply-adds of the forward pass and, if trained, the backward
        pass.
    """
    backbone = model.backbone
    patches = backbone.grid_size[0] * backbone.grid_size[1]
    kept = patches - num_masked
    extra = backbone.num_extra_tokens
    clusters = [head.target for head in model.heads.values() if isinstance(head.target, ClusterTarget)]
    # Several masks, predicted errors and clusters need the features of all tokens.
    needs_all = masks > 1 or isinstance(model.masking, PredictedErrorMasking) or bool(clusters)
    last = num_masked if needed and not needs_all else None
    parts = dict(student=_student(backbone, kept, needed))
    if model.has_teacher:
        contrasts = [isinstance(head, ContrastiveHead) for head in model.heads.values() if head.target.uses_teacher]
        sees_images = model.masking is not None or not all(contrasts)  # and not only second views
        parts['teacher'] = _teacher(model.teacher, last) if sees_images else 0
    for target in clusters:  # its layer has no gradient of its input
        parts['clusters'] = TRAINED_FIRST * patches * target.layer.weight.numel()
    if isinstance(model.masking, AttentionMasking):  # queries of the class token, all keys, their products
        width = model.teacher.embed_dims
        parts['teacher'] += (1 + patches + extra) * width**2 + (patches + extra) * width
    elif isinstance(model.masking, PredictedErrorMasking):
        decoder = model.masking.decoder
        tokens = patches + extra
        parts['teacher'] += tokens * model.teacher.embed_dims * decoder.width + patches * decoder.width
        parts['teacher'] += sum(_decoder_block(block, tokens, tokens) for block in decoder.blocks[:-1])
        parts['teacher'] += _decoder_block(decoder.blocks[-1], tokens, tokens, patches)
    for name, head in model.heads.items():
        answers = num_masked if needed else patches
        decoder = model.neck.decoders[name]
        if isinstance(head, ContrastiveHead):
            parts['teacher'] += _teacher(model.teacher, None) + _linear(head.target)
            macs = _decoder(decoder, backbone.embed_dims, kept + extra, num_masked, needed)
            parts[name] = TRAINED * (macs + _linear(head.projector) + _linear(head.predictor))
            continue
        parts[name] = TRAINED * (
            _decoder(decoder, backbone.embed_dims, kept + extra, num_masked, needed)
            + answers * head.projection.weight.numel()
        )
    parts = {name: macs if name in ('teacher', 'clusters') else masks * macs for name, macs in parts.items()}
    for name, head in model.heads.items():
        if not isinstance(head.target, (ErrorTarget, PixelTarget)) and not head.target.uses_teacher:
            ids_mask = torch.zeros(1, num_masked, dtype=torch.int64, device='meta')
            parts[f'{name} target'] = _counted(head.target, backbone, 'forward', ids_mask)
    return parts


def _linear(module: nn.Module) -> int:
    """Multiply-adds of all linear layers for one vector."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))


def _student(encoder: PretrainingEncoder, kept: int, needed: bool) -> float:
    if not isinstance(encoder, BootMAEViT):
        ids_keep = torch.zeros(1, kept, dtype=torch.int64, device='meta')
        return TRAINED * _counted(encoder, encoder, 'encode_visible', ids_keep)
    patches = encoder.grid_size[0] * encoder.grid_size[1]
    embedding = TRAINED_FIRST * (kept if needed else patches) * _embedding(encoder)
    return embedding + TRAINED * encoder.num_layers * _encoder_block(encoder, kept + encoder.num_extra_tokens)


def _teacher(encoder: PretrainingEncoder, last: int | None) -> float:
    """Forward pass over whole images; the last block for ``last`` tokens only."""
    patches = encoder.grid_size[0] * encoder.grid_size[1]
    if not isinstance(encoder, BootMAEViT):
        ids = torch.zeros(1, patches, dtype=torch.int64, device='meta')
        return _counted(encoder, encoder, 'encode_patches', ids)
    tokens = patches + encoder.num_extra_tokens
    others = (encoder.num_layers - 1) * _encoder_block(encoder, tokens)
    return patches * _embedding(encoder) + others + _encoder_block(encoder, tokens, last)


def _counted(module: nn.Module, backbone: PretrainingEncoder, method: str, ids: Tensor) -> float:
    """Multiply-adds of ``method(image, ids)``, counted by torch on shapes alone."""
    module = copy.deepcopy(module).to('meta')
    images = torch.empty(1, backbone.in_channels, *backbone.img_size, device='meta')
    # The counter needs attention as matrix products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        getattr(module, method)(images, ids)
    return counter.get_total_flops() / 2


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
