"""CULane: the upper 240 rows cut off, 208 x 976; scales of 0.93 to 1.08, turns of 2 degrees, as ENet-SAD's authors.

Slots have a place in the picture, so that the authors mirror nothing.
"""
_base_ = './lanes.py'
_transforms = [
    dict(type='Affine', scale=dict(x=(0.96, 1.043), y=(0.933, 1.077)), rotate=(-2, 2), fill=(124, 116, 104),
         fill_mask=255, p=1.0),
]
_data = dict(type='CULane', data_root='datasets/culane', size=(208, 976), crop_top=240)
model = dict(decoder=dict(type='LaneDecoder', rule='culane'))
train_dataloader = dict(
    batch_size=12,
    num_workers=4,
    drop_last=True,
    dataset=dict(split='train', transforms=_transforms, **_data),
)
val_dataloader = dict(batch_size=16, num_workers=4, dataset=dict(split='val', test_mode=True, **_data))
test_dataloader = dict(batch_size=16, num_workers=4, dataset=dict(split='test', test_mode=True, **_data))
val_evaluator = dict(type='CULaneMetric')
test_evaluator = dict(type='CULaneMetric')
