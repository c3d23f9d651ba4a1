"""Facial landmarks: the plugin's declaration."""

from kd_tasks.plugins import Demo, Plugin

plugin = Plugin(
    name="landmarks",
    summary="Facial landmarks: heatmaps or coordinates, few labelled faces; 300-W, WFLW, AFLW-19, COFW",
    modules=(
        "kd_landmarks.networks",
        "kd_landmarks.criterion",
        "kd_landmarks.decoder",
        "kd_landmarks.metrics",
        "kd_landmarks.datasets",
    ),
    twins={"300w": "kd_landmarks.synthetic:write_300w", "wflw": "kd_landmarks.synthetic:write_wflw"},
    drawing="kd_landmarks.drawing:LandmarkDrawing",
    demo=Demo(
        teacher="landmarks/demo_teacher",
        alone="landmarks/demo_alone",
        distilled={"soft heatmaps": "landmarks/demo_soft", "ts3": "landmarks/demo_ts3"},
        twin="300w",
    ),
    datasets=("300w", "wflw", "aflw", "cofw", "faces_folder"),
    scorers={name: f"kd_landmarks.scoring:score_{name}" for name in ("300w", "wflw", "aflw", "cofw", "faces_folder")},
)
