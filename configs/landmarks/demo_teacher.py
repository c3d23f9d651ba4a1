"""The teacher of the demonstration: a larger network on the labelled part of the faces."""
_base_ = '../_base_/landmarks_demo.py'
model = dict(type='TaskModel', network=dict(type='SmallLandmarkNet', points=68, width=32))
train_dataloader = dict(dataset=dict(keep_unlabelled=False))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, begin=0, end=20, by_epoch=False),
    dict(type='CosineAnnealingLR', begin=20, end=500, T_max=480, eta_min=1e-5, by_epoch=False),
]
train_cfg = dict(max_epochs=25)
work_dir = 'work_dirs/landmarks_demo_teacher'
