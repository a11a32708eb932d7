# Toy config: kNN probe on single digits cut out of scenes (tools/make_digit_scenes.py).
#   python tools/knn.py configs/cls/bootmae_vitt_digits_knn.py work_dirs/demo/epoch_90.pth
_base_ = './bootmae_vitb_knn.py'
data_root = 'work_dirs/demo-transfer-scenes/scenes'
img_size = 16
model = dict(
    data_preprocessor=dict(num_classes=10),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256),
        img_size=img_size,
        patch_size=4,
    ),
    head=dict(num_classes=10, in_channels=64),
)
pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=img_size), dict(type='PackInputs')]
train_dataloader = dict(
    num_workers=1, dataset=dict(data_root=data_root, data_prefix='digits/training', pipeline=pipeline)
)
val_dataloader = dict(
    num_workers=1, dataset=dict(data_root=data_root, data_prefix='digits/validation', pipeline=pipeline)
)
test_dataloader = val_dataloader
