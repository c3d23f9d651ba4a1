"""A teacher: ResNet-50 with last stride 1 and BNNeck, from ImageNet weights, on MSMT17."""
_base_ = ['../_base_/reid.py', '../_base_/msmt17.py', '../_base_/schedule_reid.py']
model = dict(
    type='TaskModel',
    network=dict(type='ReIDNetwork', backbone='resnet50', num_classes=1041, pretrained=True),
)
work_dir = 'work_dirs/teacher_r50_msmt17'
