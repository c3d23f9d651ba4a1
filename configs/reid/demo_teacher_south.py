"""A teacher of the demonstration: the wide network, trained on the source 'south'."""
_base_ = ['../_base_/reid.py', '../_base_/reid_demo_source.py']
_root = 'datasets/market1501_twin/south'
model = dict(type='TaskModel', network=dict(type='SmallReIDNet', num_classes=40, width_multiplier=1.5))
train_dataloader = dict(dataset=dict(data_root=_root))
test_dataloader = dict(dataset=dict(data_root=_root))
work_dir = 'work_dirs/reid_demo_teacher_south'
