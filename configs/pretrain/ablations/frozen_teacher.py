# The paper's first experiment: features of a pretrained MAE as the target, instead of a momentum encoder.
#   --cfg-options model.teacher.checkpoint=mae_vitb.pth
# The checkpoint may be one of mmpretrain's MAE, of plain_mae.py, or of BootMAE.
_base_ = '../bootmae_vitb.py'

model = dict(teacher=dict(checkpoint='checkpoints/mae_vitb.pth', prefix='backbone.'))
