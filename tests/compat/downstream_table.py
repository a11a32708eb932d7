"""Which models of mmdet and mmseg take BootMAEViT as backbone: a loss step of each, as tables in docs/openmmlab.md.

Write the tables:
    python -m tests.compat.downstream_table
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mmengine import Config
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData
from torch import nn

import bootmae_mm  # noqa: F401  its registry, and operators of mmcv

PAGE = Path(__file__).resolve().parents[2] / 'docs/openmmlab.md'
START, END = '<!-- written by tests/compat/downstream_table.py -->', '<!-- end -->'
WIDTH, PATCH = 24, 16
SIZE = (96, 128)  # of the images, in pixels

LAST, BLOCKS, TOKENS = 'last map', 'four maps', 'four maps with class tokens'  # what the backbone returns


@dataclass(frozen=True)
class Case:
    """A model of a library.

    Args:
        name: Name in the table.
        config: Config that comes with the library.
        changes: Keys of the model to replace besides the backbone, with their values.
        output: What the backbone returns.
        smaller: Keys changed only because the images are tiny.
    """

    name: str
    config: str
    changes: dict
    output: str = LAST
    smaller: dict = field(default_factory=dict)


def pyramid(finest: int, levels: int, channels: int = 256) -> dict:
    """A neck that gives ``levels`` maps, the finest with the stride ``finest``."""
    scales = [scale for scale in (4, 2, 1, 0.5) if PATCH / scale >= finest][:levels]
    options = dict(in_channels=WIDTH, out_channels=channels, scales=scales, num_outs=levels)
    return dict(neck=dict(type='bootmae_mm.SimpleFeaturePyramid', **options))


FROM_4, FROM_8 = pyramid(4, 5), pyramid(8, 5)
FOUR = pyramid(4, 4)  # strides of a convolutional network's stages: 4, 8, 16, 32
CHANNELS = [256] * 4
ONE_MAP = {'neck.in_channels': [WIDTH]}
HEADS = {'decode_head.in_channels': WIDTH, 'auxiliary_head.in_channels': WIDTH}
SETR_HEADS = ('decode_head', 'auxiliary_head.0', 'auxiliary_head.1', 'auxiliary_head.2')

CASES = {
    'mmdet': [
        Case('Faster R-CNN', 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco', FROM_4),
        Case('Mask R-CNN', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco', FROM_4),
        Case('Cascade Mask R-CNN', 'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco', FROM_4),
        Case('PointRend', 'point_rend/point-rend_r50-caffe_fpn_ms-1x_coco', FROM_4),
        Case('Sparse R-CNN', 'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco', FOUR),
        Case('QueryInst', 'queryinst/queryinst_r50_fpn_1x_coco', FOUR),
        Case('RetinaNet', 'retinanet/retinanet_r50_fpn_1x_coco', FROM_8),
        Case('FCOS', 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco', FROM_8),
        Case('ATSS', 'atss/atss_r50_fpn_1x_coco', FROM_8),
        Case('GFL', 'gfl/gfl_r50_fpn_1x_coco', FROM_8),
        Case('PAA', 'paa/paa_r50_fpn_1x_coco', FROM_8),
        Case('TOOD', 'tood/tood_r50_fpn_1x_coco', FROM_8),
        Case('VFNet', 'vfnet/vfnet_r50_fpn_1x_coco', FROM_8),
        Case('CondInst', 'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance', FROM_8),
        Case('SOLOv2', 'solov2/solov2_r50_fpn_1x_coco', FROM_4),
        Case('YOLOX', 'yolox/yolox_s_8xb8-300e_coco', pyramid(8, 3, channels=128)),
        Case('RTMDet', 'rtmdet/rtmdet_s_8xb32-300e_coco', pyramid(8, 3, channels=128)),
        Case(
            'YOLOF',
            'yolof/yolof_r50-c5_8xb8-1x_coco',
            {'neck.in_channels': WIDTH, 'bbox_head.anchor_generator.strides': [PATCH]},
        ),
        Case('DETR', 'detr/detr_r50_8xb2-150e_coco', ONE_MAP),
        Case('Conditional DETR', 'conditional_detr/conditional-detr_r50_8xb2-50e_coco', ONE_MAP),
        Case('DAB-DETR', 'dab_detr/dab-detr_r50_8xb2-50e_coco', ONE_MAP),
        Case('Deformable DETR', 'deformable_detr/deformable-detr_r50_16xb2-50e_coco', pyramid(8, 4)),
        Case('DINO', 'dino/dino-4scale_r50_8xb2-12e_coco', pyramid(8, 4), smaller=dict(num_queries=100)),
        Case('DDQ DETR', 'ddq/ddq-detr-4scale_r50_8xb2-12e_coco', pyramid(8, 4), smaller=dict(num_queries=100)),
        Case(
            'MaskFormer',
            'maskformer/maskformer_r50_ms-16xb1-75e_coco',
            FOUR | {'panoptic_head.in_channels': CHANNELS},
        ),
        Case(
            'Mask2Former',
            'mask2former/mask2former_r50_8xb2-lsj-50e_coco',
            FOUR | {'panoptic_head.in_channels': CHANNELS},
        ),
    ],
    'mmseg': [
        Case(
            'UPerNet',
            'upernet/upernet_r50_4xb4-160k_ade20k-512x512',
            FOUR | {'decode_head.in_channels': CHANNELS, 'auxiliary_head.in_channels': 256},
        ),
        Case('FCN', 'fcn/fcn_r50-d8_4xb4-160k_ade20k-512x512', HEADS, BLOCKS),
        Case('PSPNet', 'pspnet/pspnet_r50-d8_4xb4-160k_ade20k-512x512', HEADS, BLOCKS),
        Case('DeepLabV3', 'deeplabv3/deeplabv3_r50-d8_4xb4-160k_ade20k-512x512', HEADS, BLOCKS),
        Case(
            'DeepLabV3+',
            'deeplabv3plus/deeplabv3plus_r50-d8_4xb4-160k_ade20k-512x512',
            HEADS | {'decode_head.c1_in_channels': WIDTH},
            BLOCKS,
        ),
        Case('CCNet', 'ccnet/ccnet_r50-d8_4xb4-160k_ade20k-512x512', HEADS, BLOCKS),
        Case('DANet', 'danet/danet_r50-d8_4xb4-160k_ade20k-512x512', HEADS, BLOCKS),
        Case('PSANet', 'psanet/psanet_r50-d8_4xb4-160k_ade20k-512x512', HEADS, BLOCKS),
        Case(
            'OCRNet',
            'ocrnet/ocrnet_r101-d8_8xb2-40k_cityscapes-512x1024',
            {'decode_head.0.in_channels': WIDTH, 'decode_head.1.in_channels': WIDTH},
            BLOCKS,
        ),
        Case('Semantic FPN', 'sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512', FOUR),
        Case('PointRend', 'point_rend/pointrend_r50_4xb4-160k_ade20k-512x512', FOUR),
        Case(
            'SegFormer',
            'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512',
            FOUR | {'decode_head.in_channels': CHANNELS},
        ),
        Case(
            'Segmenter', 'segmenter/segmenter_vit-b_mask_8xb1-160k_ade20k-512x512', {'decode_head.in_channels': WIDTH}
        ),
        Case(
            'SETR naive',
            'setr/setr_vit-l_naive_8xb2-160k_ade20k-512x512',
            {f'{head}.in_channels': WIDTH for head in SETR_HEADS},
            BLOCKS,
        ),
        Case(
            'SETR PUP',
            'setr/setr_vit-l_pup_8xb2-160k_ade20k-512x512',
            {f'{head}.in_channels': WIDTH for head in SETR_HEADS},
            BLOCKS,
        ),
        Case('SETR MLA', 'setr/setr_vit-l_mla_8xb2-160k_ade20k-512x512', {'neck.in_channels': [WIDTH] * 4}, BLOCKS),
        Case(
            'DPT',
            'dpt/dpt_vit-b16_8xb2-160k_ade20k-512x512',
            {'decode_head.in_channels': [WIDTH] * 4, 'decode_head.embed_dims': WIDTH},
            TOKENS,
        ),
        Case(
            'K-Net',
            'knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512',
            {'decode_head.kernel_generate_head.in_channels': WIDTH, 'auxiliary_head.in_channels': WIDTH},
            BLOCKS,
        ),
        Case(
            'MaskFormer',
            'maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512',
            FOUR | {'decode_head.in_channels': CHANNELS},
        ),
        Case(
            'Mask2Former',
            'mask2former/mask2former_r50_8xb2-160k_ade20k-512x512',
            FOUR | {'decode_head.in_channels': CHANNELS},
        ),
    ],
}


def read(library: str, case: Case) -> Config:
    """The packaged config, its model changed to a tiny BootMAEViT."""
    folder = Path(importlib.import_module(library).__file__).parent
    cfg = Config.fromfile(folder / f'.mim/configs/{case.config}.py')
    cfg.model.pop('pretrained', None)  # weights of the replaced backbone
    cfg.model.backbone = ConfigDict(
        type='bootmae_mm.BootMAEViT',
        arch=dict(embed_dims=WIDTH, num_layers=4, num_heads=3, feedforward_channels=2 * WIDTH),
        img_size=SIZE,
        patch_size=PATCH,
        out_type='featmap_cls_token' if case.output == TOKENS else 'featmap',
        out_indices=-1 if case.output == LAST else (0, 1, 2, 3),
    )
    for key, value in copy.deepcopy(case.changes | case.smaller).items():
        node, (*parents, name) = cfg.model, key.split('.')
        for parent in parents:
            node = node[int(parent) if isinstance(node, list) else parent]
        assert name in node or name == 'neck', f'{case.config} has no {key}'
        node[name] = value
    return cfg


def detection_sample(with_masks: bool) -> object:
    """Two objects in an image."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    info = dict(img_shape=SIZE, ori_shape=SIZE, pad_shape=SIZE, batch_input_shape=SIZE, scale_factor=(1.0, 1.0))
    sample = DetDataSample(metainfo=info)
    boxes = torch.tensor([[10.0, 10, 60, 50], [70, 40, 120, 90]])
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1, 2]))
    if with_masks:
        masks = torch.zeros(2, *SIZE, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        sample.gt_instances.masks = BitmapMasks(masks.numpy(), *SIZE)
        sample.gt_sem_seg = PixelData(sem_seg=masks.max(dim=0, keepdim=True).values)  # for panoptic models
    return sample


def segmentation_sample() -> object:
    """An image whose pixels have random classes."""
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo=dict(img_shape=SIZE, ori_shape=SIZE, pad_shape=SIZE))
    sample.gt_sem_seg = PixelData(data=torch.randint(0, 19, (1, *SIZE)))
    return sample


