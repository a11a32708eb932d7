# Target: the mean of the teacher's last 4 of 6 blocks.
_base_ = './full.py'

model = dict(feature_head=dict(target=dict(type='bootmae_mm.TeacherTarget', top_k=4)))
