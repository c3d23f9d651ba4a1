"""The larger teacher, on the labelled part of the faces alone."""
_base_ = '../_base_/faces68.py'
model = dict(type='TaskModel', network=dict(type='SmallLandmarkNet', points=68, width=32))
train_dataloader = dict(dataset=dict(keep_unlabelled=False))
work_dir = 'work_dirs/teacher_small_faces68'
