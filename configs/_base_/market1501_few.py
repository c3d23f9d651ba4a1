"""Market-1501 with 10 labelled identities: in a batch 48 unlabelled pictures, and 4 identities x 4."""
_base_ = './market1501.py'
train_dataloader = dict(
    sampler=dict(_delete_=True, type='MixedIdentitySampler', unlabelled=48, identities=4, pictures=4),
    dataset=dict(labelled=10),
)
