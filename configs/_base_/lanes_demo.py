"""The demonstration of lanes: the synthetic twin of CULane, the upper 60 of 148 rows cut off, 56 x 160; 600 steps of 4.

Steps are few: overlap and existence weigh more than in `lanes.py`, and the existence branch learns at a tenth of the
rate, at the whole of which it dies. Lanes of the evaluation are 8 px wide, a quarter of CULane's 30.
"""
_base_ = './runtime.py'
task = 'lanes'
_input_size = (56, 160)
_data = dict(type='CULane', data_root='datasets/culane_twin', size=_input_size, crop_top=60)
model = dict(
    criterion=dict(type='LaneLoss', background_weight=0.4, iou_weight=1.0, exist_weight=0.5),
    decoder=dict(type='LaneDecoder', rule='culane', row_step=5.0, smoothing=3),
    data_preprocessor=dict(type='ImagePreprocessor'),
)
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    dataset=dict(
        split='train',
        transforms=[
            dict(type='Affine', scale=dict(x=(0.93, 1.07), y=(0.93, 1.07)), rotate=(-2, 2),
                 translate_percent=dict(x=(-0.04, 0.04), y=(-0.03, 0.03)), fill=(124, 116, 104), fill_mask=255, p=1.0),
            dict(type='RandomBrightnessContrast', brightness_limit=0.25, contrast_limit=0.3, p=0.7),
        ],
        **_data,
    ),
)
test_dataloader = dict(batch_size=30, num_workers=0, dataset=dict(split='test', test_mode=True, **_data))
test_evaluator = dict(type='CULaneMetric', width=8)
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=2e-2, weight_decay=1e-4, fused=True),
    paramwise_cfg=dict(custom_keys={'existence': dict(lr_mult=0.1)}),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.04, begin=0, end=180, by_epoch=False),
    dict(type='CosineAnnealingLR', begin=180, end=600, T_max=420, eta_min=0.0, by_epoch=False),
]
train_cfg = dict(by_epoch=True, max_epochs=5)
test_cfg = dict()
