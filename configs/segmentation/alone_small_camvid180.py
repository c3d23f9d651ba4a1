"""CamVid on a CPU, the control: the small network with 8 channels, without a teacher."""
_base_ = ['../_base_/segmentation.py', '../_base_/camvid_180.py', '../_base_/schedule_camvid_180.py']
model = dict(type='TaskModel', network=dict(type='SmallSegNet', num_classes=11, width=8))
work_dir = 'work_dirs/alone_small_camvid180'