def samples_of(library: str, cfg: Config) -> list:
    """Labels of a batch: what the config's pipeline loads."""
    if library == 'mmseg':
        return [segmentation_sample(), segmentation_sample()]  # two: batch norm after global pooling needs them
    return [detection_sample(any(step.get('with_mask') for step in cfg.train_pipeline))]


def build(library: str, cfg: Config) -> nn.Module:
    """Build and initialize the model."""
    for name in {library, 'mmdet'}:  # mmseg's MaskFormer, Mask2Former and K-Net use parts of mmdet
        importlib.import_module(f'{name}.models')
    model = importlib.import_module(f'{library}.registry').MODELS.build(cfg.model)
    model.init_weights()
    return revert_sync_batchnorm(model)


def run_step(library: str, case: Case) -> None:
    """Run a loss step of a model with its backward pass.

    Raises:
        AssertionError: If a loss is not finite, or the backbone gets no gradient.
        Exception: Whatever the model raises.
    """
    torch.manual_seed(0)
    cfg = read(library, case)
    with DefaultScope.overwrite_default_scope(library):
        model = build(library, cfg)
        samples = samples_of(library, cfg)
        total, log = model.parse_losses(model(torch.randn(len(samples), 3, *SIZE), samples, mode='loss'))
        total.backward()
    check(log, model.backbone.patch_embed.projection.weight.grad)


