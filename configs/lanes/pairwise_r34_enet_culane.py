"""Pair-wise similarity of regions (Liu et al., CVPR 2019) on CULane: ResNet-34 to ENet; nodes of 4 x 4 at stride 8."""
_base_ = './at_r34_enet_culane.py'
model = dict(
    transfers=dict(
        _delete_=True,
        pair=dict(student='e3', teacher='backbone.layer4', loss=dict(type='PairWise', pool=4), weight=0.5),
    ),
)
work_dir = 'work_dirs/pairwise_r34_enet_culane'
