"""Convolutional pose machine on VGG-16, on 300-W, as in SBR (Dong et al., CVPR 2018)."""
_base_ = ['../_base_/landmarks_sbr.py', '../_base_/300w.py', '../_base_/schedule_landmarks_sbr.py']
model = dict(type='TaskModel', network=dict(type='CPM', points=68, pretrained=True))
train_dataloader = dict(batch_size=8)
work_dir = 'work_dirs/alone_cpm_300w'
