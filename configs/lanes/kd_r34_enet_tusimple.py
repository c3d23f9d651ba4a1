"""Soft labels on TuSimple: the class probabilities of each pixel, ResNet-34 to ENet; temperature 2."""
_base_ = './at_r34_enet_tusimple.py'
model = dict(
    teacher=dict(full_size=True),
    transfers=dict(
        _delete_=True,
        soft=dict(on='logits', loss=dict(type='SoftTargets', temperature=2.0), weight=1.0),
    ),
)
work_dir = 'work_dirs/kd_r34_enet_tusimple'
