# Your own images, with maps of class ids in which 0 is a class (background):
#   images/training/a.jpg, annotations/training/a.png, and the same below validation/
#   tools/dist_train.sh configs/seg/bootmae_vitb_upernet_folder.py 8 --cfg-options data_root=/your/data
# Set the classes in metainfo and num_classes, other suffixes in img_suffix and seg_map_suffix. Ids of 255 are ignored.
_base_ = './bootmae_vitb_upernet_ade20k.py'
data_root = 'data/own'
metainfo = dict(classes=('background', 'object'), palette=[[40, 40, 40], [230, 25, 75]])
num_classes = 2

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=False),
    dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size={{_base_.crop_size}}, cat_max_ratio=0.99),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    dict(type='LoadAnnotations', reduce_zero_label=False),
    dict(type='PackSegInputs'),
]
dataset = dict(
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=metainfo,
    img_suffix='.jpg',
    seg_map_suffix='.png',
    reduce_zero_label=False,
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline, **dataset))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader

model = dict(decode_head=dict(num_classes=num_classes), auxiliary_head=dict(num_classes=num_classes))
