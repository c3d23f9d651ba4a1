"""A training step of the distiller against the loop that one writes by hand, on the same pictures and weights."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from kd_classification.criterion import CrossEntropy
from kd_classification.networks import TorchvisionClassifier
from kd_segmentation.criterion import SegmentationLoss
from kd_segmentation.networks import PSPNet
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torchvision.models import resnet18, resnet34

from kd_tasks.distiller import Distiller
from kd_tasks.task import ImagePreprocessor
from tests.benchmarks import Row, in_turns

CLASSES = 19
TEMPERATURE = 4.0
WEIGHT = 10.0
TEACHERS: dict[str, tuple[dict[str, Any] | None, float | None]] = {
    "teacher as it is": (None, 1.02),
    "teacher prepared": ({"fold_batchnorm": True, "channels_last": True}, 0.96),
    "teacher prepared, bfloat16": ({"fold_batchnorm": True, "channels_last": True, "dtype": "bfloat16"}, None),
}
Step = Callable[[], object]


def run() -> list[Row]:
    """Soft targets and a hint between ResNets; pixel-wise distillation between PSPNets."""
    return [
        in_turns(f"{task}, {teacher}", ours(prepare), by_hand(), limit, rounds)
        for task, ours, by_hand, rounds in (
            ("ResNet-34 to 18", distilled_resnet, resnet_by_hand, 25),
            ("PSPNet-R50 to R18", distilled_pspnet, pspnet_by_hand, 5),
        )
        for teacher, (prepare, limit) in TEACHERS.items()
    ]


def distilled_resnet(prepare: dict[str, Any] | None) -> Step:
    """Cross-entropy, soft targets and a hint at `layer3` through a 1x1 convolution."""
    batch = resnet_batch()
    torch.manual_seed(0)
    student = TorchvisionClassifier("resnet18", num_classes=CLASSES)
    teacher = {"type": "TorchvisionClassifier", "architecture": "resnet34", "num_classes": CLASSES}
    transfers = {
        "soft": {"on": "logits", "loss": {"type": "SoftTargets", "temperature": TEMPERATURE}, "weight": 0.9},
        "hint": {"on": "layer3", "connector": "conv1x1", "loss": {"type": "Hint"}, "weight": 1.0},
    }
    return train_step(student, teacher | {"prepare": prepare}, transfers, CrossEntropy(), batch)


def distilled_pspnet(prepare: dict[str, Any] | None) -> Step:
    """The segmentation loss and pixel-wise distillation."""
    batch = pspnet_batch()
    torch.manual_seed(0)
    student = PSPNet("resnet18", num_classes=CLASSES)
    teacher = {"type": "PSPNet", "backbone": "resnet50", "num_classes": CLASSES}
    transfers = {"pixel": {"on": "logits", "loss": {"type": "PixelWise", "reduction": "mean"}, "weight": WEIGHT}}
    return train_step(student, teacher | {"prepare": prepare}, transfers, SegmentationLoss(), batch)


def train_step(
    student: nn.Module,
    teacher: dict[str, Any],
    transfers: dict[str, Any],
    criterion: nn.Module,
    batch: dict[str, Any],
) -> Step:
    """One `train_step` of a distiller of these parts; with a prepared teacher, both networks are channels-last."""
    model = Distiller(
        student,
        transfers,
        teacher=teacher,
        criterion=criterion,
        data_preprocessor=ImagePreprocessor(channels_last=teacher["prepare"] is not None),
        input_size=batch["inputs"].shape[-2:],
    )
    wrapper = OptimWrapper(sgd(model.parameters()))
    model.train()
    return lambda: model.train_step(batch, wrapper)


def resnet_by_hand() -> Step:
    """What a practised person writes with torchvision's models and two hooks."""
    batch, prepared = resnet_batch(), ImagePreprocessor()
    teacher = resnet34(num_classes=CLASSES).eval().requires_grad_(False)
    student = resnet18(num_classes=CLASSES).train()
    connector = nn.Conv2d(256, 256, 1)
    features: dict[str, Tensor] = {}
    for name, model in (("student", student), ("teacher", teacher)):
        model.layer3.register_forward_hook(lambda _, __, output, name=name: features.__setitem__(name, output))
    optimiser = sgd(itertools.chain(student.parameters(), connector.parameters()))

    def step() -> None:
        images = prepared.normalise(batch["inputs"])
        with torch.no_grad():
            target = teacher(images)
        logits = student(images)
        soft = F.kl_div(
            F.log_softmax(logits / TEMPERATURE, dim=1), F.softmax(target / TEMPERATURE, dim=1), reduction="batchmean"
        )
        hint = F.mse_loss(connector(features["student"]), features["teacher"])
        loss = F.cross_entropy(logits, batch["targets"]["label"]) + 0.9 * TEMPERATURE**2 * soft + hint
        descend(optimiser, loss)

    return step


def pspnet_by_hand() -> Step:
    """Pixel-wise distillation with the plugin's networks and criterion, and nothing of the kernel around them."""
    batch, prepared, criterion = pspnet_batch(), ImagePreprocessor(), SegmentationLoss()
    teacher = PSPNet("resnet50", num_classes=CLASSES).eval().requires_grad_(False)
    student = PSPNet("resnet18", num_classes=CLASSES).train()
    optimiser = sgd(student.parameters())

    def step() -> None:
        images = prepared.normalise(batch["inputs"])
        with torch.no_grad():
            target = teacher(images)["logits"]
        outputs = student(images)
        pixel = F.cross_entropy(outputs["logits"], F.softmax(target, dim=1))
        loss = sum(criterion(outputs, batch["targets"]).values()) + WEIGHT * pixel
        descend(optimiser, loss)

    return step


def descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """Backward pass and step; gradients are set to None afterwards."""
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()


def sgd(parameters: Any) -> torch.optim.SGD:
    """The optimiser of both sides."""
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)


def resnet_batch() -> dict[str, Any]:
    """8 pictures of 112x112."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (8, 3, 112, 112), generator=generator, dtype=torch.uint8)
    return {"inputs": inputs, "targets": {"label": torch.arange(8)}, "meta": [{}] * 8}


def pspnet_batch() -> dict[str, Any]:
    """4 pictures of 256x256 with their masks."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (4, 3, 256, 256), generator=generator, dtype=torch.uint8)
    mask = torch.randint(0, CLASSES, (4, 256, 256), generator=generator, dtype=torch.uint8)
    return {"inputs": inputs, "targets": {"mask": mask}, "meta": [{}] * 4}