def check(losses: Mapping[str, torch.Tensor], gradient: torch.Tensor | None) -> None:
    """Check the losses of a step, and the gradient of the patch embedding.

    Raises:
        AssertionError: If a loss is not finite, or there is no gradient.
    """
    infinite = [name for name, value in losses.items() if not value.isfinite()]
    assert not infinite, f'not finite: {", ".join(infinite)}'
    assert gradient is not None and gradient.isfinite().all(), 'the backbone has no finite gradient'
    assert gradient.abs().max() > 0, 'the gradient of the backbone is zero'


def outcome(library: str, case: Case) -> str:
    """The cell of the table: ``yes``, or ``no`` with the reason in one line."""
    try:
        run_step(library, case)
    except Exception as error:  # noqa: BLE001  any failure is a result
        reason = (str(error).splitlines() or [''])[0].split(', which are not installed')[0]
        kind = '' if isinstance(error, NotImplementedError) else f'{type(error).__name__}: '
        return f'no: {kind}{reason}'
    return 'yes'


def table(library: str, outcomes: Mapping[str, str]) -> str:
    """The table of a library, from the outcome of each of its cases by name."""
    cases = CASES[library]
    count = sum(outcomes[case.name] == 'yes' for case in cases)
    lines = [
        f'{library}: {count} of {len(cases)}.',
        '',
        f'| model | config of {library} | backbone returns | replaced besides the backbone | loss step |',
        '|---|---|---|---|---|',
    ]
    for case in cases:
        keys = ', '.join(f'`{key}`' for key in case.changes)
        lines.append(f'| {case.name} | `{case.config}` | {case.output} | {keys} | {outcomes[case.name]} |')
    return '\n'.join(lines)


