"""The classes of a network beside those of its data."""

import inspect
from collections.abc import Mapping
from typing import Any

from kd_tasks.errors import UserError
from kd_tasks.registry import NETWORKS

ARGUMENT = "num_classes"


def network_classes(model: Mapping[str, Any]) -> tuple[str, int] | None:
    """Where a model's config says how many classes the trained network tells apart, and how many; None if nowhere.

    Networks call that argument `num_classes`; one that a config leaves out has its default.
    """
    part = "student" if "student" in model else "network"
    network = model.get(part)
    if not isinstance(network, Mapping) or network.get("type") not in NETWORKS:
        return None
    parameter = inspect.signature(NETWORKS.get(network["type"])).parameters.get(ARGUMENT)
    count = network.get(ARGUMENT, parameter.default if parameter is not None else None)
    return (f"model.{part}.{ARGUMENT}", count) if isinstance(count, int) else None


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
