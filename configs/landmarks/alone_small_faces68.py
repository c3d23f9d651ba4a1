"""The control: the small ResNet on the labelled part of the faces alone."""
_base_ = '../_base_/faces68.py'
model = dict(type='TaskModel', network=dict(type='HeatmapNet', backbone='resnet18', points=68, width=0.25, channels=32))
train_dataloader = dict(dataset=dict(keep_unlabelled=False))
work_dir = 'work_dirs/alone_small_faces68'
