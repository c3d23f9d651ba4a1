"""CamVid on a CPU, the teacher: the small network with 24 channels."""
_base_ = ['../_base_/segmentation.py', '../_base_/camvid_180.py', '../_base_/schedule_camvid_180.py']
_epochs = 40
model = dict(type='TaskModel', network=dict(type='SmallSegNet', num_classes=11, width=24))
optim_wrapper = dict(optimizer=dict(lr=3e-3))
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=_epochs, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=_epochs, val_interval=_epochs)
work_dir = 'work_dirs/teacher_small_camvid180'
