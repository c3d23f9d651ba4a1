"""Reference values and settings of the losses of students that regress numbers."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kd_tasks.losses import AttentiveHint, AttentiveImitation, HeatmapMimicry
from loss_cases import Case


def imitated(x: Mapping[str, Tensor]) -> Tensor:
    """The spread of the errors is learnt from the whole training set first."""
    target, teacher = x["pose_gt_all"].detach(), x["pose_teacher_all"]
    loss = AttentiveImitation(alpha=0.6)
    loss(teacher, teacher, target=target)
    loss.eval()
    return loss(x["pose_student"], teacher[x["batch_index"]], target=target[x["batch_index"]])


def mimicked(x: Mapping[str, Tensor]) -> Tensor:
    stacks, visibility = [x["student0"], x["student1"]], x["target_weight"].detach()
    labels = HeatmapMimicry()(stacks, x["target"], visibility=visibility)
    return 0.5 * labels + 0.5 * HeatmapMimicry()(stacks, x["teacher"], visibility=visibility)


CASES = [
    # The gradient of the hint belongs to the hint's own value, see the tests of this family.
    Case("vo_attentive", imitated, without=("hint_student",)),
    Case("fpd_mimicry", mimicked),
]

SETTINGS = {
    "AttentiveImitation-clamped": lambda: AttentiveImitation(clamp=True),
    "AttentiveImitation-additive": lambda: AttentiveImitation(form="additive"),
    "AttentiveImitation-minimum": lambda: AttentiveImitation(form="minimum"),
    "AttentiveImitation-upper_bound": lambda: AttentiveImitation(form="upper_bound"),
    "AttentiveImitation-known": lambda: AttentiveImitation(alpha=0.0, spread=1.0),
    "AttentiveHint-clamped": lambda: AttentiveHint(clamp=True),
}

SHAPES = {
    "HeatmapMimicry": lambda batch, size: ([(batch, 4, *size)] * 2, (batch, 4, *size)),
}


def drawn(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(13))


CONTEXT = {
    "target": lambda first: (2 * drawn(*first.shape) - 1).to(first.dtype),
    "teacher_error": lambda first: drawn(len(first)).to(first.dtype),
    "visibility": lambda first: (drawn(*first.shape[:2]) > 0.2).to(first.dtype),
}
