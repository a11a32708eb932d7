"""A model card for an exported encoder, and its upload to the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config

from bootmae_mm.checkpoints.reading import load_file
from bootmae_mm.checkpoints.saved_config import config_of, saved_config
from bootmae_mm.models import BootMAEViT
from bootmae_mm.validation import ConfigError, require
from bootmae_mm.version import __version__
from bootmae_mm.visualization import read_scalars

from .preprocessing import Preprocessing

TARGETS = dict(timm='timm', hf='transformers')  # libraries of the hub, by target of the export
LOADING = dict(
    timm="""import timm

model = timm.create_model('hf-hub:{repo}', pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)
features = model(transform(image)[None])  # (1, {dims}): mean of the patch tokens""",
    hf="""from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained('{repo}')
model = AutoModel.from_pretrained('{repo}', add_pooling_layer=False).eval()
tokens = model(**processor(image, return_tensors='pt')).last_hidden_state  # (1, 1 + {patches}, {dims})
features = tokens[:, 1:].mean(dim=1)""",
)


def model_card(
    repo: str,
    target: str,
    checkpoint: str | Path,
    encoder: BootMAEViT,
    preprocessing: Preprocessing,
    license: str | None = None,
    about: str | None = None,
) -> str:
    """Text of a model card (``README.md``): how to load it, data, recipe, results, license.

    Args:
        repo: ``ORG/NAME`` on the hub.
        target: ``'timm'`` or ``'hf'``.
        checkpoint: Checkpoint that was exported; its config gives the recipe, the logs beside it the results.
        encoder: The encoder.
        preprocessing: Preprocessing of its run.
        license: Identifier of a license, such as ``'apache-2.0'``; None if it is not stated.
        about: Sentences on the images it was trained on.

    Raises:
        ConfigError: If the hub has no such kind of export, or the name is not ``ORG/NAME``.
    """
    require(target in TARGETS, f'a model card is for {" or ".join(TARGETS)}, not {target!r}')
    check_repo(repo)
    cfg, meta = _run_of(checkpoint)
    head = dict(
        library_name=TARGETS[target],
        license=license or 'other',
        pipeline_tag='image-feature-extraction',
        tags=['vision-transformer', 'self-supervised-learning', 'masked-image-modeling', 'bootmae'],
    )
    license_lines = [license or 'Not stated.']
    if cfg is not None and cfg.get('init'):
        license_lines += [
            '',
            f'Training started from `{_public(cfg.init)}`; the license of those weights applies, too.',
        ]
    parts = [
        ['---', yaml.safe_dump(head, sort_keys=False) + '---'],
        [f'# {repo.split("/")[1]}', '', *_about_model(repo, target, encoder, _is_pretraining(cfg))],
        ['## Images', '', about or 'The images it was trained on are not stated.', '', *_about_values(preprocessing)],
        ['## Training', '', *_recipe(cfg, meta)],
        ['## Results', '', *_results(Path(checkpoint))],
        ['## License', '', *license_lines],
    ]
    return '\n\n'.join('\n'.join(lines) for lines in parts) + '\n'


def _about_model(repo: str, target: str, encoder: BootMAEViT, is_pretrained: bool) -> list[str]:
    arch, (height, width) = encoder.arch_settings, encoder.img_size
    weights = sum(parameter.numel() for parameter in encoder.parameters())
    patches = encoder.grid_size[0] * encoder.grid_size[1]
    trained = 'Trained with [BootMAE](https://arxiv.org/abs/2207.07116) by' if is_pretrained else 'Weights exported by'
    return [
        f'A vision transformer: {arch["num_layers"]} blocks, {arch["embed_dims"]} wide, {arch["num_heads"]} heads, '
        f'patches of {encoder.patch_size} pixels, images of {height} x {width} with '
        f'{encoder.patch_embed.projection.in_channels} channel(s), {weights:,} weights.',
        f'{trained} bootmae_mm {__version__}; gives features of images and of their patches, no classes.',
        '',
        '```python',
        LOADING[target].format(repo=repo, dims=arch['embed_dims'], patches=patches),
        '```',
    ]


def _about_values(preprocessing: Preprocessing) -> list[str]:
    lines = [f'Normalized by mean {_numbers(preprocessing.mean)} and std {_numbers(preprocessing.std)} (scale 0..1).']
    if preprocessing.value_range is not None:
        lines.append(f'Values {preprocessing.value_range} of the files became 0 and 1.')
    if preprocessing.bands is not None:
        lines.append(f'Channels {list(preprocessing.bands)} of the files were used, counted from 0.')
    return lines


