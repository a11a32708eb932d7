# Staged bootstrapping (dBOT): a new student learns from the frozen teacher of a finished run, here of bootmae_vitb.
#   --cfg-options model.teacher.checkpoint=work_dirs/dbot_stage2/epoch_800.pth model.teacher.prefix=backbone.  (stage 3)
_base_ = '../bootmae_vitb.py'

model = dict(teacher=dict(checkpoint='work_dirs/bootmae_vitb/epoch_800.pth', prefix='teacher.'))
