"""The control of the demonstration: the narrow network on the labelled identities of the target, without a teacher."""
_base_ = ['../_base_/reid.py', '../_base_/reid_demo_target.py']
model = dict(type='TaskModel', network=dict(type='SmallReIDNet', num_classes=6, width_multiplier=0.5))
work_dir = 'work_dirs/reid_demo_alone'
