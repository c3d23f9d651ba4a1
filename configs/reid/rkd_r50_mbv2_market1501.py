"""Relational distillation on Market-1501: distances and angles of embeddings, ResNet-50 to MobileNetV2."""
_base_ = './kd_r50_mbv2_market1501.py'
model = dict(
    transfers=dict(
        _delete_=True,
        distance=dict(on='embedding', loss=dict(type='RKDDistance'), weight=1.0),
        angle=dict(on='embedding', loss=dict(type='RKDAngle'), weight=2.0),
    ),
)
work_dir = 'work_dirs/rkd_r50_mbv2_market1501'
