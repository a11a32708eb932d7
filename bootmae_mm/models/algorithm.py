"""BootMAE: the wiring of backbone, neck, heads and teacher."""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import Tensor, nn

from bootmae_mm.checkpoints.encoder import load_encoder
from bootmae_mm.registry import MODELS
from bootmae_mm.values import number

from .tokens import loss_weights, take_tokens


@MODELS.register_module()
class BootMAE(BaseModel):
    """Bootstrapped masked autoencoder (arXiv 2207.07116).

    Facts that follow from the backbone (width, heads, grid) are filled into neck and heads, so a config names each of
    them once.

    Args:
        backbone: The student's config, a :class:`BootMAEViT`.
        neck: Config of :class:`BootMAENeck`.
        pixel_head: Config of the head of the neck's pixel decoder, or None if the neck has none.
        feature_head: Config of the head of the neck's feature decoder, or None if the neck has none.
        teacher: None for the momentum encoder, moved by :class:`BootMAEEMAHook`. A dict for a frozen one, as in the
            paper's first experiment: ``checkpoint`` (path), ``prefix`` (of the encoder's keys, ``'backbone.'``) and
            ``backbone`` (options in which it differs from the student's).
        teacher_norm: Take the target after the teacher's final norm instead of before it.
        weight_mask: Weigh the inside of masked blocks more, see :func:`loss_weights`.
        pixel_weight: Weight of the pixel loss.
        feature_weight: Weight of the feature loss; :class:`FeatureWeightHook` ramps it up.
        data_preprocessor: Config of the normalisation.

    Raises:
        ValueError: If heads and decoders do not match, or the teacher is configured without a feature decoder.
    """

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        pixel_head: dict | None = None,
        feature_head: dict | None = None,
        teacher: dict | None = None,
        teacher_norm: bool = False,
        weight_mask: bool = True,
        pixel_weight: float = 1.0,
        feature_weight: float = 1.0,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
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
            if (name in widths) != (head is not None):
                raise ValueError(
                    f'the {name} branch is half there: neck.{name} is '
                    f'{"given" if name in widths else "None"}, {name}_head is '
                    f'{"None" if head is None else "given"}'
                )
        if teacher is not None and feature_head is None:
            raise ValueError('a teacher is configured, but there is no feature branch that would use it')

        self.teacher_checkpoint = None
        if feature_head is not None:
            self.teacher = self._build_teacher(backbone, teacher)
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
        self.pixel_weight = number(pixel_weight, 'pixel_weight', least=0)
        self.feature_weight = number(feature_weight, 'feature_weight', least=0)

    def _check_backbone(self) -> None:
        """Refuse what is for downstream tasks only, and other channels than those that are normalised."""
        backbone = self.backbone
        if backbone.window_size or backbone.rel_pos_bias:
            raise ValueError(
                'pretraining has neither windows nor relative-position bias; both are for downstream tasks'
            )
        if not backbone.final_norm:
            raise ValueError('pretraining needs the final norm of the backbone: final_norm=True')
        channels, mean = backbone.patch_embed.projection.in_channels, getattr(self.data_preprocessor, 'mean', None)
        if mean is not None and len(mean) != channels:
            raise ValueError(
                f'in_channels of the backbone is {channels}, but the data_preprocessor normalises {len(mean)}: '
                'mean and std need one number a channel'
            )

    def _build_teacher(self, backbone: dict, teacher: dict | None) -> nn.Module:
        """A copy of the student, or the frozen encoder that ``teacher`` describes."""
        if teacher is None:
            module = copy.deepcopy(self.backbone)
        else:
            teacher = dict(teacher)
            self.teacher_checkpoint = teacher.pop('checkpoint', None)
            self.teacher_prefix = teacher.pop('prefix', 'backbone.')
            module = MODELS.build({**backbone, 'drop_path_rate': 0.0, **teacher.pop('backbone', {})})
            if not self.teacher_checkpoint or teacher:
                raise ValueError(
                    'a frozen teacher is given by checkpoint (needed), prefix and backbone'
                    + (f', not by {sorted(teacher)}' if teacher else '')
                )
            if module.grid_size != self.backbone.grid_size:
                raise ValueError(f'the teacher sees {module.grid_size} patches, the student {self.backbone.grid_size}')
        module.requires_grad_(False)
        module.eval()
        return module

    @property
    def has_momentum_teacher(self) -> bool:
        """Whether there is a teacher that follows the student."""
        return self.feature_head is not None and self.teacher_checkpoint is None

    def init_weights(self) -> None:
        """Initialise all parts; then the teacher copies the student, or loads its checkpoint."""
        super().init_weights()
        if self.has_momentum_teacher:
            self.reset_teacher()
        elif self.teacher_checkpoint is not None:
            report = load_encoder(self.teacher, self.teacher_checkpoint, prefix=self.teacher_prefix, resize=False)
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
            inputs: Normalised images, (B, C, H, W).
            ids_keep: Indices of the kept patches, (B, V), or (B * K, V) for K masks of each image in succession.
            ids_mask: Indices of the masked patches, (B, M) or (B * K, M).
            mode: ``'loss'`` for a dict of scalars; ``'predict'`` for the same, once a batch, in a list, for evaluation
                on held-out images; ``'tensor'`` for the backbone's features of whole images.

        Raises:
            ValueError: On an unknown mode, or without a mask where one is needed.
        """
        if mode == 'tensor':
            return self.backbone(inputs)
        if ids_keep is None or ids_mask is None:
            raise ValueError(
                'no mask in the batch: the dataset needs masking=dict(grid_size=...), and the loader '
                "collate_fn=dict(type='bootmae_mm.collate')"
            )
        if mode == 'loss':
            return self.loss(inputs, ids_keep, ids_mask)
        if mode == 'predict':
            return [
                {name: value.item() for name, value in self.loss(inputs, ids_keep, ids_mask).items()}
                | {'batch_size': len(inputs)}
            ]
        raise ValueError(f"mode must be 'tensor', 'loss' or 'predict', but is {mode!r}")

    def loss(self, inputs: Tensor, ids_keep: Tensor, ids_mask: Tensor) -> dict[str, Tensor]:
        """Both losses, unweighted, and norms that show a collapse of the features.

        With several masks of each image (an option of :class:`MaskSampling`) the student sees an image once for each,
        and the teacher once for all.

        Args:
            inputs: (B, C, H, W).
            ids_keep: (B * K, V), K usually 1.
            ids_mask: (B * K, M).

        Returns:
            Scalars ``pixel_loss``, ``feature_loss``, ``feature_pred_norm`` and ``feature_target_norm`` (mean L2 norm of
            a patch's features before normalisation), ``feature_target_std`` (mean deviation over the batch's patches
            of the normalised target: 0 once all patches look alike to the teacher); those of the branches that exist.
        """
        self._check_mask(inputs, ids_keep, ids_mask)
        images = inputs.repeat_interleave(len(ids_mask) // len(inputs), 0) if len(ids_mask) > len(inputs) else inputs
        latent, context = self.backbone.encode_visible(images, ids_keep, self.neck.context_blocks)
        decoded = self.neck(latent, context, ids_mask)
        weights = loss_weights(ids_mask, self.backbone.grid_size, self.weight_mask)

        results = {}
        if self.pixel_head is not None:
            results['pixel_loss'] = self.pixel_head.loss(decoded['pixel'], images, ids_mask, weights)
        if self.feature_head is not None:
            prediction = self.feature_head(decoded['feature'])
            features = self.teacher_features(inputs, ids_mask)
            target = self.feature_head.target(features)
            results['feature_loss'] = self.feature_head.loss(prediction, target, weights)
            results.update(self._feature_norms(prediction, features, target))
        return results

    @torch.no_grad()
    def teacher_features(self, inputs: Tensor, ids_mask: Tensor) -> Tensor:
        """The target: features of the masked patches, seen in the whole image.

        (B, C, H, W), (B * K, M) -> (B * K, M, D).
        """
        masks = len(ids_mask) // len(inputs)
        if masks == 1:
            return self.teacher.encode_patches(inputs, ids_mask, norm=self.teacher_norm)
        # All patches once, then those of each mask.
        rows, columns = self.teacher.grid_size
        everything = torch.arange(rows * columns, device=inputs.device).expand(len(inputs), -1)
        features = self.teacher.encode_patches(inputs, everything, norm=self.teacher_norm)
        return take_tokens(features.repeat_interleave(masks, 0), ids_mask)

    @staticmethod
    @torch.no_grad()
    def _feature_norms(prediction: Tensor, features: Tensor, target: Tensor) -> dict[str, Tensor]:
        return dict(
            feature_pred_norm=prediction.detach().float().norm(dim=2).mean(),
            feature_target_norm=features.float().norm(dim=2).mean(),
            feature_target_std=target.flatten(0, 1).std(dim=0, correction=0).mean(),
        )

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, OrderedDict]:
        """Weigh and add the losses; log each one unweighted.

        mmengine would add every entry whose name contains 'loss'; this adds the two losses, times their weights.
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
        kept, masked = ids_keep.shape[-1], ids_mask.shape[-1]
        count = len(ids_mask)
        if ids_keep.shape != (count, kept) or ids_mask.shape != (count, masked) or not count or count % len(inputs):
            raise ValueError(
                f'ids_keep {tuple(ids_keep.shape)} and ids_mask {tuple(ids_mask.shape)} must be '
                f'(batch, patches) of a batch of {len(inputs)}, or of a whole multiple of it'
            )
        if kept + masked != rows * columns or not 0 < masked < rows * columns:
            raise ValueError(
                f'{kept} kept and {masked} masked patches do not fit an image of {rows} x {columns} '
                f'= {rows * columns} patches (img_size over patch_size): 0 < masked < {rows * columns} is needed, and '
                'grid_size in `masking` of the dataset must be that of the backbone'
            )
