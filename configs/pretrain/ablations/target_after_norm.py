# Target: the teacher's features after its final norm.
_base_ = '../bootmae_vitb.py'

model = dict(teacher_norm=True)
