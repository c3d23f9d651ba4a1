"""The classes of a network beside those of its data, and of its teachers."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from kd_tasks.distiller import Distiller
from kd_tasks.errors import UserError
from kd_tasks.losses.base import RelationalLoss
from kd_tasks.registry import NETWORKS
from kd_tasks.teachers import FrozenTeacher
from kd_tasks.transfer import Transfer

ARGUMENT = "num_classes"
LOGITS = "logits"


def network_classes(model: Mapping[str, Any]) -> tuple[str, int] | None:
    """Where a model's config says how many classes the trained network tells apart, and how many; None if nowhere.

    Networks call that argument `num_classes`; one that a config leaves out has its default. 0 stands for a network
    without a classifier.
    """
    part = "student" if "student" in model else "network"
    network = model.get(part)
    if not isinstance(network, Mapping) or network.get("type") not in NETWORKS:
        return None
    parameter = inspect.signature(NETWORKS.get(network["type"])).parameters.get(ARGUMENT)
    count = network.get(ARGUMENT, parameter.default if parameter is not None else None)
    return (f"model.{part}.{ARGUMENT}", count) if isinstance(count, int) and count > 0 else None


def refuse_missing_classes(model: Mapping[str, Any], metainfo: Mapping[str, Any] | None) -> None:
    """Raise `UserError` if the network has fewer classes than the data: a label would lie outside its logits."""
    found, classes = network_classes(model), (metainfo or {}).get("classes")
    if found is not None and classes and found[1] < len(classes):
        raise UserError(f"{found[0]}: the network has {found[1]} classes and the training data have {len(classes)}.")


def spare_classes(model: Mapping[str, Any], metainfo: Mapping[str, Any] | None) -> list[str]:
    """A warning where the network has more classes than the data; none where it has not."""
    found, classes = network_classes(model), (metainfo or {}).get("classes")
    if found is None or not classes or found[1] <= len(classes):
        return []
    return [f"{found[0]}: the network has {found[1]} classes and the training data only {len(classes)}."]


def class_order(metainfo: Mapping[str, Any] | None) -> list[str]:
    """The names of a data set's classes in the order of their labels; empty where it does not name them."""
    return [str(name) for name in (metainfo or {}).get("classes") or ()]


def refuse_other_label_order(model: nn.Module, classes: Sequence[str]) -> None:
    """Raise `UserError` if the logits of a teacher are compared with the student's and number other classes.

    What is compared are the names in the teacher's checkpoint, where it has them, and those of the training data. How
    many classes there are is left to the shapes.

    Args:
        model: what is trained; anything but a distiller has no teacher.
        classes: of the training data, in the order of their labels; empty where the data do not name them.
    """
    for transfer, teacher in _compared_by_class(model):
        pairs = enumerate(zip(teacher.classes, classes, strict=False))
        first = next((i for i, (theirs, ours) in pairs if theirs != ours), None)
        if first is not None:
            raise UserError(
                f"{transfer.where}: it compares logits class by class, but the label {first} means "
                f"{teacher.classes[first]!r} in the checkpoint of {teacher.where} and {classes[first]!r} in the "
                "training data. Take a teacher that was trained on the same classes in the same order, or compare "
                "features instead of logits."
            )


def _compared_by_class(model: nn.Module) -> Iterator[tuple[Transfer, FrozenTeacher]]:
    """Transfers that set a teacher's logits against the student's one by one, each with that teacher.

    A connector may turn one order of classes into another, and a loss that compares samples with samples has none.
    """
    if not isinstance(model, Distiller):
        return
    for transfer in model.transfers.values():
        if transfer.own_target or transfer.connector is not None or transfer.teacher_connector is not None:
            continue
        relational = isinstance(transfer.loss, RelationalLoss) and LOGITS not in transfer.loss.taps
        if relational or LOGITS not in transfer.student_taps:
            continue
        for name, teacher in model.teachers.items():
            if {LOGITS, f"{name}.{LOGITS}"} & set(transfer.teacher_taps):
                yield transfer, teacher
