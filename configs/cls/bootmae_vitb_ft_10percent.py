# Fine-tuning with 10 % of the labels; see bootmae_vitb_ft_1percent.py.
_base_ = './bootmae_vitb_ft_100e.py'
train_dataloader = dict(dataset=dict(label_share=0.1))
