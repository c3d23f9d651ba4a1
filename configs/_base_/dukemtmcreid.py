"""DukeMTMC-reID with the recipe of Market-1501."""
_base_ = './market1501.py'
_data = dict(type='DukeMTMCreID', data_root='datasets/dukemtmcreid')
train_dataloader = dict(dataset=_data)
test_dataloader = dict(dataset=_data)
