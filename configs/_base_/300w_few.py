"""300-W with 20 % of the faces labelled: in a batch 8 labelled and 8 unlabelled faces, 196 batches an epoch."""
_base_ = './300w.py'
train_dataloader = dict(
    sampler=dict(type='MixedSampler', batch_size=16, labelled=8, batches=196),
    dataset=dict(labelled=0.2, keep_unlabelled=True),
)
