"""The demonstration of landmarks: as `faces68.py`, on the synthetic twin of 300-W, 720 steps.

Drawn faces have their points where they should be, so they are mirrored. In so few steps nothing is hidden, and half of
a batch is labelled: no network comes to fit the labels too closely.
"""
_base_ = './faces68.py'
_twin = dict(type='Faces300W', data_root='datasets/300w_twin')
_transforms = [
    dict(type='HorizontalFlip', p=0.5),
    dict(type='Affine', rotate=(-6, 6), scale=(0.96, 1.04), translate_percent=(-0.015, 0.015), p=1.0),
    dict(type='RandomBrightnessContrast', brightness_limit=0.2, contrast_limit=0.2, p=0.8),
]
train_dataloader = dict(sampler=dict(labelled=8, batches=20), dataset=dict(transforms=_transforms, **_twin))
test_dataloader = dict(dataset=dict(split='full', **_twin))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, begin=0, end=36, by_epoch=False),
    dict(type='CosineRestartLR', periods=[360, 360], restart_weights=[1, 1], eta_min=1e-5, by_epoch=False),
]
train_cfg = dict(max_epochs=36)
