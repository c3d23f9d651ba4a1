"""The control of mimicry_few_hg4_mbv2_wflw: the same student on the same batches, without a teacher."""
_base_ = ['../_base_/landmarks.py', '../_base_/wflw_few.py', '../_base_/schedule_landmarks_light.py']
model = dict(type='TaskModel', network=dict(type='HeatmapNet', backbone='mobilenet_v2', points=98, pretrained=True))
work_dir = 'work_dirs/alone_few_mbv2_wflw'
