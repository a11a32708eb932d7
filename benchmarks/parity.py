"""Comparison with numbers of the authors' program: outputs, losses, gradients, and weights after some steps.

A reference is a pair of files. ``NAME.json``: ``config``, ``optimizer``, ``ema_decay``, ``first`` (losses of batch 0)
and ``trajectory`` (losses of each step). ``NAME.safetensors``: initial ``model/*`` and ``ema/*`` in the authors' names,
``images`` (S+1, B, C, H, W) and ``ids_shuffle`` (S+1, B, L), for batch 0 ``pixel_pred`` (an image), ``feature_pred``,
``feature_target``, ``mask`` and ``grad/*``, and ``final_model/*``, ``final_ema/*`` after S steps.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bootmae_mm.checkpoints.official import state_to_official, state_to_project, to_project
from bootmae_mm.engine.hooks.teacher import ema_update
from bootmae_mm.engine.optimizers import GroupedOptimWrapperConstructor
from bootmae_mm.models.tokens import take_patches, take_tokens
from bootmae_mm.registry import MODELS

TOLERANCE = 1e-5  # share of the values' scale, for outputs, losses and gradients
TOLERANCE_AFTER_STEPS = 1e-4


@dataclass
class Difference:
    """Largest difference of one quantity.

    Attributes:
        name: Name of the quantity.
        difference: Largest absolute difference; infinite if one side is missing or has another shape.
        scale: Largest absolute value of the reference.
        tolerance: Allowed share of the scale.
    """

    name: str
    difference: float
    scale: float
    tolerance: float

    @property
    def passes(self) -> bool:
        """Whether the difference is within tolerance."""
        return self.difference <= self.tolerance * self.scale


class Parity:
    """Runs this project's code on a reference and collects the differences.

    Args:
        reference: The parsed JSON file.
        tensors: The tensors of the other file.

    Attributes:
        differences: All comparisons, in order.
    """

    def __init__(self, reference: dict, tensors: dict[str, Tensor]) -> None:
        self.reference = reference
        self.tensors = tensors
        self.differences: list[Difference] = []

    @classmethod
    def from_files(cls, prefix: str | Path) -> Parity:
        """Read ``prefix.json`` and ``prefix.safetensors``.

        Raises:
            MissingFileError: If one of them is missing.
        """
        from safetensors.torch import load_file

        paths = [Path(f'{prefix}.{suffix}') for suffix in ('json', 'safetensors')]
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f'no reference file {path}')
        return cls(json.loads(paths[0].read_text()), load_file(paths[1]))

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose name starts with ``prefix/``, without it."""
        return {name[len(prefix) + 1 :]: value for name, value in self.tensors.items() if name.startswith(f'{prefix}/')}

    def build(self) -> nn.Module:
        """Model of the reference, with initial weights converted from the authors' names."""
        config = self.reference['config']
        pixel_block, feature_block = min(config['context_layers']), max(config['context_layers'])
        decoder = dict(depth=config['decoder_depth'], mlp_ratio=config['mlp_ratio'], eps=config['layernorm_eps'])
        model = MODELS.build(
            dict(
                type='bootmae_mm.BootMAE',
                backbone=dict(
                    type='bootmae_mm.BootMAEViT',
                    arch=dict(
                        embed_dims=config['embed_dims'],
                        num_layers=config['depth'],
                        num_heads=config['num_heads'],
                        feedforward_channels=int(config['embed_dims'] * config['mlp_ratio']),
                    ),
                    img_size=config['img_size'],
                    patch_size=config['patch_size'],
                    norm_cfg=dict(type='LN', eps=config['layernorm_eps']),
                ),
                neck=dict(
                    type='bootmae_mm.BootMAENeck',
                    pixel=dict(width=config['decoder_dims'], context_block=pixel_block, **decoder),
                    feature=dict(context_block=feature_block, **decoder),
                ),
                pixel_head=dict(type='bootmae_mm.BootMAEPixelHead'),
                feature_head=dict(type='bootmae_mm.BootMAEFeatureHead'),
                feature_weight=config['feature_weight'],
            )
        )
        checkpoint = dict(model=self.group('model'), model_ema=self.group('ema'))
        model.load_state_dict(to_project(checkpoint).checkpoint['state_dict'])
        return model.train()

    def batch(self, index: int) -> dict[str, Tensor]:
        """Images and indices of one batch; the first patches of ``ids_shuffle`` are kept."""
        ids = self.tensors['ids_shuffle'][index]
        kept = ids.shape[1] - self.reference['config']['num_masked']
        return dict(inputs=self.tensors['images'][index], ids_keep=ids[:, :kept], ids_mask=ids[:, kept:])

    def compare(
        self, name: str, found: Tensor | float | None, wanted: Tensor | float, tolerance: float = TOLERANCE
    ) -> None:
        """Record the largest difference of two values."""
        wanted = torch.as_tensor(wanted, dtype=torch.float64)
        difference = float('inf')
        if found is not None:
            value = torch.as_tensor(found).detach().double()
            if value.shape == wanted.shape:
                difference = float((value - wanted).abs().max())
                difference = float('inf') if difference != difference else difference
        self.differences.append(Difference(name, difference, float(wanted.abs().max()), tolerance))

    def compare_group(self, prefix: str, found: dict[str, Tensor], tolerance: float) -> None:
        """Compare tensors by name; a name that only one side has counts as a difference."""
        wanted = self.group(prefix)
        for name, value in wanted.items():
            self.compare(f'{prefix}/{name}', found.get(name), value, tolerance)
        for name in sorted(set(found) - set(wanted)):
            self.differences.append(Difference(f'{prefix}/{name} (not in the reference)', float('inf'), 0.0, tolerance))

    def run(self) -> list[Difference]:
        """Compare everything."""
        model = self.build()
        self._first_batch(model)
        self._steps(model)
        return self.differences

    def _first_batch(self, model: nn.Module) -> None:
        batch = self.batch(0)
        images, ids_mask = batch['inputs'], batch['ids_mask']
        mask = torch.zeros(self.tensors['mask'].shape).scatter_(1, ids_mask, 1.0)
        self.compare('mask', mask, self.tensors['mask'])

        latent, context = model.backbone.encode_visible(images, batch['ids_keep'], model.neck.context_blocks)
        decoded = model.neck(latent, context, ids_mask)
        self.compare(
            'pixel_pred',
            model.pixel_head(decoded['pixel']),
            take_patches(self.tensors['pixel_pred'], ids_mask, model.backbone.patch_size),
        )
        self.compare(
            'feature_pred', model.feature_head(decoded['feature']), take_tokens(self.tensors['feature_pred'], ids_mask)
        )
        self.compare(
            'feature_target',
            model.teacher_view(images).features(ids_mask),
            take_tokens(self.tensors['feature_target'], ids_mask),
        )

        first = self.reference['first']
        model.weight_mask = False
        plain = model.loss(**batch)
        for name in ('pixel_loss', 'feature_loss'):
            self.compare(f'{name} without weight mask', plain[name], first[f'{name}_without_weight_mask'])
        model.weight_mask = True
        losses = model.loss(**batch)
        total, _ = model.parse_losses(losses)
        for name, value in (
            ('pixel_loss', losses['pixel_loss']),
            ('feature_loss', losses['feature_loss']),
            ('total_loss', total),
        ):
            self.compare(name, value, first[name])

        model.zero_grad()
        total.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        self.compare_group('grad', state_to_official(gradients)[0], TOLERANCE)
        model.zero_grad()

    def _steps(self, model: nn.Module) -> None:
        optimizer = dict(self.reference['optimizer'])
        optimizer.pop('no_decay')  # in words; the constructor's default
        optim_wrapper = GroupedOptimWrapperConstructor(dict(type='OptimWrapper', optimizer=optimizer))(model)
        # The authors' teacher has decoders too, which nothing reads; they are updated here to compare them as well.
        parts = ('neck', 'pixel_head', 'feature_head')
        shadow = nn.ModuleDict({name: copy.deepcopy(getattr(model, name)) for name in parts})
        initial, _ = state_to_project(self.group('ema'))
        shadow.load_state_dict({name: initial[name] for name in shadow.state_dict()})
        pairs = [(model.teacher, model.backbone), *((shadow[name], getattr(model, name)) for name in parts)]

        for index, wanted in enumerate(self.reference['trajectory'], start=1):
            losses = model.loss(**self.batch(index))
            total, _ = model.parse_losses(losses)
            optim_wrapper.update_params(total)
            for teacher, student in pairs:
                ema_update(list(teacher.parameters()), list(student.parameters()), self.reference['ema_decay'])
            for name, value in (
                ('pixel_loss', losses['pixel_loss']),
                ('feature_loss', losses['feature_loss']),
                ('total_loss', total),
            ):
                self.compare(f'step {index}: {name}', value, wanted[name], TOLERANCE_AFTER_STEPS)

        student = {name: value for name, value in model.state_dict().items() if not name.startswith('teacher.')}
        self.compare_group('final_model', state_to_official(student)[0], TOLERANCE_AFTER_STEPS)
        teacher = {f'backbone.{name}': value for name, value in model.teacher.state_dict().items()}
        self.compare_group('final_ema', state_to_official({**teacher, **shadow.state_dict()})[0], TOLERANCE_AFTER_STEPS)
