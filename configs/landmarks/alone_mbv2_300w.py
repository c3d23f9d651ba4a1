"""Heatmaps of MobileNetV2 on 300-W, without a teacher."""
_base_ = ['../_base_/landmarks.py', '../_base_/300w.py', '../_base_/schedule_landmarks_light.py']
model = dict(type='TaskModel', network=dict(type='HeatmapNet', backbone='mobilenet_v2', points=68, pretrained=True))
work_dir = 'work_dirs/alone_mbv2_300w'
