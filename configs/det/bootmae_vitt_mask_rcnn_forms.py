# Toy config for two CPU cores: ten forms of digits (make_digit_scenes.py --kind forms), from the demo's checkpoint.
_base_ = './bootmae_vitt_mask_rcnn_digits.py'
data_root = 'work_dirs/demo-transfer/forms'
# A form is 4 x 4 images of the demo, of 4 x 4 patches each, also for the position embedding.
model = dict(backbone=dict(pos_embed_tile=4))
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f'{data_root}/instances_validation.json')
test_evaluator = val_evaluator
# Two steps each.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=150, milestones=[100, 135], gamma=0.1),
]
train_cfg = dict(max_epochs=150, val_interval=150)
default_hooks = dict(checkpoint=dict(interval=150))
