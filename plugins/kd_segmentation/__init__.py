"""Semantic segmentation: the plugin's declaration."""

from kd_tasks.plugins import Demo, Plugin

plugin = Plugin(
    name="segmentation",
    summary="Semantic segmentation: PSPNet, ESPNet; structured distillation; Cityscapes, CamVid, ADE20K, VOC 2012",
    modules=(
        "kd_segmentation.networks",
        "kd_segmentation.criterion",
        "kd_segmentation.decoder",
        "kd_segmentation.losses",
        "kd_segmentation.datasets",
        "kd_segmentation.metrics",
    ),
    twins={
        "cityscapes": "kd_segmentation.synthetic:write_cityscapes",
        "camvid": "kd_segmentation.synthetic:write_camvid",
    },
    drawing="kd_segmentation.drawing:SegmentationDrawing",
    demo=Demo(
        teacher="segmentation/demo_teacher",
        alone="segmentation/demo_alone",
        distilled="segmentation/demo_distilled",
        twin="camvid",
    ),
    datasets=("cityscapes", "camvid", "ade20k", "voc2012", "folder"),
)
