"""The demonstration: the narrow network of demo_alone, taught by the wide one of demo_teacher."""
_base_ = ['../_base_/segmentation.py', '../_base_/camvid_demo.py', '../_base_/schedule_demo.py']
model = dict(
    type='Distiller',
    student=dict(type='SmallSegNet', num_classes=11, width=5),
    teacher=dict(type='SmallSegNet', num_classes=11, width=16, checkpoint='work_dirs/demo_teacher/student.pth',
                 prepare=dict(fold_batchnorm=True, channels_last=True)),
    transfers=dict(
        pixel=dict(on='logits', loss=dict(type='PixelWise', reduction='mean'), weight=3.0),
    ),
)
work_dir = 'work_dirs/demo_distilled'