def section(outcomes: Mapping[str, Mapping[str, str]]) -> str:
    """Both tables."""
    return '\n\n'.join(table(library, outcomes[library]) for library in CASES)


def written() -> str:
    """Both tables as they are in the documentation."""
    return PAGE.read_text().split(START)[1].split(END)[0].strip('\n')


def write(outcomes: Mapping[str, Mapping[str, str]]) -> None:
    """Write both tables into the documentation."""
    before, rest = PAGE.read_text().split(START)
    PAGE.write_text(f'{before}{START}\n\n{section(outcomes)}\n\n{END}{rest.split(END)[1]}')


def written_outcomes() -> dict[str, dict[str, str]]:
    """Outcomes in the documentation, by library and name."""
    found = {}
    for library, text in zip(CASES, written().split('\n\nmmseg: '), strict=True):
        rows = [line.strip('| ').split(' | ') for line in text.splitlines() if line.startswith('| ')]
        found[library] = {row[0]: row[-1] for row in rows[1:]}
    return found


def main() -> None:
    """Run every case, and write the tables."""
    MMLogger.get_instance('downstream_table', log_level='ERROR')  # init_weights logs every parameter
    outcomes: dict[str, dict[str, str]] = {}
    for library, cases in CASES.items():
        outcomes[library] = {}
        for case in cases:
            outcomes[library][case.name] = outcome(library, case)
            sys.stdout.write(f'{library} {case.name}: {outcomes[library][case.name]}\n')
            sys.stdout.flush()
    write(outcomes)


if __name__ == '__main__':
    main()
