"""The teacher of the demonstration: a larger network on the labelled part of the faces."""
_base_ = '../_base_/landmarks_demo.py'
model = dict(type='TaskModel', network=dict(type='SmallLandmarkNet', points=68, width=32))
train_dataloader = dict(dataset=dict(keep_unlabelled=False))
work_dir = 'work_dirs/landmarks_demo_teacher'
