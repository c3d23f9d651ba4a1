"""The student of FPD (Zhang et al., CVPR 2019) on 300-W, a hourglass of 128 channels, without a teacher."""
_base_ = ['../_base_/landmarks.py', '../_base_/300w.py', '../_base_/schedule_landmarks.py']
model = dict(type='TaskModel', network=dict(type='Hourglass', points=68, stacks=4, channels=128))
work_dir = 'work_dirs/alone_hg4_light_300w'
