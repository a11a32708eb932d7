# MAE in the same code: pixels only, random masks, no injection, equal weights, a decoder of 8 blocks with 16 heads, and
# targets normalized across channels. Unlike in MAE, visible tokens get no second position embedding in the decoder.
_base_ = './no_feature.py'

model = dict(
    neck=dict(pixel=dict(width=512, depth=8, num_heads=16, context_block=None)),
    pixel_head=dict(normalize='patch'),
    weight_mask=False,
)

train_dataloader = dict(dataset=dict(masking=dict(strategy='random')))