def check_repo(repo: str) -> None:
    """Refuse what is no name on the hub.

    Raises:
        ConfigError: If it is not ``ORG/NAME``.
    """
    require(re.fullmatch(r'[\w.-]+/[\w.-]+', repo), f'a model on the hub is named ORG/NAME, not {repo!r}')


def push(folder: str | Path, repo: str, private: bool = False) -> str:
    """Upload an exported folder with its model card.

    Args:
        folder: The folder.
        repo: ``ORG/NAME``; created if it does not exist.
        private: Whether a new one is private.

    Returns:
        Its address.

    Raises:
        ConfigError: If the hub refuses or cannot be reached.
    """
    check_repo(repo)
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = huggingface_hub.HfApi()
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=str(folder), commit_message='Upload an encoder of bootmae_mm')
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        first = next(iter(str(error).splitlines()), '')
        raise ConfigError(
            f'{repo} could not be uploaded: {type(error).__name__}: {first}; the folder is {folder}'
        ) from error
    return str(url)


def _public(init: str) -> str:
    """Where weights come from, without the folders of a machine."""
    return init if re.match(r'(hf-hub:|official:|https?://)', init) else Path(init).name


def _numbers(values: tuple[float, ...]) -> str:
    return '(' + ', '.join(f'{value:.4g}' for value in values) + ')'


def _run_of(checkpoint: str | Path) -> tuple[Config | None, dict[str, Any]]:
    """Config and metadata of the run, if the checkpoint is one of a run."""
    found = load_file(checkpoint, mmap=True)
    if saved_config(found) is None:
        return None, {}
    return config_of(found), found.get('meta') or {}


def _is_pretraining(cfg: Config | None) -> bool:
    """Whether a run is one of BootMAE, not of fine-tuning or of another program."""
    return cfg is not None and str(cfg.model.get('type', '')).endswith('BootMAE')


def _recipe(cfg: Config | None, meta: dict[str, Any]) -> list[str]:
    if cfg is None or 'train_dataloader' not in cfg:
        return ['Not stated in the checkpoint.']
    masking = cfg.train_dataloader.dataset.get('masking') or {}
    optimizer = cfg.optim_wrapper.optimizer
    counts = cfg.optim_wrapper.get('accumulative_counts', 1)
    branches = [key.removesuffix('_head') for key in cfg.model if key.endswith('_head') and cfg.model[key]]
    rows = {
        'epochs': f'{meta.get("epoch", "?")} of {cfg.train_cfg.get("max_epochs", "?")}',
        'iterations': f'{meta["iter"]:,}' if 'iter' in meta else '?',
        'batch': f'{cfg.train_dataloader.batch_size} images of a process'
        + (f' x {counts} accumulated' if counts > 1 else ''),
        'optimizer': f'{optimizer.type}, lr {optimizer.lr:.3g}, weight decay {optimizer.get("weight_decay", 0)}',
    }
    if _is_pretraining(cfg):
        rows['targets'] = ', '.join(branches)
        rows['masks'] = f'{masking.get("strategy", masking.get("type", "mix"))}, ratio {masking.get("ratio", 0.75)}'
        rows['started from'] = _public(cfg.init) if cfg.get('init') else 'random weights'
    return ['| | |', '|---|---|', *(f'| {key} | {value} |' for key, value in rows.items())]


def _results(checkpoint: Path) -> list[str]:
    """The last probes of the run, and its losses."""
    scalars = read_scalars(checkpoint.parent) if checkpoint.is_file() else []
    lines = []
    probes = [entry for entry in scalars if 'probe_knn' in entry]
    if probes:
        last = probes[-1]
        lines.append(
            f'Frozen features on labeled images of its own, after {last["step"]:,} iterations: kNN '
            f'{last["probe_knn"]:.1f} %, linear {last["probe_linear"]:.1f} %.'
        )
    losses = [entry for entry in scalars if 'loss' in entry]
    if losses:
        last = losses[-1]
        text = ', '.join(f'{key} {last[key]:.4f}' for key in last if key == 'loss' or key.endswith('_loss'))
        lines.append(f'Training losses at the end: {text}.')
    return lines or ['None were measured.']
