"""Every loss of the kernel: one family a file, one class a loss. Needs torch alone."""

from kd_tasks.losses.adversarial import WGANGP, Hinge
from kd_tasks.losses.base import AdversarialLoss, Loss, RelationalLoss
from kd_tasks.losses.features import AttentionTransfer, ChannelWise, Hint
from kd_tasks.losses.logits import LogitRegression, PixelWise, SoftTargets
from kd_tasks.losses.relations import PairWise

__all__ = [
    "WGANGP",
    "AdversarialLoss",
    "AttentionTransfer",
    "ChannelWise",
    "Hinge",
    "Hint",
    "LogitRegression",
    "Loss",
    "PairWise",
    "PixelWise",
    "RelationalLoss",
    "SoftTargets",
]
