"""The relative teacher of Yu et al. on Market-1501: distances between embeddings, ResNet-50 to MobileNetV2.

Their embeddings have length 1 and weights 0.1 to 1; these have about 45, the root of 2048, hence 0.007."""
_base_ = './kd_r50_mbv2_market1501.py'
model = dict(
    transfers=dict(
        _delete_=True,
        distances=dict(on='embedding', loss=dict(type='RelativeTeacher'), weight=0.007),
    ),
)
work_dir = 'work_dirs/relative_r50_mbv2_market1501'
