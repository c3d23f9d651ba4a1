"""Reference values and settings of the losses on logits."""

import torch.nn.functional as F

from kd_tasks.losses import LogitRegression, PixelWise, SoftTargets
from loss_cases import Case

CASES = [
    Case("kd", lambda x: SoftTargets()(x["logits_s"], x["logits_t"])),
    Case("kd", lambda x: SoftTargets(1.0)(x["logits_s"], x["logits_t"]), "T1"),
    Case("kd", lambda x: SoftTargets(20.0)(x["logits_s"], x["logits_t"]), "T20"),
    Case(
        "kd",
        lambda x: (
            0.1 * F.cross_entropy(x["logits_s"], x["target"]) + 0.9 * SoftTargets(4.0)(x["logits_s"], x["logits_t"])
        ),
        "total_a0.9_T4",
    ),
    Case("logit_regression", lambda x: LogitRegression()(x["logits_s"], x["logits_t"])),
    Case("logit_regression", lambda x: LogitRegression("mean")(x["logits_s"], x["logits_t"]), "mse_mean"),
    Case("skd_pixelwise", lambda x: PixelWise()(x["student"], x["teacher"])),
]

SETTINGS = {
    "PixelWise-mean": lambda: PixelWise(reduction="mean"),
    "PixelWise-warm": lambda: PixelWise(temperature=4.0, reduction="mean"),
    "LogitRegression-mean": lambda: LogitRegression("mean"),
}

GROWS = {"PixelWise": 2.0, "PixelWise-mean": 1.0, "PixelWise-warm": 1.0}

TRAINING = {"PixelWise": {"scale": 10.0, "lr": 1.0}}
