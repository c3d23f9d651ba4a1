"""Self attention distillation of ResNet-34 on CULane: stages 2 and 3 learn from the next; see sad_enet_culane."""
_base_ = ['../_base_/culane.py', '../_base_/schedule_lanes_60k.py']
_sad = dict(type='SAD', map_norm='zscore')
model = dict(
    type='Distiller',
    student=dict(type='LaneResNet', backbone='resnet34', pretrained=True, num_lanes=4, input_size=(208, 976)),
    transfers=dict(
        layer2=dict(student='backbone.layer2', target='backbone.layer3', loss=_sad, weight=0.1, begin='iter 40000'),
        layer3=dict(student='backbone.layer3', target='backbone.layer4', loss=_sad, weight=0.1, begin='iter 40000'),
    ),
)
work_dir = 'work_dirs/sad_r34_culane'
