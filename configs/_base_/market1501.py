"""Market-1501 at 256 x 128 with the usual recipe: mirror, pad by 10 and crop, erasing; batches of 16 identities x 4.

The ratio of the erased part is width to height; up to 1.25 it may take 40 % of a picture, with more it could not.
"""
_transforms = [
    dict(type='Resize', height=256, width=128),
    dict(type='HorizontalFlip', p=0.5),
    dict(type='PadIfNeeded', min_height=276, min_width=148),
    dict(type='RandomCrop', height=256, width=128),
    dict(type='Erasing', p=0.5, scale=(0.02, 0.4), ratio=(0.3, 1.25), fill=(124, 116, 104)),
]
_test_transforms = [dict(type='Resize', height=256, width=128)]
train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    sampler=dict(type='IdentitySampler', identities=16, pictures=4),
    dataset=dict(type='Market1501', data_root='datasets/market1501', split='train', transforms=_transforms),
)
test_dataloader = dict(
    batch_size=128,
    num_workers=4,
    dataset=dict(type='Market1501', data_root='datasets/market1501', split='test', test_mode=True,
                 transforms=_test_transforms),
)
