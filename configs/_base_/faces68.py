"""Faces of one's own in two folders, 68 points, 20 % of the training faces labelled; sized for two CPU cores.

Faces are cut by the extent of their points, which a shift or another scale would only hide: they move little, but light
and contrast change much, and parts are hidden. A batch has 4 labelled faces and 12 of the others; where there are no others,
16 labelled ones, the first 4 of them the same. The rate starts anew at half of the training: pseudo labels are best where it
has come down, and are made before it rises.

Faces are not mirrored: the points of these lie 2 % of the distance of the eyes to the right of where networks that have seen
mirrored faces find them, and those are wrong by that much. Where annotation has no such habit, put HorizontalFlip first.
"""
_base_ = './runtime.py'
task = 'landmarks'
_codec = dict(type='SoftmaxHeatmap', sigma=4.0)
_size = (64, 64)
_faces = dict(type='FacesFolder', data_root='datasets/faces68', size=_size, expand=0.2)
model = dict(
    criterion=dict(type='HeatmapLoss', kind='cross_entropy', codec=_codec, input_size=_size),
    decoder=dict(type='LandmarkDecoder', codec=_codec),
    data_preprocessor=dict(type='ImagePreprocessor', channels_last=True),
)
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='MixedSampler', batch_size=16, labelled=4, batches=50),
    dataset=dict(
        split='train',
        margin=0.2,
        labelled=0.2,
        transforms=[
            dict(type='Affine', rotate=(-6, 6), scale=(0.96, 1.04), translate_percent=(-0.015, 0.015), p=1.0),
            dict(type='RandomBrightnessContrast', brightness_limit=0.25, contrast_limit=0.4, p=0.8),
            dict(type='MultiplicativeNoise', multiplier=(0.85, 1.15), per_channel=True, p=1.0),
            dict(type='Blur', blur_limit=(3, 3), p=0.2),
            dict(
                type='CoarseDropout', num_holes_range=(1, 1), hole_height_range=(0.1, 0.4), hole_width_range=(0.1, 0.4),
                fill=(124, 116, 104), p=0.5,
            ),
        ],
        **_faces,
    ),
)
test_dataloader = dict(
    batch_size=64, num_workers=0, dataset=dict(split='test', test_mode=True, **_faces)
)
test_evaluator = dict(type='LandmarkMetric', ced='ced.png')
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=3e-3, weight_decay=0.05, fused=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, begin=0, end=50, by_epoch=False),
    dict(type='CosineRestartLR', periods=[2000, 2000], restart_weights=[1, 1], eta_min=1e-5, by_epoch=False),
]
train_cfg = dict(by_epoch=True, max_epochs=80)
test_cfg = dict()
