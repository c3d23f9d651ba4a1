"""Coordinates of MobileNetV2 with the wing loss (Feng et al., CVPR 2018) on 300-W."""
_base_ = ['../_base_/landmark_coordinates.py', '../_base_/300w.py', '../_base_/schedule_landmarks_light.py']
model = dict(type='TaskModel', network=dict(type='CoordinateNet', backbone='mobilenet_v2', points=68, pretrained=True))
work_dir = 'work_dirs/coordinates_mbv2_300w'
