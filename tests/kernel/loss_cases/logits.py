"""Reference values and settings of the losses on logits."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from kd_tasks.losses import (
    CWTM,
    DIST,
    DKD,
    DKPP,
    ONE,
    Consistency,
    GeneralisedDistillation,
    LabelSmoothing,
    LogitDistance,
    LogitRegression,
    LogitStandardisation,
    MutualLearning,
    NoisyTeacher,
    PatientPrediction,
    PixelWise,
    SoftTargets,
)
from loss_cases import Case

Arrays = Mapping[str, Tensor]
GATE = {"gate.0.weight": "gate_w", "gate.0.bias": "gate_b", "gate.1.weight": "gate_bn_w", "gate.1.bias": "gate_bn_b"}


class GivenPermutation(DKPP):
    """With the fixture's permutation in place of a draw."""

    def __init__(self, permutation: Tensor) -> None:
        super().__init__()
        self.given = permutation

    def permutation(self, teacher: Tensor) -> Tensor:
        return self.given


class GivenNoise(NoisyTeacher):
    """With the fixture's noise in place of a draw."""

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.given = noise

    def noise(self, teacher: Tensor) -> Tensor:
        return self.given


def logits(x: Arrays, *names: str) -> list[Tensor]:
    """The arrays `logits_...`."""
    return [x[f"logits_{name}"] for name in names]


def mutual(x: Arrays, loss: MutualLearning, *peers: str) -> Tensor:
    """The whole loss of the first network."""
    return F.cross_entropy(x["z1"], x["target"]) + loss(x["z1"], [x[name] for name in peers])


def one(x: Arrays, kl_weight: float = 1.0) -> Tensor:
    """ONE with the fixture's gate."""
    branches, trunk = logits(x, "1", "2", "3"), x["gate_feat"]
    loss = ONE(kl_weight=kl_weight)
    loss.prepare(branches, trunk)
    weights = {name: x[f"param_{theirs}"] for name, theirs in GATE.items()}
    return functional_call(loss.to(trunk.dtype), weights, (branches, trunk), {"label": x["target"]})


def generalised(x: Arrays, form: str) -> Tensor:
    """The whole objective; rows without a label have a label vector of zeros."""
    hard = -(x["y"] * F.log_softmax(x["logits_s"], dim=1)).sum(dim=1).mean()
    return 0.3 * hard + 0.7 * GeneralisedDistillation(5.0, form)(*logits(x, "s", "t"))


