"""The demonstration: the narrow network of demo_alone, taught by the wide one of demo_teacher."""
_base_ = ['../_base_/segmentation.py', '../_base_/camvid_demo.py', '../_base_/schedule_demo.py']
model = dict(
    type='Distiller',
    student=dict(type='SmallSegNet', num_classes=11, width=8),
    teacher=dict(type='SmallSegNet', num_classes=11, width=24, checkpoint='work_dirs/demo_teacher/student.pth',
                 prepare=dict(fold_batchnorm=True, channels_last=True)),
    transfers=dict(
        channel=dict(on='logits', loss=dict(type='ChannelWise', temperature=1.0), weight=5.0),
    ),
)
work_dir = 'work_dirs/demo_distilled'
