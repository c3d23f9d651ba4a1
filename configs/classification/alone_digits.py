"""The network of 8 channels without a teacher: what the distilled one is compared with."""

_base_ = ['../_base_/runtime.py', '../_base_/classification_digits.py']

model = dict(type='TaskModel', network=dict(type='SmallClassifier', width=8, num_classes=10))
work_dir = 'work_dirs/classification/alone_digits'
