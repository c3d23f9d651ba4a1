"""The control of adaptive_sources_mbv2_market1501: the same student on the same batches, without a teacher."""
_base_ = ['../_base_/reid.py', '../_base_/market1501_few.py', '../_base_/schedule_reid.py']
model = dict(
    type='TaskModel',
    network=dict(type='ReIDNetwork', backbone='mobilenet_v2', num_classes=10, pretrained=True),
)
work_dir = 'work_dirs/alone_few_mbv2_market1501'
