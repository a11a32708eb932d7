"""Baselines: training steps of other programs, timed on the same batches.

This project contains no code of theirs: the authors' model is imported from the user's checkout, MAE from mmpretrain.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from bootmae_mm.models import BootMAE
from bootmae_mm.registry import MODELS

from .step import DECAY, TrainingStep, quiet

MODEL_FILE = 'models/modeling_pretrain_bootmae.py'


@contextlib.contextmanager
def cuda_stays_where_it_is(device: torch.device) -> Iterator[None]:
    """Make ``tensor.cuda()`` a no-op on a machine without a GPU: the authors' model calls it."""
    original = Tensor.cuda
    if device.type != 'cuda':
        Tensor.cuda = lambda self, *args, **kwargs: self
    try:
        yield
    finally:
        Tensor.cuda = original


def import_file(path: Path) -> ModuleType:
    """Import a Python file.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If one of its imports is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f'no {path}; --authors-path is a checkout of github.com/LightDXY/BootMAE')
    spec = importlib.util.spec_from_file_location('authors_model', path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # for timm's register_model
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # about timm's old import paths
        spec.loader.exec_module(module)
    return module


class AuthorsStep:
    """A step of the authors' program: their model file, with the arithmetic of their loop reimplemented.

    From ``run_pretraining.py``: targets and masks as full images, weight mask, both losses, fp16 autocast and loss
    scaling on a GPU, AdamW with two groups, an EMA of the full model updated parameter by parameter (timm's
    ``ModelEma``), and five values fetched from the device per step.

    Args:
        path: Path of a checkout of github.com/LightDXY/BootMAE.
        step: Step of this project, for the size of the model, device, batch, masks and optimizer options.
        amp: Use their fp16 autocast on a GPU.

    Raises:
        FileNotFoundError: If it is not a checkout.
        ImportError: If an import of their model file (timm) is missing.
        ValueError: If their program has no such model.
    """

    def __init__(self, path: str | Path, step: TrainingStep, amp: bool = True) -> None:
        module = import_file(Path(path) / MODEL_FILE)
        model = step.model
        names = {768: 'bootmae_base', 1024: 'bootmae_large'}
        if not isinstance(model, BootMAE) or model.backbone.embed_dims not in names or not step.teacher:
            raise ValueError('the authors have ViT-B and ViT-L with both branches; the config has another model')
        self.device = step.device
        self.amp = amp and step.device.type == 'cuda'
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            make = getattr(module, names[model.backbone.embed_dims])
            self.model = make().to(self.device).train()
            self.ema = make().to(self.device).eval()
        self.ema.load_state_dict(self.model.state_dict())
        parameters = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        decays = [p for name, p in parameters if p.dim() > 1 and name != 'cls_token']
        others = [p for name, p in parameters if not (p.dim() > 1 and name != 'cls_token')]
        options = step.optim_wrapper.optimizer.defaults
        self.optimizer = torch.optim.AdamW(
            [dict(params=decays), dict(params=others, weight_decay=0.0)],
            lr=options['lr'],
            betas=options['betas'],
            eps=options['eps'],
            weight_decay=options['weight_decay'],
        )
        self.scaler = torch.amp.GradScaler(enabled=self.amp)
        # Their loader normalizes; their step starts with float images and a shuffled order.
        self.images = (step.data['inputs'].float() - 127.5) / 127.5
        self.order = torch.cat([step.data['ids_keep'], step.data['ids_mask']], dim=1)
        if self.device.type == 'cuda':
            self.images, self.order = self.images.pin_memory(), self.order.pin_memory()
        self.num_masked = step.data['ids_mask'].shape[1]
        self.grid, self.patch = model.backbone.grid_size, model.backbone.patch_size

    def __call__(self) -> None:
        """Run one step."""
        with cuda_stays_where_it_is(self.device):
            images = self.images.to(self.device, non_blocking=True)
            order = self.order.to(self.device, non_blocking=True)
            weights, mask, per_patch, target = self._targets(images, order)
            with torch.autocast(self.device.type, torch.float16, enabled=self.amp):
                pixels, features = self.model(images, self.num_masked, order)
                pixel_loss = torch.mean(weights * (pixels - target) ** 2) / torch.mean(mask)
                with torch.no_grad():
                    wanted = self.ema.get_feature(images, self.num_masked, order)
                feature_loss = torch.mean(per_patch * (self._norm(wanted) - self._norm(features)) ** 2)
                loss = pixel_loss + feature_loss / torch.mean(mask)
            loss.item()
            self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optimizer)
            torch.norm(torch.stack([p.grad.norm() for p in self.model.parameters() if p.grad is not None]))
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()
            self._move_teacher()
            for value in (pixel_loss, feature_loss, features.abs().mean(), wanted.abs().mean()):
                value.item()

    @torch.no_grad()
    def _targets(self, images: Tensor, order: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights and mask as images (B, 1, H, W), weights of patches (B, L, 1), normalized images (B, 3, H, W)."""
        batch, channels, height, width = images.shape
        rows, columns = self.grid
        mask = torch.zeros(order.shape, device=order.device)
        mask[:, -self.num_masked :] = 1.0
        mask = mask.gather(1, order.argsort(dim=1)).view(batch, 1, rows, columns)
        weights = mask * F.avg_pool2d(mask, 3, 1, 1) + mask
        per_patch = weights.view(batch, -1, 1)
        patches = images.view(batch, channels, rows, self.patch, columns, self.patch)
        var, mean = torch.var_mean(patches, dim=(3, 5), keepdim=True, correction=0)
        target = ((patches - mean) / (var + 1e-5).sqrt()).reshape(images.shape)
        size = (height, width)
        return F.interpolate(weights, size), F.interpolate(mask, size), per_patch, target

    def _norm(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=1e-6)

    @torch.no_grad()
    def _move_teacher(self) -> None:
        for old, new in zip(self.ema.state_dict().values(), self.model.state_dict().values(), strict=True):
            old.copy_(old * DECAY + (1.0 - DECAY) * new)


