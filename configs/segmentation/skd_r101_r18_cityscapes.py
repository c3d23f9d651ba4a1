"""Structured distillation (Liu et al., CVPR 2019) with its three terms: PSPNet-R101 to PSPNet-R18.

The pixel term is a sum over the batch as in the authors' code: at batch N its weight is 10 * 8 / N.
"""
_base_ = ['../_base_/segmentation.py', '../_base_/cityscapes_512.py',
          '../_base_/schedule_40k.py']
model = dict(
    type='Distiller',
    student=dict(type='PSPNet', backbone='resnet18', num_classes=19, pretrained=True),
    teacher=dict(type='PSPNet', backbone='resnet101', num_classes=19,
                 checkpoint='work_dirs/teacher_r101_cityscapes/student.pth'),
    transfers=dict(
        pixel=dict(on='logits', loss=dict(type='PixelWise'), weight=10.0),
        pair=dict(on='psp', loss=dict(type='PairWise', scale=0.5), weight=0.5),
        holistic=dict(on='logits', loss=dict(type='WGANGP', critic=dict(type='HolisticCritic')), weight=0.1),
    ),
)
optim_wrapper = dict(critic=dict(optimizer=dict(type='SGD', lr=4e-4, momentum=0.9, weight_decay=5e-4)))
work_dir = 'work_dirs/skd_r101_r18_cityscapes'
