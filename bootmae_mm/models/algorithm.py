"""BootMAE: the wiring of backbone, neck, heads and teacher."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import Tensor, nn

from bootmae_mm.checkpoints.encoder import load_encoder
from bootmae_mm.registry import MODELS
from bootmae_mm.validation import NonNegative, Options, require, validated

from .losses import loss_weights
from .tokens import repeat_for_masks, take_tokens


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

    Facts that follow from the backbone (width, heads, grid) are filled into neck and heads, so that a config states
    each of them once.

    Args:
        backbone: Config of the student, a :class:`BootMAEViT`.
        neck: Config of :class:`BootMAENeck`.
        pixel_head: Config of the head of the neck's pixel decoder; None if the neck has none.
        feature_head: Config of the head of the neck's feature decoder; None if the neck has none.
        teacher: None for the momentum encoder, which :class:`BootMAEEMAHook` moves; :class:`TeacherOptions` for a
            frozen one, as in the paper's first experiment.
        teacher_norm: Take the target after the teacher's final norm instead of before it.
        weight_mask: Weigh the inside of masked blocks more, see :func:`loss_weights`.
        pixel_weight: Weight of the pixel loss.
        feature_weight: Weight of the feature loss; :class:`FeatureWeightHook` ramps it up.
        data_preprocessor: Config of the data preprocessor.

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
        weight_mask: bool = True,
        pixel_weight: NonNegative = 1.0,
        feature_weight: NonNegative = 1.0,
        data_preprocessor: Any = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.backbone = MODELS.build(backbone)
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
        widths = self.neck.widths
        for name, head in (('pixel', pixel_head), ('feature', feature_head)):
            both = (name in widths) == (head is not None)
            require(both, f'neck.{name} and {name}_head must both be set or both be None')
        has_use = teacher is None or feature_head is not None
        require(has_use, 'teacher needs neck.feature and feature_head, which use its features')

        self.teacher_options = teacher
        if feature_head is not None:
            self.teacher = self._build_teacher(backbone)
        self.pixel_head = self.feature_head = None
        if pixel_head is not None:
            self.pixel_head = MODELS.build(
                pixel_head,
                default_args=dict(
                    in_channels=widths['pixel'],
                    patch_size=self.backbone.patch_size,
                    out_channels=self.backbone.patch_embed.projection.in_channels,
                ),
            )
        if feature_head is not None:
            self.feature_head = MODELS.build(
                feature_head, default_args=dict(in_channels=widths['feature'], out_channels=self.teacher.embed_dims)
            )
        self.teacher_norm = teacher_norm
        self.weight_mask = weight_mask
        self.pixel_weight = pixel_weight
        self.feature_weight = feature_weight

    def _check_backbone(self) -> None:
        """Refuse options for downstream tasks, and channels that the preprocessor does not normalize."""
        backbone = self.backbone
        is_plain = not backbone.window_size and not backbone.rel_pos_bias and backbone.final_norm
        require(is_plain, 'pretraining needs window_size=0, rel_pos_bias=False and final_norm=True in the backbone')
        channels = backbone.patch_embed.projection.in_channels
        given = len(getattr(self.data_preprocessor, 'mean', range(channels)))
        require(
            given == channels,
            f'in_channels of the backbone is {channels}, but mean and std of the data_preprocessor have {given}',
        )

    def _build_teacher(self, backbone: dict) -> nn.Module:
        """A copy of the student, or the frozen encoder that ``teacher`` describes."""
        if self.teacher_options is None:
            module = copy.deepcopy(self.backbone)
        else:
            module = MODELS.build({**backbone, 'drop_path_rate': 0.0, **self.teacher_options.backbone})
            grid, wanted = module.grid_size, self.backbone.grid_size
            require(grid == wanted, f'teacher.backbone must have the {wanted} patches of the student, but has {grid}')
        module.requires_grad_(False)  # moved by the EMA hook, or never
        module.eval()
        return module

    @property
    def has_momentum_teacher(self) -> bool:
        """Whether there is a teacher that follows the student."""
        return self.feature_head is not None and self.teacher_options is None

    def init_weights(self) -> None:
        """Initialize all parts; then the teacher copies the student, or loads its checkpoint."""
        super().init_weights()
        if self.has_momentum_teacher:
            self.reset_teacher()
        elif self.teacher_options is not None:
            options = self.teacher_options
            report = load_encoder(self.teacher, options.checkpoint, prefix=options.prefix, resize=False)
            print_log(f'frozen teacher: {report}', logger='current')

    @torch.no_grad()
    def reset_teacher(self) -> None:
        """Make the momentum encoder a copy of the student."""
        self.teacher.load_state_dict(self.backbone.state_dict())

    def train(self, mode: bool = True) -> BootMAE:
        """Set the mode; the teacher stays in eval mode."""
        super().train(mode)
        if self.feature_head is not None:
            self.teacher.eval()
        return self

    def forward(
        self,
        inputs: Tensor,
        ids_keep: Tensor | None = None,
        ids_mask: Tensor | None = None,
        mode: str = 'tensor',
        **_: object,
    ) -> dict | tuple | list:
        """Run in one of mmengine's modes.

        Args:
            inputs: Normalized images, (B, C, H, W).
            ids_keep: Indices of the kept patches, (B, V), or (B * K, V) for K masks per image, one image after another.
            ids_mask: Indices of the masked patches, (B, M) or (B * K, M).
            mode: ``'loss'`` for a dict of scalars; ``'predict'`` for the same as numbers, in a list, to evaluate
                held-out images; ``'tensor'`` for the backbone's features of whole images.

        Raises:
            ConfigError: If a mode needs a mask and there is none.
        """
        if mode == 'tensor':
            return self.backbone(inputs)
        advice = "the dataset needs masking=dict(...), and the loader collate_fn=dict(type='bootmae_mm.collate')"
        require(ids_keep is not None and ids_mask is not None, f'no mask in the batch: {advice}')
        losses = self.loss(inputs, ids_keep, ids_mask)
        if mode == 'loss':
            return losses
        assert mode == 'predict', mode
        return [{name: value.item() for name, value in losses.items()} | {'batch_size': len(inputs)}]

    def loss(self, inputs: Tensor, ids_keep: Tensor, ids_mask: Tensor) -> dict[str, Tensor]:
        """Compute both losses, unweighted, and norms that reveal a collapse of the features.

        With K masks per image (an option of :class:`MaskSampling`) the student sees an image K times, the teacher once.

        Args:
            inputs: (B, C, H, W).
            ids_keep: (B * K, V), K usually 1.
            ids_mask: (B * K, M).

        Returns:
            Scalars of the branches that exist: ``pixel_loss``, ``feature_loss``, ``feature_pred_norm`` and
            ``feature_target_norm`` (mean L2 norm of a patch's features before normalization), ``feature_target_std``
            (std over the batch's patches of the normalized target, averaged over its dimensions; 0 once all patches
            look alike to the teacher).
        """
        self._check_mask(inputs, ids_keep, ids_mask)
        images = repeat_for_masks(inputs, ids_mask)  # (B * K, C, H, W)
        latent, context = self.backbone.encode_visible(images, ids_keep, self.neck.context_blocks)  # (B * K, 1 + V, D)
        decoded = self.neck(latent, context, ids_mask)  # {pixel, feature}: (B * K, M, width)
        weights = loss_weights(ids_mask, self.backbone.grid_size, self.weight_mask)  # (B * K, M)

        results = {}
        if self.pixel_head is not None:
            results['pixel_loss'] = self.pixel_head.loss(decoded['pixel'], images, ids_mask, weights)
        if self.feature_head is not None:
            prediction = self.feature_head(decoded['feature'])  # (B * K, M, D)
            features = self.teacher_features(inputs, ids_mask)  # (B * K, M, D)
            target = self.feature_head.target(features)  # (B * K, M, D), normalized
            results['feature_loss'] = self.feature_head.loss(prediction, target, weights)
            results.update(self._feature_norms(prediction, features, target))
        return results

    @torch.no_grad()
    def teacher_features(self, inputs: Tensor, ids_mask: Tensor) -> Tensor:
        """Features of the masked patches, from the teacher's view of the whole image.

        (B, C, H, W), (B * K, M) -> (B * K, M, D).
        """
        if len(ids_mask) == len(inputs):
            return self.teacher.encode_patches(inputs, ids_mask, norm=self.teacher_norm)
        # K masks per image: encode all patches once, then pick those of each mask.
        rows, columns = self.teacher.grid_size
        all_ids = torch.arange(rows * columns, device=inputs.device).expand(len(inputs), -1)  # (B, L)
        features = self.teacher.encode_patches(inputs, all_ids, norm=self.teacher_norm)  # (B, L, D)
        return take_tokens(repeat_for_masks(features, ids_mask), ids_mask)

    @staticmethod
    @torch.no_grad()
    def _feature_norms(prediction: Tensor, features: Tensor, target: Tensor) -> dict[str, Tensor]:
        return dict(
            feature_pred_norm=prediction.detach().float().norm(dim=2).mean(),
            feature_target_norm=features.float().norm(dim=2).mean(),
            feature_target_std=target.flatten(0, 1).std(dim=0, correction=0).mean(),
        )

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, OrderedDict]:
        """Add the weighted losses; log each one unweighted.

        mmengine would add every entry whose name contains 'loss'; this adds the two losses times their weights.
        """
        total = sum(
            weight * losses[name]
            for name, weight in (('pixel_loss', self.pixel_weight), ('feature_loss', self.feature_weight))
            if name in losses
        )
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
