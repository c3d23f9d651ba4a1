"""The absolute teacher of Yu et al. on Market-1501: the embedding, through a linear map, ResNet-50 to MobileNetV2.

Their embeddings have length 1 and weight 1; these have about 45, the root of 2048, hence 0.02."""
_base_ = './kd_r50_mbv2_market1501.py'
model = dict(
    transfers=dict(
        _delete_=True,
        embedding=dict(on='embedding', connector='linear', loss=dict(type='AbsoluteTeacher'), weight=0.02),
    ),
)
work_dir = 'work_dirs/absolute_r50_mbv2_market1501'
