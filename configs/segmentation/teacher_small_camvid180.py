"""CamVid on a CPU, the teacher: the small network with 24 channels."""
_base_ = ['../_base_/segmentation.py', '../_base_/camvid_180.py', '../_base_/schedule_camvid_180.py']
model = dict(type='TaskModel', network=dict(type='SmallSegNet', num_classes=11, width=24))
optim_wrapper = dict(optimizer=dict(lr=2e-3))
work_dir = 'work_dirs/teacher_small_camvid180'
