"""BDD100K's lane markings as one class, 360 x 640, batches of 4; networks have one slot and no existence branch.

With the official masks. The papers' own, centre lines of 8 px in training and 2 px in testing, need `list_file` in each
data set.
"""
_base_ = './lanes.py'
_transforms = [
    dict(type='HorizontalFlip', p=0.5),
    dict(type='Affine', scale=dict(x=(0.95, 1.05), y=(0.95, 1.05)), rotate=(-2, 2), fill=(124, 116, 104),
         fill_mask=255, p=1.0),
]
_data = dict(type='BDD100KLanes', data_root='datasets/bdd100k', size=(360, 640))
model = dict(decoder=dict(type='LaneDecoder', rule='mask'))
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    drop_last=True,
    dataset=dict(split='train', transforms=_transforms, **_data),
)
val_dataloader = dict(batch_size=8, num_workers=4, dataset=dict(split='val', test_mode=True, **_data))
test_dataloader = dict(batch_size=8, num_workers=4, dataset=dict(split='val', test_mode=True, **_data))
val_evaluator = dict(type='BDDLaneMetric', thresholds=())
test_evaluator = dict(type='BDDLaneMetric')
