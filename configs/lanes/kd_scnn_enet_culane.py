"""Soft labels on CULane: the class probabilities of each pixel, SCNN to ENet; temperature 2."""
_base_ = './at_scnn_enet_culane.py'
model = dict(
    teacher=dict(full_size=True),
    transfers=dict(
        _delete_=True,
        soft=dict(on='logits', loss=dict(type='SoftTargets', temperature=2.0), weight=1.0),
    ),
)
work_dir = 'work_dirs/kd_scnn_enet_culane'
