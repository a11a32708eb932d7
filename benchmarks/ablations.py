"""Ablations of single optimizations: parts of a step in a plain form and in the one in use, in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bootmae_mm.engine.hooks.teacher import ema_update
from bootmae_mm.models import BootMAEViT
from bootmae_mm.models.tokens import take_tokens

from .step import DECAY, TrainingStep
from .timing import alternately

Call = Callable[[], object]
Ablation = tuple[str, Call, Call]


class Ablations:
    """Both forms of every ablation of a model.

    Args:
        step: Training step to measure; its weights change.
    """

    def __init__(self, step: TrainingStep) -> None:
        self.step = step
        self.model = step.model
        data = step.model.data_preprocessor(dict(step.data), training=True)
        self.images = data['inputs']
        # One mask per image.
        self.ids_keep, self.ids_mask = (
            data[key][:: len(data[key]) // len(self.images)] for key in ('ids_keep', 'ids_mask')
        )

    def __iter__(self) -> Iterator[Ablation]:
        """Name ("what: plain form, form in use") and both forms. Trained parts include the backward pass."""
        yield from self._of_encoders()
        with torch.no_grad(), self._precision():
            latent, context = self.model.backbone.encode_visible(
                self.images, self.ids_keep, self.model.neck.context_blocks
            )
        for name, decoder in self.model.neck.decoders.items():
            yield from self._of_decoder(f'{name} decoder', decoder, latent, context.get(decoder.context_block))
        step = self.step
        if step.teacher:
            yield (
                'EMA: tensor by tensor, all at once',
                lambda: [ema_update([old], [new], DECAY) for old, new in zip(step.teacher, step.student, strict=True)],
                lambda: ema_update(step.teacher, step.student, DECAY),
            )
        yield (
            'AdamW: tensor by tensor, fused',
            self._adamw(foreach=False, fused=False),
            self._adamw(fused=True),
        )

    def _of_encoders(self) -> Iterator[Ablation]:
        backbone, images, ids_keep = self.model.backbone, self.images, self.ids_keep
        student = self._trained(lambda: backbone.encode_visible(images, ids_keep)[0])
        yield 'student: attention written out, fused', _written_out(student), student
        yield (
            'student: all patches embedded, the kept ones',
            self._trained(lambda: _kept_of_all(backbone, images, ids_keep)),
            self._trained(lambda: backbone.embed_kept(images, ids_keep)),
        )
        if not self.model.has_teacher:
            return
        teacher, ids_mask = self.model.teacher, self.ids_mask
        all_ids = torch.arange(teacher.grid_size[0] * teacher.grid_size[1], device=images.device)
        all_ids = all_ids.expand(len(images), -1)
        yield (
            'teacher: last block for all patches, the masked ones',
            self._frozen(lambda: take_tokens(teacher.encode_patches(images, all_ids), ids_mask)),
            self._frozen(lambda: teacher.encode_patches(images, ids_mask)),
        )

    def _of_decoder(self, name: str, decoder: nn.Module, latent: Tensor, context: Tensor | None) -> Iterator[Ablation]:
        ids_keep, ids_mask = self.ids_keep, self.ids_mask
        yield (
            f'{name}: last block for all patches, the masked ones',
            self._trained(lambda: decoder(latent, context, ids_mask, ids_keep)[:, ids_keep.shape[1] :]),
            self._trained(lambda: decoder(latent, context, ids_mask)),
        )

    def _precision(self) -> torch.autocast:
        dtype = self.step.dtype
        return torch.autocast(self.step.device.type, dtype, enabled=dtype != torch.float32)

    def _trained(self, forward: Callable[[], Tensor]) -> Call:
        def run() -> None:
            with self._precision():
                out = forward()
            out.backward(torch.ones_like(out))
            self.model.zero_grad()

        return run

    def _frozen(self, forward: Callable[[], Tensor]) -> Call:
        def run() -> None:
            with torch.no_grad(), self._precision():
                forward()

        return run

    def _adamw(self, **options: bool) -> Call:
        """A step of AdamW on copies of all trained parameters."""
        copies = [
            nn.Parameter(parameter.detach().clone()) for parameter in self.model.parameters() if parameter.requires_grad
        ]
        for copy in copies:
            copy.grad = torch.ones_like(copy)
        return torch.optim.AdamW(copies, **options).step


def _kept_of_all(backbone: BootMAEViT, images: Tensor, ids_keep: Tensor) -> Tensor:
    """Class token and kept patches, (B, 1 + V, D), after embedding all patches."""
    x, extra = backbone.embed_all(images), backbone.num_extra_tokens
    return torch.cat([x[:, :extra], take_tokens(x, ids_keep + extra)], dim=1)


def _written_out(run: Call) -> Call:
    """Run with attention as matrix products and a softmax instead of a fused kernel."""

    def plain() -> None:
        with sdpa_kernel(SDPBackend.MATH):
            run()

    return plain


def measure_ablations(step: TrainingStep, warmup: int, repeats: int) -> list[dict]:
    """Median milliseconds of both forms of every ablation, in turns.

    Returns:
        For each ablation ``name``, ``before_ms`` and ``after_ms``.
    """
    results = []
    for name, before, after in Ablations(step):
        seconds = alternately(dict(before=before, after=after), step.device, warmup, repeats)
        results.append(dict(name=name, before_ms=1e3 * seconds['before'], after_ms=1e3 * seconds['after']))
    return results
