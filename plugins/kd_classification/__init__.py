"""Image classification: the plugin's declaration."""

from kd_tasks.plugins import Demo, Plugin

plugin = Plugin(
    name="classification",
    summary="Image classification: torchvision networks; image folders, CIFAR, digits; top-1 and top-5",
    modules=(
        "kd_classification.networks",
        "kd_classification.criterion",
        "kd_classification.decoder",
        "kd_classification.datasets",
        "kd_classification.metrics",
    ),
    drawing="kd_classification.drawing:ClassificationDrawing",
    demo=Demo(
        teacher="classification/teacher_digits",
        alone="classification/alone_digits",
        distilled="classification/kd_digits",
    ),
    datasets=("imagefolder", "cifar10", "cifar100", "digits"),
)