CASES = [
    Case("kd", lambda x: SoftTargets()(*logits(x, "s", "t"))),
    Case("kd", lambda x: SoftTargets(1.0)(*logits(x, "s", "t")), "T1"),
    Case("kd", lambda x: SoftTargets(20.0)(*logits(x, "s", "t")), "T20"),
    Case(
        "kd",
        lambda x: 0.1 * F.cross_entropy(x["logits_s"], x["target"]) + 0.9 * SoftTargets(4.0)(*logits(x, "s", "t")),
        "total_a0.9_T4",
    ),
    Case(
        "multi_teacher_you",
        lambda x: SoftTargets(form="cross_entropy")(x["logits_s"], logits(x, "t1", "t2", "t3")),
        "avg_soft_targets",
    ),
    Case("ban", lambda x: SoftTargets(1.0, form="cross_entropy")(*logits(x, "s", "t"))),
    Case(
        "ban",
        lambda x: (
            F.cross_entropy(x["logits_s"], x["target"]) + SoftTargets(1.0, form="cross_entropy")(*logits(x, "s", "t"))
        ),
        "ban_plus_label",
    ),
    Case("ban", lambda x: CWTM()(*logits(x, "s", "t"), label=x["target"]), "cwtm"),
    Case("ban", lambda x: GivenPermutation(x["dkpp_perm"])(*logits(x, "s", "t")), "dkpp"),
    # The objective has no factor T^2.
    Case(
        "ls_distillation",
        lambda x: (
            0.6 * F.cross_entropy(x["logits_s"], x["label"])
            + 0.4 * SoftTargets(3.0, form="cross_entropy")(*logits(x, "s", "t")) / 9
        ),
    ),
    Case("dafl_student_kd", lambda x: SoftTargets(1.0)(*logits(x, "s", "t"))),
    # The fixture holds the teacher's softmax at T = 20.
    Case(
        "zskd_student",
        lambda x: SoftTargets(20.0, form="cross_entropy")(x["logits_s"], 20 * x["teacher_prob"].log()),
    ),
    Case("logit_regression", lambda x: LogitRegression()(*logits(x, "s", "t"))),
    Case("logit_regression", lambda x: LogitRegression("mean")(*logits(x, "s", "t")), "mse_mean"),
    Case("skd_pixelwise", lambda x: PixelWise()(x["student"], x["teacher"])),
    Case("gendistill_paper", lambda x: generalised(x, "paper")),
    Case("gendistill_code", lambda x: generalised(x, "code")),
    Case("gendistill_semisup", lambda x: generalised(x, "code")),
    # The authors' code divides the regression target by T; without that the target would be the prediction itself.
    Case(
        "gendistill_regression",
        lambda x: 0.3 * F.mse_loss(x["pred_s"], x["y"]) + 0.7 * LogitRegression("mean")(x["pred_s"], x["pred_t"] / 5),
    ),
    Case("noisy_teacher", lambda x: GivenNoise(x["xi"] * x["mask"])(*logits(x, "s", "t"))),
    Case("label_smoothing", lambda x: LabelSmoothing()(x["logits_s"], label=x["target"])),
    Case("label_smoothing", lambda x: LabelSmoothing(0.05)(x["logits_s"], label=x["target"]), "eps0.05"),
    Case("ls_cross_entropy", lambda x: LabelSmoothing()(x["logits"], label=x["label"])),
    # The authors' code adds 1e-8 to probabilities, of which the smallest are not far above that.
    Case("dml", lambda x: mutual(x, MutualLearning(), "z2"), rtol=1e-5, gradient_rtol=1e-4),
    Case(
        "dml", lambda x: mutual(x, MutualLearning("sum"), "z2", "z3"), "K3_official_sum", rtol=1e-5, gradient_rtol=1e-4
    ),
    Case("dml", lambda x: mutual(x, MutualLearning(), "z2", "z3"), "K3_paper_mean"),
    Case("dml", lambda x: mutual(x, MutualLearning("averaged"), "z2", "z3"), "K3_dml_e"),
    Case("one", one),
    Case("one", lambda x: one(x, kl_weight=0.060054667895307945), "ramp_epoch20_of_80"),
    Case("one", lambda x: SoftTargets(3.0)(*logits(x, "1", "2")), "kl_only"),
    Case("mean_teacher", lambda x: Consistency()(*logits(x, "s", "t"))),
    Case("mean_teacher", lambda x: Consistency("kl")(*logits(x, "s", "t")), "kl"),
    Case("mean_teacher", lambda x: LogitDistance()(*logits(x, "s", "t")), "logit_distance"),
    # No loss of ours: the labels' part of the method divides by the whole batch, labelled or not.
    Case(
        "mean_teacher",
        lambda x: F.cross_entropy(x["logits_s"], x["target"], ignore_index=-1, reduction="sum") / len(x["target"]),
        "class_loss",
    ),
    Case(
        "pkd_distillation",
        lambda x: (
            0.3 * F.cross_entropy(x["logits_s"], x["label"]) + 0.7 * PatientPrediction(10.0)(*logits(x, "s", "t"))
        ),
    ),
    Case("dkd", lambda x: DKD()(*logits(x, "s", "t"), label=x["target"])),
    Case("dkd", lambda x: DKD(1.0, 0.0)(*logits(x, "s", "t"), label=x["target"]), "tckd_only"),
    Case("dkd", lambda x: DKD(0.0, 1.0)(*logits(x, "s", "t"), label=x["target"]), "nckd_only"),
    Case("dkd", lambda x: DKD(1.0, 0.5, 1.0)(*logits(x, "s", "t"), label=x["target"]), "imagenet_T1"),
    # 1e-8 stands at another place in the denominator, see the docstring.
    Case("dist", lambda x: DIST()(*logits(x, "s", "t")), gradient_rtol=5e-6),
    Case("dist", lambda x: DIST(temperature=4.0)(*logits(x, "s", "t")), "tau4_cifar"),
    Case("dist", lambda x: DIST()(x["map_s"], x["map_t"]), "segmentation_4d"),
    Case("logit_std", lambda x: LogitStandardisation()(*logits(x, "s", "t"))),
    Case(
        "logit_std",
        lambda x: LogitStandardisation(DKD(9.0, 72.0, 2.0))(*logits(x, "s", "t"), label=x["target"]),
        "dkd",
    ),
]

SETTINGS = {
    "SoftTargets-cross_entropy": lambda: SoftTargets(form="cross_entropy"),
    "SoftTargets-positions": lambda: SoftTargets(over="positions"),
    "PixelWise-mean": lambda: PixelWise(reduction="mean"),
    "PixelWise-warm": lambda: PixelWise(temperature=4.0, reduction="mean"),
    "LogitRegression-mean": lambda: LogitRegression("mean"),
    "GeneralisedDistillation-code": lambda: GeneralisedDistillation(5.0, "code"),
    "MutualLearning-sum": lambda: MutualLearning("sum"),
    "MutualLearning-averaged": lambda: MutualLearning("averaged", over="positions"),
    "Consistency-kl": lambda: Consistency("kl"),
    "Consistency-positions": lambda: Consistency(over="positions"),
    "PatientPrediction-sum": lambda: PatientPrediction(1.0, "sum"),
    "ONE-labels": lambda: ONE(kl_weight=0.0),
    "DKD-cold": lambda: DKD(1.0, 0.5, 1.0),
    "DIST-warm": lambda: DIST(temperature=4.0),
    "LogitStandardisation-DKD": lambda: LogitStandardisation(DKD(9.0, 72.0, 2.0)),
    "LogitStandardisation-DIST": lambda: LogitStandardisation(DIST()),
    "LogitStandardisation-positions": lambda: LogitStandardisation(over="positions"),
}

SHAPES = {
    "MutualLearning": lambda batch, size: ((batch, 4, *size), [(batch, 4, *size)] * 2),
    "ONE": lambda batch, size: ([(batch, 4)] * 3, (batch, 5, *size)),
}

GROWS = {"PixelWise": 2.0, "PixelWise-mean": 1.0, "PixelWise-warm": 1.0, "NoisyTeacher": None, "DKPP": None}

STOPPED = {"ONE": "the target of the KL"}

# A cross-entropy ends at the teacher's entropy, which is next to nothing for logits as large as these.
LARGE = {"scale": 10.0, "lr": 1.0}
TRAINING = {
    "PixelWise": LARGE,
    "DKPP": LARGE,
    "GeneralisedDistillation": LARGE,
    "GeneralisedDistillation-code": {"scale": 50.0, "lr": 5.0},
    "SoftTargets-cross_entropy": {"scale": 50.0, "lr": 5.0},
}
