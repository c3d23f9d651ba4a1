"""The control of all distillations to MobileNetV2 on Market-1501: the same student without a teacher."""
_base_ = ['../_base_/reid.py', '../_base_/market1501.py', '../_base_/schedule_reid.py']
model = dict(
    type='TaskModel',
    network=dict(type='ReIDNetwork', backbone='mobilenet_v2', num_classes=751, pretrained=True),
)
work_dir = 'work_dirs/alone_mbv2_market1501'
