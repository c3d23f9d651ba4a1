"""A teacher: ResNet-50 with last stride 1 and BNNeck, from ImageNet weights, on Market-1501."""
_base_ = ['../_base_/reid.py', '../_base_/market1501.py', '../_base_/schedule_reid.py']
model = dict(
    type='TaskModel',
    network=dict(type='ReIDNetwork', backbone='resnet50', num_classes=751, pretrained=True),
)
work_dir = 'work_dirs/teacher_r50_market1501'
