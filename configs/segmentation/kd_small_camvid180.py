"""CamVid on a CPU: the small network with 8 channels, taught channel by channel by the one with 24."""
_base_ = ['../_base_/segmentation.py', '../_base_/camvid_180.py', '../_base_/schedule_camvid_180.py']
model = dict(
    type='Distiller',
    student=dict(type='SmallSegNet', num_classes=11, width=8),
    teacher=dict(type='SmallSegNet', num_classes=11, width=24,
                 checkpoint='work_dirs/teacher_small_camvid180/student.pth',
                 prepare=dict(fold_batchnorm=True, channels_last=True)),
    transfers=dict(
        channel=dict(on='logits', loss=dict(type='ChannelWise', temperature=1.0), weight=5.0),
    ),
)
work_dir = 'work_dirs/kd_small_camvid180'
