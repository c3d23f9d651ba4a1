"""Person re-identification: the plugin's declaration."""

from kd_tasks.plugins import Demo, Plugin

plugin = Plugin(
    name="reid",
    summary="Person re-identification: distilled from several teachers; Market-1501, DukeMTMC-reID, MSMT17, folders",
    modules=(
        "kd_reid.networks",
        "kd_reid.criterion",
        "kd_reid.decoder",
        "kd_reid.losses",
        "kd_reid.datasets",
        "kd_reid.samplers",
        "kd_reid.metrics",
    ),
    twins={
        "market1501": "kd_reid.synthetic:write_market1501",
        "msmt17": "kd_reid.synthetic:write_msmt17",
    },
    drawing="kd_reid.drawing:ReIDDrawing",
    demo=Demo(
        teacher={
            "north": "reid/demo_teacher_north",
            "south": "reid/demo_teacher_south",
            "old": "reid/demo_teacher_old",
        },
        alone="reid/demo_alone",
        distilled={"adaptive": "reid/demo_adaptive", "uniform": "reid/demo_uniform"},
        twin="market1501",
    ),
    datasets=("market1501", "dukemtmcreid", "msmt17", "reid_folder"),
)
