"""fast-reid's distillation, at its temperature 16: logits drawn both ways, ResNet-50 to MobileNetV2 on Market-1501."""
_base_ = './kd_r50_mbv2_market1501.py'
model = dict(
    transfers=dict(
        _delete_=True,
        divergence=dict(on='logits', loss=dict(type='JSDivergence', temperature=16.0), weight=1.0),
    ),
)
work_dir = 'work_dirs/js_r50_mbv2_market1501'
