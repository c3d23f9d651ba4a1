"""TuSimple: 368 x 640, six slots; scales of 0.94 to 1.2 and small turns; tested on the 2,782 pictures."""
_base_ = './lanes.py'
_transforms = [
    dict(type='Affine', scale=dict(x=(0.94, 1.06), y=(0.94, 1.2)), rotate=(-2, 2), fill=(124, 116, 104),
         fill_mask=255, p=1.0),
]
_data = dict(type='TuSimple', data_root='datasets/tusimple', size=(368, 640))
model = dict(decoder=dict(type='LaneDecoder', rule='tusimple'))
train_dataloader = dict(
    batch_size=12,
    num_workers=4,
    drop_last=True,
    dataset=dict(split='train', transforms=_transforms, **_data),
)
val_dataloader = dict(batch_size=16, num_workers=4, dataset=dict(split='val', test_mode=True, **_data))
test_dataloader = dict(batch_size=16, num_workers=4, dataset=dict(split='test', test_mode=True, **_data))
val_evaluator = dict(type='TuSimpleMetric')
test_evaluator = dict(type='TuSimpleMetric')
