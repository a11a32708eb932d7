"""BootMAE: the wiring of backbone, neck, branches and teacher."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any, Literal

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import Tensor, nn

from bootmae_mm.checkpoints.encoder import load_encoder
from bootmae_mm.config.parts import build_part
from bootmae_mm.registry import MODELS
from bootmae_mm.validation import NonNegative, Options, parse, require, validated

from .encoder import PretrainingEncoder
from .heads import BranchHead
from .losses import loss_weights
from .masking import DeviceMasking
from .step import Step, TeacherView
from .targets import ModelInfo

VALID = 'backbone, neck, teacher, teacher_norm, masking, weight_mask, data_preprocessor, init_cfg'


class TeacherOptions(Options):
    """Options of a frozen teacher.

    Attributes:
        checkpoint: Path of its checkpoint.
        prefix: Prefix of the encoder's keys in it.
        backbone: Options in which it differs from the student.
    """

    checkpoint: str
    prefix: str = 'backbone.'
    backbone: dict = {}  # noqa: RUF012  copied by pydantic


@MODELS.register_module()
class BootMAE(BaseModel):
    """Bootstrapped masked autoencoder (arXiv 2207.07116).

    A branch is a decoder of the neck, a head with a target and a loss, and a weight. The paper has two, ``pixel`` and
    ``feature``; there may be others, by any name: ``neck.NAME``, ``NAME_head`` and ``NAME_weight``.

    Facts that follow from the backbone (width, heads, grid) are filled into neck and heads, so that a config states
    each of them once.

    Args:
        backbone: Config of the student, a :class:`BootMAEViT` or another :class:`PretrainingEncoder`.
        neck: Config of :class:`BootMAENeck`.
        pixel_head: Config of the head of the neck's pixel decoder; None if the neck has none.
        feature_head: Config of the head of the neck's feature decoder; None if the neck has none.
        teacher: None for the momentum encoder, which :class:`BootMAEEMAHook` moves; :class:`TeacherOptions` for a
            frozen one, as in the paper's first experiment. Built only if a target or ``masking`` needs it.
        teacher_norm: Take the feature target after the teacher's final norm instead of before it; the same as
            ``norm=True`` of :class:`TeacherTarget`.
        masking: Config of masks that depend on the teacher, such as :class:`AttentionMasking`, which replace those of
            the data loader; None for the data loader's.
        weight_mask: Weigh the inside of masked blocks more, see :func:`loss_weights`.
        pixel_weight: Weight of the pixel loss.
        feature_weight: Weight of the feature loss; :class:`FeatureWeightHook` ramps it up.
        data_preprocessor: Config of the data preprocessor.
        **branches: ``NAME_head`` and ``NAME_weight`` of further branches.

    Raises:
        ConfigError: If backbone, decoders, heads and teacher do not fit each other.
    """

    @validated
    def __init__(
        self,
        backbone: dict,
        neck: dict,
        pixel_head: dict | None = None,
        feature_head: dict | None = None,
        teacher: TeacherOptions | None = None,
        teacher_norm: bool = False,
        masking: dict | None = None,
        weight_mask: bool = True,
        pixel_weight: NonNegative = 1.0,
        feature_weight: NonNegative = 1.0,
        data_preprocessor: Any = None,
        init_cfg: Any = None,
        **branches: Any,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.backbone = build_part(backbone, PretrainingEncoder, 'backbone', MODELS)
        self._check_backbone()
        self.neck = MODELS.build(
            neck,
            default_args=dict(
                embed_dims=self.backbone.embed_dims,
                num_layers=self.backbone.num_layers,
                num_heads=self.backbone.num_heads,
                grid_size=self.backbone.grid_size,
            ),
        )
        if teacher_norm:
            is_default = feature_head is not None and 'target' not in feature_head
            require(is_default, 'teacher_norm needs a feature_head without a target; set norm=True in a TeacherTarget')
            feature_head = {**(feature_head or {}), 'target': dict(type='bootmae_mm.TeacherTarget', norm=True)}
        branches.update(pixel_head=pixel_head, feature_head=feature_head)
        branches.update(pixel_weight=pixel_weight, feature_weight=feature_weight)
        self.teacher_options = teacher
        encoder = self._build_teacher(backbone, teacher)
        self._build_branches(branches, encoder)
        self.masking = None
        if masking is not None:
            self.masking = build_part(masking, DeviceMasking, 'masking', MODELS, model=self, teacher=encoder)
        self.top_k = max((head.target.top_k for head in self.heads.values()), default=1)
        uses_teacher = any(head.target.uses_teacher for head in self.heads.values()) or self.masking is not None
        require(teacher is None or uses_teacher, 'teacher needs a branch that uses its features, such as feature_head')
        if uses_teacher:
            self.teacher = encoder
        self.weight_mask = weight_mask

    def _check_backbone(self) -> None:
        """Refuse options for downstream tasks, and channels that the preprocessor does not normalize."""
        self.backbone.check_pretraining()
        channels = self.backbone.in_channels
        given = len(getattr(self.data_preprocessor, 'mean', range(channels)))
        require(
            given == channels,
            f'in_channels of the backbone is {channels}, but mean and std of the data_preprocessor have {given}',
        )

    def _build_branches(self, options: dict, teacher: nn.Module) -> None:
        """Build the heads, as attributes ``NAME_head``, and set the weights ``NAME_weight``."""
        widths = self.neck.widths
        for key, value in options.items():
            name, _, part = key.rpartition('_')
            is_branch = name and part in ('head', 'weight')
            require(is_branch, f'{key} is not a valid option; valid options: {VALID}, NAME_head, NAME_weight')
            fits = name in widths or value is None or key in ('pixel_weight', 'feature_weight')
            advice = '' if part == 'head' else f'; {key} is for such a branch'
            require(fits, f'neck.{name} and {name}_head must both be set or both be None{advice}')
        info = self._info(teacher)
        self.pixel_head = self.feature_head = None
        for index, (name, width) in enumerate(widths.items()):
            is_name = name.isidentifier() and not name.endswith('_target')
            require(is_name, f'neck.{name}: a branch must have the name of a variable that does not end in _target')
            head = options.get(f'{name}_head')
            require(head is not None, f'neck.{name} and {name}_head must both be set or both be None')
            built = build_part(head, BranchHead, f'{name}_head', MODELS, in_channels=width, info=info)
            needed, earlier = built.target.branch, list(widths)[:index]
            is_there = not needed or needed in earlier
            require(is_there, f'{name}_head.target.branch {needed!r} must be a branch before it, one of {earlier}')
            has_errors = not needed or getattr(self, f'{needed}_head').errors_per_patch
            require(has_errors, f'{name}_head.target.branch {needed!r} has one error per image, not per patch')
            moves = self.teacher_options is None or not built.followers()
            require(moves, f'{name}_head needs the momentum encoder, but teacher is a frozen one')
            setattr(self, f'{name}_head', built)
        for name in {**widths, 'pixel': 0, 'feature': 0}:
            key = f'{name}_weight'
            setattr(self, key, parse(NonNegative, options.get(key, 1.0), key))
        self.branches = list(widths)

    def _info(self, teacher: nn.Module) -> ModelInfo:
        backbone, preprocessor = self.backbone, self.data_preprocessor
        channels = backbone.in_channels
        # A preprocessor without them does not normalize.
        mean, std = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'std', None)
        return ModelInfo(
            patch_size=backbone.patch_size,
            grid_size=backbone.grid_size,
            in_channels=channels,
            mean=torch.zeros(channels) if mean is None else mean.flatten(),
            std=torch.ones(channels) if std is None else std.flatten(),
            teacher_dims=teacher.embed_dims,
            teacher_layers=teacher.num_layers,
        )

    @property
    def heads(self) -> dict[str, nn.Module]:
        """Heads by name of the branch."""
        return {name: getattr(self, f'{name}_head') for name in self.branches}

    def _build_teacher(self, backbone: dict, options: TeacherOptions | None) -> nn.Module:
        """A copy of the student, or the frozen encoder that ``options`` describe."""
        if options is None:
            module = copy.deepcopy(self.backbone)
        else:
            config = {**backbone, 'drop_path_rate': 0.0, **options.backbone}
            module = build_part(config, PretrainingEncoder, 'teacher.backbone', MODELS)
            module.check_pretraining()
            grid, wanted = module.grid_size, self.backbone.grid_size
            require(grid == wanted, f'teacher.backbone must have the {wanted} patches of the student, but has {grid}')
        module.requires_grad_(False)  # moved by the EMA hook, or never
        module.eval()
        return module

    @property
    def has_teacher(self) -> bool:
        """Whether there is a teacher of any kind."""
        return hasattr(self, 'teacher')

    @property
    def has_momentum_teacher(self) -> bool:
        """Whether there is a teacher that follows the student."""
        return self.has_teacher and self.teacher_options is None

    def init_weights(self) -> None:
        """Initialize all parts; then the teacher copies the student, or loads its checkpoint."""
        super().init_weights()
        if self.has_momentum_teacher:
            self.reset_teacher()
        elif self.teacher_options is not None:
            options = self.teacher_options
            report = load_encoder(self.teacher, options.checkpoint, prefix=options.prefix, resize=False)
            print_log(f'frozen teacher: {report}', logger='current')

    def followers(self) -> list[tuple[nn.Module, nn.Module]]:
        """Modules that follow trained ones by momentum: the teacher the student, and those of the masking."""
        if not self.has_momentum_teacher:
            return []
        pairs = [(self.teacher, self.backbone)]
        for head in self.heads.values():
            pairs += head.followers()
        return pairs + (self.masking.followers(self) if self.masking is not None else [])

    @torch.no_grad()
    def reset_teacher(self) -> None:
        """Make the momentum encoder, and all else that follows, a copy of what it follows."""
        for follower, leader in self.followers():
            follower.load_state_dict(leader.state_dict())

    def train(self, mode: bool = True) -> BootMAE:
        """Set the mode; the teacher stays in eval mode."""
        super().train(mode)
        if self.has_teacher:
            self.teacher.eval()
        return self

    def forward(
        self,
        inputs: Tensor,
        ids_keep: Tensor | None = None,
        ids_mask: Tensor | None = None,
        view: Tensor | None = None,
        mode: str = 'tensor',
        **_: object,
    ) -> dict | tuple | list:
        """Run in one of mmengine's modes.

        Args:
            inputs: Normalized images, (B, C, H, W).
            ids_keep: Indices of the kept patches, (B, V), or (B * K, V) for K masks per image, one image after another.
            ids_mask: Indices of the masked patches, (B, M) or (B * K, M).
            view: Second view of the images for a contrastive branch, (B, C, H, W).
            mode: ``'loss'`` for a dict of scalars; ``'predict'`` for the same as numbers, in a list, to evaluate
                held-out images; ``'tensor'`` for the backbone's features of whole images.

        Raises:
            ConfigError: If a mode needs a mask and there is none.
        """
        if mode == 'tensor':
            return self.backbone(inputs)
        advice = "the dataset needs masking=dict(...), and the loader collate_fn=dict(type='bootmae_mm.collate')"
        require(ids_keep is not None and ids_mask is not None, f'no mask in the batch: {advice}')
        losses = self.loss(inputs, ids_keep, ids_mask, view)
        if mode == 'loss':
            return losses
        assert mode == 'predict', mode
        return [{name: value.item() for name, value in losses.items()} | {'batch_size': len(inputs)}]

    def extract_feat(self, inputs: Tensor, stage: Literal['backbone', 'neck'] = 'neck') -> tuple[Tensor]:
        """Features of whole images after the student's final norm, for mmpretrain's ``FeatureExtractor`` and tools.

        Args:
            inputs: Normalized images, (B, C, H, W).
            stage: ``'backbone'`` for a map of the patch tokens, ``'neck'`` for their mean.

        Returns:
            One tensor: (B, D, rows, columns), or (B, D).
        """
        require(stage in ('backbone', 'neck'), f"stage must be 'backbone' or 'neck', but is {stage!r}")
        rows, columns = self.backbone.grid_size
        ids = torch.arange(rows * columns, device=inputs.device).expand(len(inputs), -1)  # (B, L)
        patches = self.backbone.encode_patches(inputs, ids, norm=True)  # (B, L, D)
        if stage == 'backbone':
            return (patches.transpose(1, 2).unflatten(2, (rows, columns)),)
        return (patches.mean(dim=1),)

    def loss(self, inputs: Tensor, ids_keep: Tensor, ids_mask: Tensor, view: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the loss of every branch, unweighted, and statistics that reveal a collapse of its target.

        With K masks per image (an option of :class:`MaskSampling`) the student sees an image K times, the teacher once.

        Args:
            inputs: (B, C, H, W).
            ids_keep: (B * K, V), K usually 1.
            ids_mask: (B * K, M).
            view: (B, C, H, W), a second view; for a contrastive branch only.

        Returns:
            Scalars, by branch: ``NAME_loss``, and statistics of the target; see ``statistics`` of the heads.
        """
        self._check_mask(inputs, ids_keep, ids_mask)
        step = Step(self.teacher_view(inputs), view)
        if self.masking is not None:
            ids_keep, ids_mask = self.masking(step.teacher, ids_keep, ids_mask)
        latent, context = self.backbone.encode_visible(inputs, ids_keep, self.neck.context_blocks)  # (B * K, 1 + V, D)
        decoded = self.neck(latent, context, ids_mask)  # by branch: (B * K, M, width)
        weights = loss_weights(ids_mask, self.backbone.grid_size, self.weight_mask)  # (B * K, M)

        results = {}
        for name, head in self.heads.items():
            with torch.no_grad():
                target = head.target(inputs, ids_mask, step)  # (B * K, M, ...)
            step.errors[name], losses = head.loss(decoded[name], target, weights)
            if step.target_loss is not None:
                losses['target_loss'], step.target_loss = step.target_loss, None
            results.update({f'{name}_{key}': value for key, value in losses.items()})
        return results

    def teacher_view(self, inputs: Tensor) -> TeacherView | None:
        """What the teacher sees of whole images, (B, C, H, W); None without a teacher."""
        return TeacherView(self.teacher, inputs, self.top_k) if self.has_teacher else None

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, OrderedDict]:
        """Add the weighted losses; log each one unweighted.

        mmengine would add every entry whose name contains 'loss'; this adds those of the branches times their weights,
        and as they are those of targets that learn themselves (``NAME_target_loss``).
        """
        total = sum(getattr(self, f'{name}_weight') * losses[f'{name}_loss'] for name in self.branches)
        keys = [f'{name}_target_loss' for name in self.branches]
        total = total + sum(losses[key] for key in keys if key in losses)
        return total, OrderedDict((name, value.detach()) for name, value in dict(loss=total, **losses).items())

    def _check_mask(self, inputs: Tensor, ids_keep: Tensor, ids_mask: Tensor) -> None:
        """Check shapes only: looking at the values would wait for the device."""
        rows, columns = self.backbone.grid_size
        kept, masked, count = ids_keep.shape[-1], ids_mask.shape[-1], len(ids_mask)
        shapes_fit = ids_keep.shape == (count, kept) and ids_mask.shape == (count, masked)
        require(
            shapes_fit and count and count % len(inputs) == 0 and kept + masked == rows * columns and kept and masked,
            f'ids_keep {tuple(ids_keep.shape)} and ids_mask {tuple(ids_mask.shape)} must be (batch, kept) and (batch, '
            f'masked) for a multiple of {len(inputs)} images, with kept + masked = {rows} x {columns} = '
            f'{rows * columns} patches: img_size, patch_size and grid_size of `masking` must fit the backbone',
        )
