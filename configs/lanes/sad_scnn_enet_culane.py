"""Self attention distillation with a teacher on CULane: block 3 of ENet looks where SCNN does, at stride 8."""
_base_ = './at_scnn_enet_culane.py'
model = dict(
    transfers=dict(
        _delete_=True,
        sad=dict(student='e3', teacher='messages', loss=dict(type='SAD', map_norm='zscore'), weight=0.1),
    ),
)
work_dir = 'work_dirs/sad_scnn_enet_culane'
