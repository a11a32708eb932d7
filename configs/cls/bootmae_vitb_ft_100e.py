# Fine-tuning of ViT-B/16 on ImageNet-1K. Reported by the paper: 84.2 top-1.
#   tools/dist_train.sh configs/cls/bootmae_vitb_ft_100e.py 8
_base_ = [
    '../_base_/models/classifier_vitb.py',
    '../_base_/datasets/imagenet_cls.py',
    '../_base_/schedules/finetune_100e.py',
    '../_base_/runtime/cls.py',
]
img_size = {{_base_.img_size}}
model = dict(backbone=dict(img_size=img_size))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=img_size, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5),
    # timm's rand-m9-mstd0.5-inc1, which fills with round(127.5) = 128.
    dict(
        type='RandAugment',
        policies='timm_increasing',
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(pad_val=[128, 128, 128], interpolation='bicubic'),
    ),
    # Fills with N(0, 1), on the scale of normalized images.
    dict(type='bootmae_mm.RandomErasing', erase_prob=0.25, min_area_ratio=0.02, max_area_ratio=1 / 3),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
