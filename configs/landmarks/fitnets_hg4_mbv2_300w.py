"""FitNets (Romero et al., ICLR 2015) on 300-W: hourglass to MobileNetV2, the features that heatmaps are read from."""
_base_ = ['../_base_/landmarks.py', '../_base_/300w.py', '../_base_/schedule_landmarks_light.py']
model = dict(
    type='Distiller',
    student=dict(type='HeatmapNet', backbone='mobilenet_v2', points=68, pretrained=True),
    teacher=dict(type='Hourglass', points=68, residuals=2, form='ts3',
                 checkpoint='work_dirs/teacher_hg4_300w/student.pth',
                 prepare=dict(fold_batchnorm=True, channels_last=True)),
    transfers=dict(
        hint=dict(
            student='decoder',
            teacher='features.3',
            connector='conv1x1',
            loss=dict(type='Hint'),
            weight=0.1,
        ),
    ),
)
work_dir = 'work_dirs/fitnets_hg4_mbv2_300w'
