"""MSMT17 with the recipe of Market-1501, trained on `list_train` alone; `train='trainval'` adds `list_val`."""
_base_ = './market1501.py'
_data = dict(type='MSMT17', data_root='datasets/msmt17')
train_dataloader = dict(dataset=dict(train='train', **_data))
test_dataloader = dict(dataset=_data)
