"""Export of an encoder to other libraries: timm, Hugging Face, mmpretrain, ONNX."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from mmengine.logging import print_log

from bootmae_mm.checkpoints.encoder import encoder_state, load_encoder
from bootmae_mm.checkpoints.names import to_huggingface, to_timm
from bootmae_mm.checkpoints.reading import load_file
from bootmae_mm.checkpoints.saved_config import config_of, saved_config
from bootmae_mm.checkpoints.sources import IDENTITY, log_source, read_source
from bootmae_mm.config import load_config
from bootmae_mm.models import BootMAEViT
from bootmae_mm.validation import require
from bootmae_mm.version import __version__

from .huggingface import huggingface_config, huggingface_preprocessor
from .preprocessing import Preprocessing
from .timm import timm_config

TARGETS = ('timm', 'hf', 'mmpretrain', 'onnx')
# Options that define the encoder; the others belong to a task.
STRUCTURE = (*IDENTITY, 'layer_scale_init_value', 'pre_norm', 'layer_cfgs')


def read_encoder(path: str | Path, config: str | Path | None = None, prefix: str | None = None) -> BootMAEViT:
    """Build an encoder and load all its weights from a checkpoint.

    Args:
        path: Path of the checkpoint, or its URL.
        config: Path of a config with ``model.backbone``; by default the one in the checkpoint. Without any, what the
            weights and the files beside them say: :func:`bootmae_mm.checkpoints.sources.read_source`.
        prefix: See :func:`encoder_state`.

    Returns:
        The encoder in eval mode. A pretrained encoder returns all tokens after the final norm; one fine-tuned for
        classification, with its norm after the mean, returns the normed mean of the patch tokens.

    Raises:
        MissingFileError: If a file is missing.
        ConfigError: If the checkpoint does not fit, or has parts that a plain vision transformer does not have.
    """
    if config is None and saved_config(load_file(path, mmap=True)) is None:  # of another program
        source = read_source(path, prefix)
        log_source(path, source)
        options = source.backbone
    else:
        cfg = config_of(load_file(path)) if config is None else load_config(config)
        kind = str(cfg.model.backbone.get('type', '')).rsplit('.', 1)[-1]
        is_vit = kind in ('BootMAEViT', 'VisionTransformer', 'MAEViT', '')
        advice = "its weights have mmpretrain's names below 'backbone.'"
        require(is_vit, f'{path} is a {kind}, which has no export: {advice}')
        options = {key: value for key, value in cfg.model.backbone.items() if key in STRUCTURE}
    pooled = 'ln2.weight' in (state := encoder_state(path, prefix)) and 'ln1.weight' not in state
    encoder = BootMAEViT(**options, out_type='avg_featmap' if pooled else 'raw', final_norm=not pooled)
    report = load_encoder(encoder, path, prefix)
    special = [name for name in report.unused if '.gamma' in name or 'rel_pos_bias' in name]
    special += ['ln2.weight'] if pooled and 'ln2.weight' not in report.loaded else []
    require(
        not special,
        f'{path} cannot be exported: a plain vision transformer has no layer scale, no relative-position bias and a '
        f'pooled norm of its own width, but the encoder has {special}',
    )
    print_log(f'encoder: {report}', logger='current')
    encoder.train(False)
    return encoder


def export(encoder: BootMAEViT, target: str, out: str | Path, source: str, preprocessing: Preprocessing) -> Path:
    """Export an encoder.

    Args:
        encoder: Encoder from :func:`read_encoder`.
        target: One of :data:`TARGETS`.
        out: Output folder, created if missing.
        source: Origin of the weights, written as metadata.
        preprocessing: How the run prepared its images; see :func:`read_preprocessing`.

    Returns:
        What to load: the folder for timm and hf, the file for mmpretrain and onnx.

    Raises:
        ConfigError: For an unknown target, or one whose model cannot be this encoder.
    """
    pooled = encoder.out_type == 'avg_featmap'
    eps, channels = encoder.layers[0].ln1.eps, encoder.patch_embed.projection.in_channels
    require(target in TARGETS, f'unknown target {target!r}; valid targets: {", ".join(TARGETS)}')
    require(
        not pooled or target != 'hf',
        "transformers' ViTModel has its norm before the mean, but this encoder was fine-tuned with a norm after it; "
        'export it --to timm, or export the pretrained encoder',
    )
    special = [name for name in encoder.state_dict() if '.gamma' in name or name.startswith('pre_norm')]
    is_plain = not special or target in ('mmpretrain', 'onnx')
    reason = f'a plain vision transformer has no layer scale and no norm before the blocks, but this has {special[:1]}'
    require(is_plain, f'{source} cannot be exported --to {target}: {reason}')
    has_eps = target != 'timm' or eps == 1e-6
    require(has_eps, f"the norms of timm's vision transformer have an eps of 1e-6, those of this encoder {eps}")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().clone() for name, value in encoder.state_dict().items()}
    metadata = dict(format='pt', source=source, bootmae_mm=__version__)
    metadata['preprocessing'] = json.dumps(asdict(preprocessing))
    if target == 'timm':
        config = timm_config(
            encoder.arch_settings, encoder.img_size, encoder.patch_size, preprocessing, channels, pooled
        )
        _write_folder(out, to_timm(state), metadata, {'config.json': config})
        return out
    if target == 'hf':
        config = huggingface_config(encoder.arch_settings, encoder.img_size, encoder.patch_size, channels, eps)
        preprocessor = huggingface_preprocessor(encoder.img_size, preprocessing)
        _write_folder(
            out, to_huggingface(state), metadata, {'config.json': config, 'preprocessor_config.json': preprocessor}
        )
        return out
    if target == 'mmpretrain':
        file = out / 'mmpretrain.pth'
        torch.save(dict(state_dict={f'backbone.{name}': value for name, value in state.items()}, meta=metadata), file)
        return file
    return _write_onnx(encoder, out / 'encoder.onnx', metadata, 'features' if pooled else 'tokens')


def _write_folder(out: Path, state: dict, metadata: dict, files: dict[str, dict]) -> None:
    from safetensors.torch import save_file

    save_file({name: value.contiguous() for name, value in state.items()}, out / 'model.safetensors', metadata)
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, indent=2) + '\n')


def _write_onnx(encoder: BootMAEViT, file: Path, metadata: dict, output: str) -> Path:
    """Input ``images`` (batch, C, H, W), normalized; output ``tokens`` (batch, 1 + L, D) or, pooled, ``features``."""
    import onnx

    # A batch of two: a size of one would become a constant.
    images = torch.zeros(2, encoder.patch_embed.projection.in_channels, *encoder.img_size)
    torch.onnx.export(
        _Output(encoder),
        (images,),
        str(file),
        input_names=['images'],
        output_names=[output],
        dynamic_axes={'images': {0: 'batch'}, output: {0: 'batch'}},
        opset_version=17,
        dynamo=False,
    )
    model = onnx.load(file)
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    onnx.save(model, file)
    return file


class _Output(torch.nn.Module):
    """The encoder with a single tensor as output."""

    def __init__(self, encoder: BootMAEViT) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoder(images)[0]
