# UperNet with ViT-L/16 on ADE20K, tested at six scales and flipped.
_base_ = './bootmae_vitl_upernet_ade20k.py'
test_dataloader = dict(dataset=dict(pipeline={{_base_.ms_flip_pipeline}}))
custom_hooks = [dict(type='PrepareTTAHook', tta_cfg=dict(type='SegTTAModel'))]
