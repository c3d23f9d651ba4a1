"""The demonstration: three teachers from other sites, one of them harmful, weighed by the labelled identities."""
_base_ = ['../_base_/reid.py', '../_base_/reid_demo_target.py']
_teacher = dict(type='SmallReIDNet', num_classes=40, width_multiplier=1.5, prepare=dict(fold_batchnorm=True))
_run = 'work_dirs/reid_demo_teacher_'
model = dict(
    type='AdaptiveDistiller',
    student=dict(type='SmallReIDNet', num_classes=6, width_multiplier=0.5),
    teachers=dict(
        north=dict(checkpoint=_run + 'north/student.pth', **_teacher),
        south=dict(checkpoint=_run + 'south/student.pth', **_teacher),
        old=dict(checkpoint=_run + 'old/student.pth', **_teacher),
    ),
    aggregate='similarity',
    interval=4,
    begin='epoch 4',
    weight_lr=100.0,
    risk='contrastive',
    transfers=dict(
        similarity=dict(
            student='features',
            teacher=['north.features', 'south.features', 'old.features'],
            loss=dict(type='LogEuclidean', eps=0.1),
            weight=1.0,
        ),
    ),
)
work_dir = 'work_dirs/reid_demo_adaptive'
