"""The control of the demonstration: the small network, narrow, without a teacher."""
_base_ = ['../_base_/segmentation.py', '../_base_/camvid_demo.py', '../_base_/schedule_demo.py']
model = dict(type='TaskModel', network=dict(type='SmallSegNet', num_classes=11, width=8))
work_dir = 'work_dirs/demo_alone'
