# Meant to save time, not run yet: two masks of an image for one pass of the teacher, a narrow decoder of features,
# masks on the patches that are predicted to be hard.
_base_ = './hpm.py'

masking = dict(per_image=2)
model = dict(neck=dict(feature=dict(width=64)))
train_dataloader = dict(batch_size=64)
