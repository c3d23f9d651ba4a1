"""The teacher for digits: 24 channels, trained on all training pictures."""

_base_ = ['../_base_/runtime.py', '../_base_/classification_digits.py']

model = dict(type='TaskModel', network=dict(type='SmallClassifier', width=24, num_classes=10))
train_dataloader = dict(dataset=dict(per_class=None))
train_cfg = dict(max_epochs=10, val_interval=5)
work_dir = 'work_dirs/classification/teacher_digits'
