"""ResNet-34 to ResNet-18: soft targets, and a hint at the third stage through a 1x1 convolution."""

_base_ = ['../_base_/runtime.py', '../_base_/classification_imagefolder.py']

_teacher = 'work_dirs/classification/teacher_r34_imagefolder/student.pth'
model = dict(
    type='Distiller',
    student=dict(type='TorchvisionClassifier', architecture='resnet18', num_classes=1000),
    teacher=dict(type='TorchvisionClassifier', architecture='resnet34', num_classes=1000, checkpoint=_teacher),
    transfers=dict(
        soft=dict(on='logits', loss=dict(type='SoftTargets', temperature=4.0), weight=0.9),
        hint=dict(on='layer3', connector='conv1x1', loss=dict(type='Hint'), weight=1.0),
    ),
)
work_dir = 'work_dirs/classification/kd_r34_r18_imagefolder'
