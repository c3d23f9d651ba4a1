"""Coordinates of MobileNetV2 with the wing loss (Feng et al., CVPR 2018) on WFLW."""
_base_ = ['../_base_/landmark_coordinates.py', '../_base_/wflw.py', '../_base_/schedule_landmarks_light.py']
model = dict(type='TaskModel', network=dict(type='CoordinateNet', backbone='mobilenet_v2', points=98, pretrained=True))
work_dir = 'work_dirs/coordinates_mbv2_wflw'
