"""Checkpoints of tiny encoders, as a run writes them."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.config import Config

from tests.conftest import build, tiny_config


def write_checkpoint(folder: Path, backbone=None, config=None, pipeline=(), **changes):
    """Write a checkpoint with its config; return its path and the model."""
    if backbone is None:
        model_config = tiny_config()
        model_config['backbone'].update(changes)
        model = build(model_config)
        with torch.no_grad():  # a teacher that differs from the student
            for parameter in model.teacher.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        state = model.state_dict()
    else:
        model, model_config = backbone, dict(backbone=config)
        model_config['data_preprocessor'] = dict(mean=[127.5] * 3, std=[127.5] * 3)
        state = {f'backbone.{name}': value for name, value in backbone.state_dict().items()}
    cfg = Config(
        dict(
            model=model_config,
            test_dataloader=dict(dataset=dict(type='bootmae_mm.ImageFolder', pipeline=list(pipeline))),
        )
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'epoch_1.pth'
    torch.save(dict(state_dict=state, meta=dict(cfg=cfg.pretty_text)), path)
    return path, model.eval()
