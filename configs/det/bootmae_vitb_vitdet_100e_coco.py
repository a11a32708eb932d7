# Mask R-CNN with ViT-B/16 on COCO as in ViTDet (arXiv 2203.16527): 1024 px with large-scale jitter, windows of 14 with
# four global blocks, simple feature pyramid, LayerNorm in the heads, 100 epochs. Reported there for MAE: 51.6 box AP,
# 45.7 mask AP (with relative position embeddings, which are off here).
_base_ = [
    '../_base_/models/mask_rcnn_vitb.py',
    '../_base_/datasets/coco_lsj1024.py',
    '../_base_/schedules/vitdet_100e.py',
    '../_base_/runtime/det.py',
]
norm_cfg = dict(type='mmpretrain.LN2d', eps=1e-6)
model = dict(
    backbone=dict(out_indices=-1, with_cls_token=False, window_size=14, global_blocks=(2, 5, 8, 11)),
    neck=dict(_delete_=True, type='bootmae_mm.SimpleFeaturePyramid', in_channels=768, out_channels=256, num_outs=5),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg),
    ),
)
