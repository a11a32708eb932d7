# The paper's first experiment: features of a pretrained MAE as the target, instead of a momentum encoder.
#   --cfg-options model.teacher.checkpoint=mae_vitb.pth
# A checkpoint of mmpretrain's MAE, of plain_mae.py beside this file, or of BootMAE.
_base_ = '../bootmae_vitb.py'

model = dict(teacher=dict(checkpoint='checkpoints/mae_vitb.pth', prefix='backbone.'))
