"""A network of 24 channels to one of 8, on digits: soft targets, and a hint at the third stage."""

_base_ = ['../_base_/runtime.py', '../_base_/classification_digits.py']

_teacher = 'work_dirs/classification/teacher_digits/student.pth'
model = dict(
    type='Distiller',
    student=dict(type='SmallClassifier', width=8, num_classes=10),
    teacher=dict(type='SmallClassifier', width=24, num_classes=10, checkpoint=_teacher),
    transfers=dict(
        soft=dict(on='logits', loss=dict(type='SoftTargets', temperature=4.0), weight=1.0),
        hint=dict(on='layer3', connector='conv1x1', loss=dict(type='Hint'), weight=1.0),
    ),
)
work_dir = 'work_dirs/classification/kd_digits'
