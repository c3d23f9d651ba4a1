"""Adaptive aggregation (Wu et al., CVPR 2019): teachers from four other data sets to MobileNetV2 on Market-1501.

Ten labelled identities weigh the teachers. Of the paper's training only the setting is known: the schedule is the usual
one, and how the teachers are weighed is what served in the demonstration. Not trained yet.
"""
_base_ = ['../_base_/reid.py', '../_base_/market1501_few.py', '../_base_/schedule_reid.py']
_teacher = dict(type='ReIDNetwork', backbone='resnet50', prepare=dict(fold_batchnorm=True, channels_last=True))
_run = 'work_dirs/teacher_r50_'
model = dict(
    type='AdaptiveDistiller',
    student=dict(type='ReIDNetwork', backbone='mobilenet_v2', num_classes=10, pretrained=True),
    teachers=dict(
        msmt17=dict(num_classes=1041, checkpoint=_run + 'msmt17/student.pth', **_teacher),
        cuhk03=dict(num_classes=767, checkpoint=_run + 'cuhk03/student.pth', **_teacher),
        viper=dict(num_classes=316, checkpoint=_run + 'viper/student.pth', **_teacher),
        dukemtmcreid=dict(num_classes=702, checkpoint=_run + 'dukemtmcreid/student.pth', **_teacher),
    ),
    aggregate='similarity',
    interval=5,
    begin='epoch 5',
    weight_lr=100.0,
    risk='contrastive',
    transfers=dict(
        similarity=dict(
            student='features',
            teacher=['msmt17.features', 'cuhk03.features', 'viper.features', 'dukemtmcreid.features'],
            loss=dict(type='LogEuclidean', eps=0.1),
            weight=0.5,
        ),
    ),
)
work_dir = 'work_dirs/adaptive_sources_mbv2_market1501'
