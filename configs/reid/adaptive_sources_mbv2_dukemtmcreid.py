"""Adaptive aggregation (Wu et al., CVPR 2019): teachers from four other data sets to MobileNetV2 on DukeMTMC-reID.

Ten labelled identities weigh the teachers. Of the paper's training only the setting is known: rates, epochs, batch and
the weight of the transfer, 1 / 48 for 48 unlabelled pictures, are choices; the schedule is the usual one.
"""
_base_ = ['../_base_/reid.py', '../_base_/dukemtmcreid_few.py', '../_base_/schedule_reid.py']
_teacher = dict(type='ReIDNetwork', backbone='resnet50', prepare=dict(fold_batchnorm=True, channels_last=True))
_run = 'work_dirs/teacher_r50_'
model = dict(
    type='AdaptiveDistiller',
    student=dict(type='ReIDNetwork', backbone='mobilenet_v2', num_classes=10, pretrained=True),
    teachers=dict(
        msmt17=dict(num_classes=1041, checkpoint=_run + 'msmt17/student.pth', **_teacher),
        cuhk03=dict(num_classes=767, checkpoint=_run + 'cuhk03/student.pth', **_teacher),
        viper=dict(num_classes=316, checkpoint=_run + 'viper/student.pth', **_teacher),
        market1501=dict(num_classes=751, checkpoint=_run + 'market1501/student.pth', **_teacher),
    ),
    aggregate='similarity',
    interval=5,
    transfers=dict(
        similarity=dict(
            student='embedding',
            teacher=['msmt17.embedding', 'cuhk03.embedding', 'viper.embedding', 'market1501.embedding'],
            loss=dict(type='LogEuclidean'),
            weight=0.02,
        ),
    ),
)
work_dir = 'work_dirs/adaptive_sources_mbv2_dukemtmcreid'
