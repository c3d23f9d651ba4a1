"""The larger teacher, on the labelled part of the faces alone: fewer shifts, more changes of light, holes."""
_base_ = '../_base_/faces68.py'
model = dict(type='TaskModel', network=dict(type='SmallLandmarkNet', points=68, width=32))
train_dataloader = dict(
    dataset=dict(
        keep_unlabelled=False,
        transforms=[
            dict(type='HorizontalFlip', p=0.5),
            dict(type='Affine', rotate=(-6, 6), scale=(0.96, 1.04), translate_percent=(-0.015, 0.015), p=1.0),
            dict(type='RandomBrightnessContrast', brightness_limit=0.25, contrast_limit=0.4, p=0.8),
            dict(type='MultiplicativeNoise', multiplier=(0.85, 1.15), per_channel=True, p=1.0),
            dict(type='Blur', blur_limit=(3, 3), p=0.2),
            dict(
                type='CoarseDropout', num_holes_range=(1, 1), hole_height_range=(0.1, 0.4), hole_width_range=(0.1, 0.4),
                fill=(124, 116, 104), p=0.5,
            ),
        ],
    ),
)
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, begin=0, end=50, by_epoch=False),
    dict(type='CosineAnnealingLR', begin=50, end=2000, T_max=1950, eta_min=1e-5, by_epoch=False),
]
train_cfg = dict(max_epochs=40)
work_dir = 'work_dirs/teacher_small_faces68'
