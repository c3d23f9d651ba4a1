"""Structured distillation on CamVid: PSPNet-R101 to ESPNet-C."""
_base_ = ['../_base_/segmentation.py', '../_base_/camvid_360.py', '../_base_/schedule_40k.py']
model = dict(
    type='Distiller',
    student=dict(type='ESPNet', num_classes=11, decoder=False),
    teacher=dict(type='PSPNet', backbone='resnet101', num_classes=11,
                 checkpoint='work_dirs/teacher_r101_camvid/student.pth'),
    transfers=dict(
        pixel=dict(on='logits', loss=dict(type='PixelWise'), weight=10.0),
        pair=dict(student='join3', teacher='psp', loss=dict(type='PairWise', scale=0.5), weight=0.5),
        holistic=dict(on='logits', loss=dict(type='WGANGP', critic=dict(type='HolisticCritic')), weight=0.1),
    ),
)
optim_wrapper = dict(critic=dict(optimizer=dict(type='SGD', lr=4e-4, momentum=0.9, weight_decay=5e-4)))
work_dir = 'work_dirs/skd_r101_espnet_camvid'
