"""Heatmaps of MobileNetV2 on AFLW-19, without a teacher."""
_base_ = ['../_base_/landmarks.py', '../_base_/aflw.py', '../_base_/schedule_landmarks_light.py']
model = dict(type='TaskModel', network=dict(type='HeatmapNet', backbone='mobilenet_v2', points=19, pretrained=True))
work_dir = 'work_dirs/alone_mbv2_aflw'
