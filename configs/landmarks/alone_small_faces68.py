"""The control: the small network on the labelled part of the faces alone."""
_base_ = '../_base_/faces68.py'
model = dict(type='TaskModel', network=dict(type='SmallLandmarkNet', points=68, width=16))
train_dataloader = dict(dataset=dict(keep_unlabelled=False))
work_dir = 'work_dirs/alone_small_faces68'
