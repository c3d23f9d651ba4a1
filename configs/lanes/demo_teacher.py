"""The teacher of the demonstration: a ResNet-18 of a quarter of its width, 360 steps of 8 at half the rate."""
_base_ = '../_base_/lanes_demo.py'
model = dict(
    type='TaskModel',
    network=dict(
        type='LaneResNet', backbone='resnet18', width=0.25, num_lanes=4, input_size=(56, 160), dropout=0.0
    ),
)
train_dataloader = dict(batch_size=8)
optim_wrapper = dict(_delete_=True, optimizer=dict(type='AdamW', lr=1e-2, weight_decay=1e-4, fused=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.04, begin=0, end=105, by_epoch=False),
    dict(type='CosineAnnealingLR', begin=105, end=360, T_max=255, eta_min=0.0, by_epoch=False),
]
train_cfg = dict(max_epochs=6)
work_dir = 'work_dirs/lanes_demo_teacher'
