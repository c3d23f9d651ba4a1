"""The control of skd_r101_espnet_camvid: the same student without a teacher."""
_base_ = ['../_base_/segmentation.py', '../_base_/camvid_360.py', '../_base_/schedule_40k.py']
model = dict(
    type='TaskModel',
    network=dict(type='ESPNet', num_classes=11, decoder=False),
)
work_dir = 'work_dirs/alone_espnet_camvid'