class MAEStep:
    """A step of mmpretrain's MAE with ViT-B/16, 75 % masked, under this config's optimizer and precision.

    Args:
        step: Step of this project, for device, batch, precision and optimizer options.
        optimizer: Config of the optimizer.

    Raises:
        ValueError: If the config's encoder is not ViT-B/16 at 224 px.
    """

    def __init__(self, step: TrainingStep, optimizer: dict) -> None:
        backbone = step.model.backbone
        if (backbone.embed_dims, tuple(backbone.img_size), backbone.patch_size) != (768, (224, 224), 16):
            raise ValueError("mmpretrain's MAE-B is compared with ViT-B/16 at 224 px; the config has another encoder")
        init_default_scope('mmpretrain')
        with quiet():
            self.model: nn.Module = MODELS.build(
                dict(
                    type='mmpretrain.MAE',
                    data_preprocessor=dict(
                        type='mmpretrain.SelfSupDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3
                    ),
                    backbone=dict(type='mmpretrain.MAEViT', arch='b', patch_size=16, mask_ratio=0.75),
                    neck=dict(type='mmpretrain.MAEPretrainDecoder', patch_size=16, embed_dim=768),
                    head=dict(
                        type='mmpretrain.MAEPretrainHead',
                        norm_pix=True,
                        patch_size=16,
                        loss=dict(type='mmpretrain.PixelReconstructionLoss', criterion='L2'),
                    ),
                )
            )
            self.model.init_weights()
            self.model.to(step.device).train()
            wrapper = dict(
                type='bootmae_mm.AutocastOptimWrapper',
                dtype=str(step.dtype).removeprefix('torch.'),
                constructor='bootmae_mm.GroupedOptimWrapperConstructor',
                optimizer=optimizer,
            )
            self.optim_wrapper = build_optim_wrapper(self.model, wrapper)
        from mmpretrain.structures import DataSample

        self.data = dict(inputs=step.data['inputs'], data_samples=[DataSample() for _ in step.data['inputs']])

    def __call__(self) -> None:
        """Run one step."""
        self.model.train_step(dict(self.data), self.optim_wrapper)
