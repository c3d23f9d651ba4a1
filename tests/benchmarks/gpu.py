"""A training step on a GPU against the loop that one writes by hand; nothing without CUDA.

Both sides have the same precision and memory format. What ours may do beyond that, preparing the teacher, is named in
the row. Times are of a whole step with the copy of the pinned batch to the device; the GPU is waited for at both ends.
"""

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from kd_classification.criterion import CrossEntropy
from kd_classification.networks import TorchvisionClassifier
from kd_segmentation.criterion import SegmentationLoss
from kd_segmentation.networks import PSPNet
from torch import Tensor, nn
from torchvision.models import resnet18, resnet34

from kd_tasks.distiller import Distiller
from kd_tasks.engine.compat import build_optimisers
from kd_tasks.task import ImagePreprocessor
from tests.benchmarks import Row, in_turns
from tests.benchmarks.step import CLASSES, TEMPERATURE, WEIGHT, Step, descend, sgd

LIMIT = 1.02
STEPS = 10
SGD = {"type": "SGD", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
FOLDED = {"fold_batchnorm": True, "channels_last": False}


@dataclass(frozen=True)
class Case:
    """One way to compute.

    Attributes:
        name: what the row says.
        bf16: autocast to bfloat16 on both sides.
        channels_last: memory format of images and networks on both sides.
        prepare: what ours does to the teacher.
        limit: the ratio that is promised.
    """

    name: str
    bf16: bool = False
    channels_last: bool = False
    prepare: dict[str, Any] | None = None
    limit: float | None = LIMIT


CASES = (
    Case("float32"),
    Case("bf16", bf16=True),
    Case("bf16, channels-last", bf16=True, channels_last=True),
    Case("float32, teacher folded", prepare=FOLDED),
    Case(
        "bf16, channels-last, teacher folded in bf16",
        bf16=True,
        channels_last=True,
        prepare={"dtype": "bfloat16"},
    ),
    Case(
        "bf16, channels-last, teacher compiled in bf16",
        bf16=True,
        channels_last=True,
        prepare={"dtype": "bfloat16", "compile": True},
        limit=None,
    ),
)


def run(device: str = "cuda", small: bool = False) -> list[Row]:
    """ResNet-34 to 18 with 64 pictures of 224x224, PSPNet-R101 to R18 with 8 of 512x512; empty without CUDA.

    Args:
        device: where to run; another than `cuda` is for trying the code out.
        small: tiny batches of small pictures, once, for the same purpose.
    """
    if device == "cuda" and not torch.cuda.is_available():
        return []
    torch.backends.cudnn.benchmark = True
    rows = []
    for case, (task, ours, by_hand, count, size) in itertools.product(CASES, PAIRS):
        batch = resnet_batch if ours is distilled_resnet else pspnet_batch
        data = batch(2, 64, device) if small else batch(count, size, device)
        rounds, steps = (1, 1) if small else (15, STEPS)
        sides = [repeated(side(case, data, device), steps, device) for side in (ours, by_hand)]
        rows.append(in_turns(f"{task}, {case.name}", sides[0], sides[1], case.limit, rounds))
    return rows


def repeated(step: Step, times: int, device: str) -> Callable[[], None]:
    """`times` steps one after the other, which the device has finished at the end."""

    def steps() -> None:
        for _ in range(times):
            step()
        if device == "cuda":
            torch.cuda.synchronize()

    return steps


# --- Ours ------------------------------------------------------------------------------------------------------------


def distilled_resnet(case: Case, batch: dict[str, Any], device: str) -> Step:
    """Cross-entropy, soft targets and a hint at `layer3` through a 1x1 convolution."""
    torch.manual_seed(0)
    student = TorchvisionClassifier("resnet18", num_classes=CLASSES)
    teacher = {"type": "TorchvisionClassifier", "architecture": "resnet34", "num_classes": CLASSES}
    transfers = {
        "soft": {"on": "logits", "loss": {"type": "SoftTargets", "temperature": TEMPERATURE}, "weight": 0.9},
        "hint": {"on": "layer3", "connector": "conv1x1", "loss": {"type": "Hint"}, "weight": 1.0},
    }
    return train_step(case, student, teacher, transfers, CrossEntropy(), batch, device)


def distilled_pspnet(case: Case, batch: dict[str, Any], device: str) -> Step:
    """The segmentation loss and pixel-wise distillation."""
    torch.manual_seed(0)
    student = PSPNet("resnet18", num_classes=CLASSES)
    teacher = {"type": "PSPNet", "backbone": "resnet101", "num_classes": CLASSES}
    transfers = {"pixel": {"on": "logits", "loss": {"type": "PixelWise", "reduction": "mean"}, "weight": WEIGHT}}
    return train_step(case, student, teacher, transfers, SegmentationLoss(), batch, device)


def train_step(
    case: Case,
    student: nn.Module,
    teacher: dict[str, Any],
    transfers: dict[str, Any],
    criterion: nn.Module,
    batch: dict[str, Any],
    device: str,
) -> Step:
    """One `train_step` of a distiller of these parts, with the optimiser that the runner would build."""
    model = Distiller(
        student,
        transfers,
        teacher={**teacher, "prepare": case.prepare},
        criterion=criterion,
        data_preprocessor=ImagePreprocessor(channels_last=case.channels_last),
        input_size=batch["inputs"].shape[-2:],
    )
    model.to(device).train()
    precision = {"type": "AutocastOptimWrapper"} if case.bf16 else {}
    optim = build_optimisers(model, {"optimizer": SGD, **precision})
    return lambda: model.train_step(batch, optim)


# --- By hand ---------------------------------------------------------------------------------------------------------


def resnet_by_hand(case: Case, batch: dict[str, Any], device: str) -> Step:
    """What a practised person writes with torchvision's models and two hooks."""
    teacher, student = resnet34(num_classes=CLASSES), resnet18(num_classes=CLASSES)
    connector = nn.Conv2d(256, 256, 1).to(device)
    place(case, device, teacher.eval().requires_grad_(False), student.train())
    features: dict[str, Tensor] = {}
    for name, model in (("student", student), ("teacher", teacher)):
        model.layer3.register_forward_hook(lambda _, __, output, name=name: features.__setitem__(name, output))
    optimiser = sgd(itertools.chain(student.parameters(), connector.parameters()))
    load = loading(case, batch, device)

    def step() -> None:
        images, label = load("label")
        with autocast(case, device):
            with torch.no_grad():
                target = teacher(images).float()
            logits = student(images).float()
            soft = F.kl_div(
                F.log_softmax(logits / TEMPERATURE, dim=1),
                F.softmax(target / TEMPERATURE, dim=1),
                reduction="batchmean",
            )
            hint = F.mse_loss(connector(features["student"]).float(), features["teacher"].float())
            loss = F.cross_entropy(logits, label) + 0.9 * TEMPERATURE**2 * soft + hint
        descend(optimiser, loss)

    return step


def pspnet_by_hand(case: Case, batch: dict[str, Any], device: str) -> Step:
    """Pixel-wise distillation with the plugin's networks and criterion, and nothing of the kernel around them."""
    teacher = PSPNet("resnet101", num_classes=CLASSES)
    student = PSPNet("resnet18", num_classes=CLASSES)
    place(case, device, teacher.eval().requires_grad_(False), student.train())
    criterion, optimiser = SegmentationLoss(), sgd(student.parameters())
    load = loading(case, batch, device)

    def step() -> None:
        images, mask = load("mask")
        with autocast(case, device):
            with torch.no_grad():
                target = teacher(images)["logits"].float()
            outputs = student(images)
            pixel = F.cross_entropy(outputs["logits"].float(), F.softmax(target, dim=1))
            loss = sum(criterion(outputs, {"mask": mask}).values()) + WEIGHT * pixel
        descend(optimiser, loss)

    return step


def place(case: Case, device: str, *networks: nn.Module) -> None:
    """Networks on the device in the case's memory format."""
    for network in networks:
        network.to(device, memory_format=torch.channels_last if case.channels_last else torch.preserve_format)


def loading(case: Case, batch: dict[str, Any], device: str) -> Callable[[str], tuple[Tensor, Tensor]]:
    """A function that gives the images, normalised on the device, and the target of that name."""
    prepared = ImagePreprocessor(channels_last=case.channels_last).to(device)

    def load(target: str) -> tuple[Tensor, Tensor]:
        images = prepared.normalise(batch["inputs"].to(device, non_blocking=True))
        return images, batch["targets"][target].to(device, non_blocking=True)

    return load


def autocast(case: Case, device: str) -> contextlib.AbstractContextManager[object]:
    """Autocast to bfloat16 if the case has it."""
    return torch.autocast(device, dtype=torch.bfloat16) if case.bf16 else contextlib.nullcontext()


# --- Data ------------------------------------------------------------------------------------------------------------


def resnet_batch(count: int, size: int, device: str) -> dict[str, Any]:
    """Pictures with labels, as a loader hands them on."""
    return {**pictures(count, size, device), "targets": {"label": pinned(torch.arange(count) % CLASSES, device)}}


def pspnet_batch(count: int, size: int, device: str) -> dict[str, Any]:
    """Pictures with masks, as a loader hands them on."""
    mask = torch.randint(0, CLASSES, (count, size, size), dtype=torch.uint8)
    return {**pictures(count, size, device), "targets": {"mask": pinned(mask, device)}}


def pictures(count: int, size: int, device: str) -> dict[str, Any]:
    """Noise of `count` x 3 x `size` x `size` bytes."""
    inputs = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    return {"inputs": pinned(inputs, device), "meta": [{}] * count}


def pinned(tensor: Tensor, device: str) -> Tensor:
    """`tensor` in pinned memory where it goes to a GPU."""
    return tensor.pin_memory() if device == "cuda" else tensor


PAIRS = (
    ("ResNet-34 to 18", distilled_resnet, resnet_by_hand, 64, 224),
    ("PSPNet-R101 to R18", distilled_pspnet, pspnet_by_hand, 8, 512),
)
