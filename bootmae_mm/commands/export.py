"""Export an encoder to timm, Hugging Face's transformers, mmpretrain or ONNX.

The encoder is pretrained, or fine-tuned for classification (without its head; not for hf, which has another norm).

  timm        a folder for timm.create_model('local-dir:FOLDER')
  hf          a folder for transformers.ViTModel.from_pretrained(FOLDER, add_pooling_layer=False)
  mmpretrain  a checkpoint for init_cfg=dict(type='Pretrained', checkpoint=..., prefix='backbone.') of VisionTransformer
  onnx        a file: images (batch, 3, H, W), normalized -> tokens (batch, 1 + L, D)

All of them include mean and std, size and interpolation of the run. --push also writes a model card (README.md: how to
load it, images, recipe, results, license) and uploads the folder to the Hugging Face hub; try --dry-run first.

Examples:
    bootmae export work_dirs/bootmae_vitb/epoch_800.pth --to hf --out exports/bootmae_vitb
    bootmae export run --to timm --push ORG/NAME --license apache-2.0 --about '12,000 photographs of birds.' --dry-run
    bootmae export checkpoint-799.pth --config configs/pretrain/bootmae_vitb.py --to timm
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import errors_in_one_line, trust_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument('checkpoint', help='path or URL of the checkpoint, or the folder of a run')
    parser.add_argument('--to', choices=['timm', 'hf', 'mmpretrain', 'onnx'], required=True, help='what to write')
    parser.add_argument('--out', help='folder to write to (default: NAME_TO beside the checkpoint, or here for a URL)')
    parser.add_argument('--config', help='config of the encoder; needed if the checkpoint holds none')
    parser.add_argument('--prefix', help="prefix of the encoder's keys: backbone. (default) or teacher.")
    parser.add_argument(
        '--push', metavar='ORG/NAME', help='write a model card, and upload to the Hugging Face hub (timm, hf)'
    )
    parser.add_argument('--license', help='license of the weights, for the model card, such as apache-2.0')
    parser.add_argument('--about', help='what the images are, for the model card')
    parser.add_argument('--private', action='store_true', help='make a new model on the hub private')
    parser.add_argument('--dry-run', action='store_true', help='with --push: write everything, upload nothing')
    trust_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from bootmae_mm.engine.recovery import checkpoint_in
    from bootmae_mm.export.exporting import export, read_encoder
    from bootmae_mm.export.hub import model_card, push
    from bootmae_mm.export.preprocessing import read_preprocessing

    with errors_in_one_line():
        args.checkpoint = checkpoint_in(args.checkpoint)
    path = Path(args.checkpoint)
    beside = Path() if '://' in args.checkpoint else path.parent
    out = args.out or beside / f'{path.stem}_{args.to}'
    try:
        with errors_in_one_line():
            encoder = read_encoder(args.checkpoint, args.config, args.prefix)
            channels = encoder.patch_embed.projection.in_channels
            preprocessing = read_preprocessing(args.checkpoint, args.config, channels)
            card = None
            if args.push:
                given = (args.push, args.to, args.checkpoint, encoder, preprocessing)
                card = model_card(*given, license=args.license, about=args.about)
            written = export(encoder, args.to, out, path.name, preprocessing)
            if card is not None:
                (Path(out) / 'README.md').write_text(card, encoding='utf-8')
            url = push(out, args.push, args.private) if args.push and not args.dry_run else None
    except ImportError as error:
        raise SystemExit(f'error: {error.name} is needed for --to {args.to}: pip install {error.name}') from error
    arch = encoder.arch_settings
    print(f'{arch["num_layers"]} blocks, {arch["embed_dims"]} wide, images of {encoder.img_size} -> {written}')
    if card is not None:
        print(f'model card: {Path(out) / "README.md"}' + (f'; uploaded: {url}' if url else '; nothing was uploaded'))
