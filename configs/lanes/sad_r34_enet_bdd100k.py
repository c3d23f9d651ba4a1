"""Self attention distillation with a teacher on BDD100K: block 3 of ENet looks where ResNet-34 does, at stride 8."""
_base_ = './at_r34_enet_bdd100k.py'
model = dict(
    transfers=dict(
        _delete_=True,
        sad=dict(student='e3', teacher='backbone.layer4', loss=dict(type='SAD', map_norm='zscore'), weight=0.1),
    ),
)
work_dir = 'work_dirs/sad_r34_enet_bdd100k'
