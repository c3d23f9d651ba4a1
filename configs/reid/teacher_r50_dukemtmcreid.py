"""A teacher: ResNet-50 with last stride 1 and BNNeck, from ImageNet weights, on DukeMTMC-reID."""
_base_ = ['../_base_/reid.py', '../_base_/dukemtmcreid.py', '../_base_/schedule_reid.py']
model = dict(
    type='TaskModel',
    network=dict(type='ReIDNetwork', backbone='resnet50', num_classes=702, pretrained=True),
)
work_dir = 'work_dirs/teacher_r50_dukemtmcreid'
