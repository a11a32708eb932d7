"""Replacement of mmcv's compiled operators by torchvision's.

Mask R-CNN and UperNet need two operators of the module ``mmcv._ext``: nms and roi_align. A plain install of mmcv does
not compile that module, and then neither ``mmcv.ops`` nor mmdet can be imported. A finder at the end of
``sys.meta_path`` supplies a module of the same name: nms and roi_align, forward and backward, from torchvision, for CPU
and CUDA; every other operator raises when called. A compiled ``mmcv._ext`` is found first and used.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch is imported only when an operator is called, so that importing this is cheap
    from torch import Tensor

NAME = 'mmcv._ext'
INSTALL = (
    'build mmcv with operators for your torch and CUDA (`pip install --no-build-isolation onedl-mmcv`, or `mim '
    'install mmcv` for the original distribution)'
)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Indices of the boxes that non-maximum suppression keeps, best first.

    Args:
        boxes: (N, 4) as x1, y1, x2, y2.
        scores: (N,).
        iou_threshold: IoU with a better box above which a box is dropped.
        offset: 0, or 1 if a box includes its last pixel: its width is then x2 - x1 + 1.

    Returns:
        Tensor (K,), int64.
    """
    import torch
    import torchvision.ops

    # Adding the offset to the far corner gives the same widths, heights and intersections.
    far = boxes.new_tensor([0, 0, offset, offset])
    with torch.no_grad():
        return torchvision.ops.nms(boxes + far, scores, iou_threshold)


def _check_pool_mode(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError("roi_align with pool_mode='max' needs mmcv's compiled operators: " + INSTALL)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Average RoI align, written into ``output``; arguments as mmcv's.

    Args:
        input: (B, C, H, W).
        rois: (K, 5) as image index, x1, y1, x2, y2.
        output: (K, C, aligned_height, aligned_width), filled.
        argmax_y, argmax_x: Not used by averaging.
        aligned_height: Bins in a column.
        aligned_width: Bins in a row.
        spatial_scale: Side of the feature map over that of the image.
        sampling_ratio: Samples per bin along a side; 0 for one per pixel.
        pool_mode: 1 for averaging; 0 (maximum) is not supported.
        aligned: Shift by half a pixel, without a minimum size.
    """
    import torch

    _check_pool_mode(pool_mode)
    with torch.no_grad():
        output.copy_(
            torch.ops.torchvision.roi_align(
                input,
                rois.to(input.dtype),
                spatial_scale,
                aligned_height,
                aligned_width,
                _ratio(sampling_ratio),
                aligned,
            )
        )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of :func:`roi_align_forward`, added to ``grad_input`` (B, C, H, W)."""
    import torch

    _check_pool_mode(pool_mode)
    grad_input.add_(
        torch.ops.torchvision._roi_align_backward(
            grad_output,
            rois.to(grad_output.dtype),
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            _ratio(sampling_ratio),
            aligned,
        )
    )


def _ratio(sampling_ratio: int) -> int:
    """torchvision's value for one sample per pixel is -1."""
    return sampling_ratio if sampling_ratio > 0 else -1


SUPPLIED: dict[str, Callable] = dict(
    nms=nms,
    roi_align_forward=roi_align_forward,
    roi_align_backward=roi_align_backward,
    # For mmcv.utils.collect_env.
    get_compiler_version=lambda: 'n/a',
    get_compiling_cuda_version=lambda: 'not available',
)


def _missing(name: str) -> Callable:
    def operator(*args: object, **kwargs: object) -> None:
        raise NotImplementedError(
            f"the operator {name} needs mmcv's compiled operators, which are not installed: {INSTALL}"
        )

    operator.__name__ = name
    return operator


class _StandIn(ModuleType):
    """Module whose unknown attributes are operators that raise when called."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name.startswith('__'):  # of the import system and of inspection
            raise AttributeError(name)
        return _missing(name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds ``mmcv._ext`` if nothing else does."""

    def find_spec(
        self, fullname: str, path: object = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != NAME:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, origin='bootmae_mm.compat.operators')

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = _StandIn(spec.name, __doc__)
        module.__dict__.update(SUPPLIED)
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


def register_stand_in() -> None:
    """Append the finder, once. Call before mmdet or ``mmcv.ops`` is imported; importing bootmae_mm does."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


def uses_stand_in() -> bool:
    """Whether ``mmcv._ext`` is, or would be, the replacement."""
    import importlib.util

    spec = importlib.util.find_spec(NAME)
    return spec is not None and isinstance(spec.loader, _Finder)
