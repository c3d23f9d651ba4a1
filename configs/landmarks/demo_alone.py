"""The control of the demonstration: the small student on the labelled part of the faces alone."""
_base_ = '../_base_/landmarks_demo.py'
model = dict(type='TaskModel', network=dict(type='SmallLandmarkNet', points=68, width=16))
train_dataloader = dict(dataset=dict(keep_unlabelled=False))
work_dir = 'work_dirs/landmarks_demo_alone'
