# Fine-tuning of the whole encoder: mean of the patch tokens after the last block -> LayerNorm -> linear.
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(num_classes=1000, mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
    backbone=dict(
        type='bootmae_mm.BootMAEViT',
        arch='b',
        drop_path_rate=0.1,
        out_type='avg_featmap',
        final_norm=False,
        # Another checkpoint: --cfg-options model.backbone.init_cfg.checkpoint=PATH
        # No checkpoint: --cfg-options model.backbone.init_cfg=None
        init_cfg=dict(type='Pretrained', checkpoint='work_dirs/bootmae_vitb/epoch_800.pth'),
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=768,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        # trunc_normal(0.02) * 0.001, as in the authors' code.
        init_cfg=dict(type='TruncNormal', layer='Linear', std=2e-5),
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
