"""Similarity-preserving distillation on Market-1501, at the last stage: ResNet-50 to MobileNetV2."""
_base_ = './kd_r50_mbv2_market1501.py'
model = dict(
    transfers=dict(
        _delete_=True,
        similarity=dict(on='backbone.layer4', loss=dict(type='SimilarityPreserving'), weight=3000.0),
    ),
)
work_dir = 'work_dirs/sp_r50_mbv2_market1501'
