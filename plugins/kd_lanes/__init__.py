"""Lane detection: the plugin's declaration."""

from kd_tasks.plugins import Demo, Plugin

plugin = Plugin(
    name="lanes",
    summary="Lane detection: self attention distillation and teachers; TuSimple, CULane, BDD100K",
    modules=(
        "kd_lanes.networks",
        "kd_lanes.criterion",
        "kd_lanes.decoder",
        "kd_lanes.losses",
        "kd_lanes.datasets",
        "kd_lanes.metrics",
    ),
    twins={"culane": "kd_lanes.synthetic:write_culane", "tusimple": "kd_lanes.synthetic:write_tusimple"},
    drawing="kd_lanes.drawing:LaneDrawing",
    demo=Demo(
        teacher="lanes/demo_teacher",
        alone="lanes/demo_alone",
        distilled={"hint": "lanes/demo_distilled", "sad": "lanes/demo_sad"},
        twin="culane",
    ),
    datasets=("tusimple", "culane", "bdd100k_lanes"),
    scorers={
        "culane": "kd_lanes.scoring:score_culane",
        "tusimple": "kd_lanes.scoring:score_tusimple",
        "bdd100k_lanes": "kd_lanes.scoring:score_bdd100k",
    },
)
