"""Data, task parts and a schedule of seconds for 150 of scikit-learn's digits."""

task = 'classification'
model = dict(
    criterion=dict(type='CrossEntropy'),
    decoder=dict(type='TopKDecoder', k=5),
    data_preprocessor=dict(type='ImagePreprocessor', mean=(78.0, 78.0, 78.0), std=(96.0, 96.0, 96.0)),
)

train_dataloader = dict(batch_size=32, num_workers=0, dataset=dict(type='Digits', split='train', per_class=15))
val_dataloader = dict(batch_size=100, num_workers=0, dataset=dict(type='Digits', split='val', test_mode=True))
test_dataloader = dict(batch_size=100, num_workers=0, dataset=dict(type='Digits', split='test', test_mode=True))
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1, 5))

train_cfg = dict(by_epoch=True, max_epochs=60, val_interval=20)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.01))
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True)]
