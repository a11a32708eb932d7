"""Heads: the end of a branch, from decoded tokens to a prediction and its loss."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from bootmae_mm.config.parts import build_part
from bootmae_mm.registry import MODELS
from bootmae_mm.validation import Positive, Side, require, validated

from .losses import PatchLoss
from .targets import ModelInfo, Target


class BranchHead(BaseModule):
    """Base class: the end of a branch.

    Attributes:
        target: The target of the branch.
        errors_per_patch: Whether the errors are those of patches, rather than of images.
    """

    target: Target
    errors_per_patch: bool = True

    def loss(self, tokens: Tensor, target: Tensor, weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare the prediction with the target.

        Args:
            tokens: Decoded tokens, (B, M, in_channels).
            target: Output of ``target``, without gradient.
            weights: Weights of the patches, (B, M).

        Returns:
            The errors of the patches, (B, M), without gradient; and scalars: ``loss``, and statistics to log.
        """
        raise NotImplementedError

    def followers(self) -> list[tuple[nn.Module, nn.Module]]:
        """Modules of this one that follow others by momentum, as pairs (follower, leader)."""
        return []


@MODELS.register_module()
class BootMAEHead(BranchHead):
    """Predicts any target of masked patches with one linear layer, and computes its loss.

    Args:
        in_channels: Width of the decoder; :class:`BootMAE` fills in this and the next.
        info: Facts of the model.
        target: Config of a :class:`Target`.
        loss: Config of a :class:`PatchLoss`.
        weighted: Use the weights of ``weight_mask``; otherwise all patches count alike.
        normalize: Let prediction and target go through a LayerNorm without affine parameters, in float32, before they
            are compared.
        eps: Epsilon of that norm.

    Raises:
        ConfigError: If the loss does not fit the target: codes need a cross-entropy, and numbers another loss.
    """

    @validated
    def __init__(
        self,
        in_channels: Side,
        info: ModelInfo,
        target: dict,
        loss: dict = dict(type='bootmae_mm.PatchMSE'),  # noqa: B006  not changed
        normalize: bool = False,
        eps: Positive = 1e-6,
        weighted: bool = True,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.target = build_part(target, Target, 'target', MODELS, info=info)
        self.criterion = build_part(loss, PatchLoss, 'loss', MODELS)
        self.projection = self._make_projection(in_channels, info)
        self.normalize = normalize
        self.eps = eps
        self.weighted = weighted
        given, wanted = self.target.kind, self.criterion.kind
        names = type(self.criterion).__name__, type(self.target).__name__
        fits = given == wanted
        require(fits, f'loss {names[0]} compares {wanted}, but the target {names[1]} gives {given}')
        require(given == 'numbers' or not normalize, f'normalize=True is not for {given}')
        dims = self.criterion.dims
        fits = dims in (None, self.target.dims)
        require(fits, f'loss {names[0]} is for a target of {dims} number(s) per patch')

    def _make_projection(self, in_channels: int, info: ModelInfo) -> nn.Module:  # noqa: ARG002
        return nn.Linear(in_channels, self.target.dims)

    def init_weights(self) -> None:
        """Xavier-uniform weight and zero bias, as in the authors' code."""
        super().init_weights()
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, M, in_channels) -> (B, M, dims)."""
        return self.projection(tokens)

    def loss(self, tokens: Tensor, target: Tensor, weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare the prediction with the target; the scalars are ``loss`` and those of :meth:`statistics`."""
        prediction = self(tokens).flatten(2)  # (B, M, D)
        target = target if self.target.kind == 'codes' else target.flatten(2)  # (B, M, D); codes (B, M)
        errors = self.criterion(self.compared(prediction), self.compared(target))  # (B, M)
        loss = (weights * errors if self.weighted else errors).mean()
        return errors.detach(), dict(loss=loss, **self.statistics(prediction, target))

    def compared(self, values: Tensor) -> Tensor:
        """Form in which prediction and target are compared: (B, M, D) -> (B, M, D)."""
        return F.layer_norm(values.float(), values.shape[-1:], eps=self.eps) if self.normalize else values

    @torch.no_grad()
    def statistics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Numbers that reveal a collapse.

        Returns:
            ``pred_norm`` and ``target_norm``: mean L2 norm of a patch, before normalization. ``target_std``: std of the
            compared target over the patches of the batch, averaged over its dimensions; 0 once all look alike. For
            codes only ``target_codes``: the number of different codes in the batch.
        """
        if self.target.kind == 'codes':
            # 1 for every code of the batch, (codes,)
            counts = torch.zeros(self.target.dims, device=target.device).index_fill_(0, target.flatten(), 1.0)
            return dict(target_codes=counts.sum())
        return dict(
            pred_norm=prediction.float().norm(dim=2).mean(),
            target_norm=target.float().norm(dim=2).mean(),
            target_std=self.compared(target).float().flatten(0, 1).std(dim=0, correction=0).mean(),
        )


@MODELS.register_module()
class BootMAEFeatureHead(BootMAEHead):
    """Predicts the teacher's features, both sides normalized: the paper's feature branch.

    The arguments are those of :class:`BootMAEHead`.
    """

    @validated
    def __init__(
        self,
        in_channels: Side,
        info: ModelInfo,
        target: dict = dict(type='bootmae_mm.TeacherTarget'),  # noqa: B006  not changed
        loss: dict = dict(type='bootmae_mm.PatchMSE'),  # noqa: B006  not changed
        normalize: bool = True,
        eps: Positive = 1e-6,
        weighted: bool = True,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(in_channels, info, target, loss, normalize, eps, weighted, init_cfg)


@MODELS.register_module()
class BootMAEPixelHead(BootMAEHead):
    """Predicts the pixels of masked patches: the paper's pixel branch.

    The other arguments are those of :class:`BootMAEHead`.

    Args:
        normalize: Normalization of the target, see :class:`PixelTarget`.
    """

    @validated
    def __init__(
        self,
        in_channels: Side,
        info: ModelInfo,
        normalize: Literal['channel', 'patch', 'none'] = 'channel',
        loss: dict = dict(type='bootmae_mm.PatchMSE'),  # noqa: B006  not changed
        weighted: bool = True,
        init_cfg: Any = None,
    ) -> None:
        target = dict(type='bootmae_mm.PixelTarget', normalize=normalize)
        super().__init__(in_channels, info, target, loss, weighted=weighted, init_cfg=init_cfg)

    def _make_projection(self, in_channels: int, info: ModelInfo) -> nn.Module:
        # Parameters in the authors' shapes; with a stride equal to the kernel it is one linear map per patch.
        return nn.ConvTranspose2d(in_channels, info.in_channels, kernel_size=info.patch_size, stride=info.patch_size)

    def init_weights(self) -> None:
        """Leave torch's initialization, as in the authors' code."""
        BaseModule.init_weights(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, M, in_channels) -> (B, M, C, patch, patch)."""
        weight = self.projection.weight  # (in_channels, C, patch, patch)
        bias = self.projection.bias[:, None, None].expand(weight.shape[1:])  # (C, patch, patch)
        return F.linear(tokens, weight.flatten(1).t(), bias.flatten()).unflatten(2, weight.shape[1:])

    def statistics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """None: pixels cannot collapse."""
        return {}
