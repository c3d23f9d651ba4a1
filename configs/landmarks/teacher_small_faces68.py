"""The larger teacher, on the labelled part of the faces alone: half of the steps."""
_base_ = '../_base_/faces68.py'
model = dict(type='TaskModel', network=dict(type='SmallLandmarkNet', points=68, width=32))
train_dataloader = dict(dataset=dict(keep_unlabelled=False))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, begin=0, end=50, by_epoch=False),
    dict(type='CosineAnnealingLR', begin=50, end=2000, T_max=1950, eta_min=1e-5, by_epoch=False),
]
train_cfg = dict(max_epochs=40)
work_dir = 'work_dirs/teacher_small_faces68'
