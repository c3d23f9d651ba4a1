"""A teacher: ResNet-50 on CUHK03, in the plain folder layout: 767 identities for training (newer protocol)."""
_base_ = './teacher_r50_market1501.py'
_data = dict(type='ReIDFolder', data_root='datasets/cuhk03')
model = dict(network=dict(num_classes=767))
train_dataloader = dict(dataset=_data)
test_dataloader = dict(dataset=_data)
work_dir = 'work_dirs/teacher_r50_cuhk03'
