"""The demonstration of landmarks: the synthetic twin of 300-W, 20 % of the training faces labelled."""
_base_ = './runtime.py'
task = 'landmarks'
_codec = dict(type='SoftmaxHeatmap', sigma=4.0)
_size = (64, 64)
_faces = dict(type='Faces300W', data_root='datasets/300w_twin', size=_size, expand=0.2)
model = dict(
    criterion=dict(type='HeatmapLoss', kind='cross_entropy', codec=_codec, input_size=_size),
    decoder=dict(type='LandmarkDecoder', codec=_codec),
    data_preprocessor=dict(type='ImagePreprocessor', channels_last=True),
)
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='MixedSampler', batch_size=32, labelled=8, batches=20),
    dataset=dict(
        split='train',
        margin=0.2,
        labelled=0.2,
        transforms=[
            dict(type='HorizontalFlip', p=0.5),
            dict(type='Affine', rotate=(-10, 10), scale=(0.92, 1.08), translate_percent=(-0.03, 0.03), p=0.9),
            dict(type='RandomBrightnessContrast', brightness_limit=0.2, contrast_limit=0.2, p=0.8),
        ],
        **_faces,
    ),
)
test_dataloader = dict(
    batch_size=64, num_workers=0, dataset=dict(split='full', test_mode=True, **_faces)
)
test_evaluator = dict(type='LandmarkMetric', ced='ced.png')
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=3e-3, weight_decay=1e-4, fused=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, begin=0, end=20, by_epoch=False),
    dict(type='CosineRestartLR', periods=[200, 100, 100], restart_weights=[1, 0.5, 0.5], eta_min=1e-5, by_epoch=False),
]
train_cfg = dict(by_epoch=True, max_epochs=20)
test_cfg = dict()
