"""Reference values and settings of the losses on maps with layers of their own, or on values before a ReLU."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from kd_tasks.losses import MGD, VID, ActivationBoundaries, FactorTransfer, Loss, Overhaul, ReviewKD
from kd_tasks.losses.features import factor_difference, margin_of
from kd_tasks.losses.layers import Paraphraser, reconstruction_error
from loss_cases import Case


def given(loss: Loss, weights: Mapping[str, Tensor], student: Any, teacher: Any) -> Tensor:
    """The value with these weights in the loss, which is sized by the inputs."""
    loss.prepare(student, teacher)
    first = student[0] if isinstance(student, list) else student
    value: Tensor = functional_call(loss.to(first.dtype), dict(weights), (student, teacher))
    return value


def vid(x: Mapping[str, Tensor]) -> Tensor:
    weights = {f"regressor.{2 * i}.weight": x[f"param_w{i + 1}"] for i in range(3)}
    return given(VID(), weights | {"raw_variance": x["param_log_scale"]}, x["fs"], x["ft"])


def paraphrased(x: Mapping[str, Tensor]) -> Tensor:
    parts = {"encoder": "c", "decoder": "d"}
    weights = {
        f"{part}.{2 * i}.{kind}": x[f"param_{short}{i}_{kind[0]}"]
        for part, short in parts.items()
        for i in range(3)
        for kind in ("weight", "bias")
    }
    maps: Tensor = functional_call(Paraphraser(6), weights, (x["x_t"],))
    return maps


def layers(x: Mapping[str, Tensor], side: str) -> list[Tensor]:
    return [x[f"{side}{i}"] for i in (1, 2, 3)]


def connected(maps: Tensor, x: Mapping[str, Tensor], name: str) -> Tensor:
    """A 1x1 convolution and batch normalisation in training."""
    wide = F.conv2d(maps, x[f"param_{name}_w"])
    return F.batch_norm(wide, None, None, x[f"param_{name}_bn_w"], x[f"param_{name}_bn_b"], training=True)


def batchnorm(weight: Tensor, bias: Tensor) -> torch.nn.BatchNorm2d:
    """A batch normalisation with these parameters."""
    module = torch.nn.BatchNorm2d(len(weight), dtype=weight.dtype)
    with torch.no_grad():
        module.weight.copy_(weight)
        module.bias.copy_(bias)
    return module


def overhaul(x: Mapping[str, Tensor]) -> Tensor:
    loss = Overhaul()
    loss.read_teacher([batchnorm(x["bn_gamma"], x["bn_beta"]), batchnorm(x["bn2_gamma"], x["bn2_beta"])])
    return loss([connected(x["fs"], x, "conn"), connected(x["gs"], x, "conn2")], [x["ft"], x["gt"]])


def overhaul_of_one_layer(x: Mapping[str, Tensor]) -> Tensor:
    loss = Overhaul(divisor=1.0)
    loss.set_margins([margin_of(batchnorm(x["bn_gamma"], x["bn_beta"]), loss)])
    return loss(connected(x["fs"], x, "conn"), x["ft"])


def review_weights(x: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The fixture's parameters by our names."""
    parts = {
        "c1_w": "project.0.weight",
        "bn1_w": "project.1.weight",
        "bn1_b": "project.1.bias",
        "c2_w": "restore.0.weight",
        "bn2_w": "restore.1.weight",
        "bn2_b": "restore.1.bias",
        "att_w": "attend.weight",
        "att_b": "attend.bias",
    }
    return {
        f"fusions.{i}.{name}": x[f"param_abf{i}_{short}"]
        for i in range(4)
        for short, name in parts.items()
        if f"param_abf{i}_{short}" in x
    }


def review(x: Mapping[str, Tensor]) -> Tensor:
    sides = ([x[f"{side}{i}"] for i in range(4)] for side in "st")
    return given(ReviewKD(), review_weights(x), *sides)


def generated(x: Mapping[str, Tensor], loss: MGD, drawn: str) -> Tensor:
    names = {"align": "align", "g0": "generator.0", "g2": "generator.2"}
    weights = {
        f"{name}.{kind}": x[f"param_{short}_{kind[0]}"] for short, name in names.items() for kind in ("weight", "bias")
    }
    loss.draw = lambda maps: x[drawn].detach()
    return given(loss, weights, x["fs"], x["ft"])


CASES = [
    Case("vid", vid),
    Case("ft", lambda x: factor_difference(x["fac_s"], x["fac_t"])),
    Case("ft", lambda x: reconstruction_error(paraphrased(x), x["x_t"], "l1"), "paraphraser_recon_l1_official"),
    Case("ft", lambda x: reconstruction_error(paraphrased(x), x["x_t"], "mse"), "paraphraser_recon_mse"),
    Case("ab", lambda x: ActivationBoundaries()(layers(x, "s"), layers(x, "t"))),
    Case("ab", lambda x: ActivationBoundaries(margin=2.0, reduction="mean")(x["s1"], x["t1"]), "kdzoo_mean_m2"),
    Case("ofd", overhaul),
    Case("ofd", overhaul_of_one_layer, "mdistiller_single_layer"),
    Case("reviewkd", review),
    Case(
        "reviewkd",
        lambda x: sum(ReviewKD().hierarchical(s, t) for s, t in zip(layers(x, "h"), layers(x, "k"), strict=True)),
        "hcl_only",
    ),
    Case("mgd", lambda x: 2e-5 * generated(x, MGD(), "rand_spatial")),
    Case("mgd", lambda x: 7e-5 * generated(x, MGD("channel"), "rand_channel"), "classification_channel_mask"),
]


def with_margins(**settings: Any) -> Overhaul:
    loss = Overhaul(**settings)
    loss.set_margins([torch.tensor([-1.0, -0.5, -0.1, 0.0])] * 3)
    return loss


SETTINGS = {
    "VID-narrow": lambda: VID(variance=0.5, eps=1e-3),
    "FactorTransfer-mse": lambda: FactorTransfer(reconstruction="mse"),
    "ActivationBoundaries-mean": lambda: ActivationBoundaries(margin=2.0, reduction="mean"),
    "Overhaul": with_margins,
    "Overhaul-mdistiller": lambda: with_margins(divisor=1.0),
    "Overhaul-batch": lambda: Overhaul(margin="batch", reduction="mean"),
    "ReviewKD-narrow": lambda: ReviewKD(mid_channels=3),
    "MGD-channel": lambda: MGD("channel"),
    "MGD-unmasked": lambda: MGD(ratio=0.0),
}


def wider_teacher(batch: int, size: tuple[int, int]) -> tuple[Any, Any]:
    return (batch, 4, *size), (batch, 6, *size)


def pyramids(batch: int, size: tuple[int, int]) -> tuple[Any, Any]:
    """Maps of falling size and pooled embeddings at the end; the teacher's second map is as large as its first."""
    half = tuple(-(-n // 2) for n in size)
    student = [(batch, 4, *size), (batch, 6, *half), (batch, 8)]
    return student, [(batch, 5, *size), (batch, 7, *size), (batch, 9)]


SHAPES = {"VID": wider_teacher, "FactorTransfer": wider_teacher, "ReviewKD": pyramids}

UNDEFINED = {(name, "batch_of_one"): "a batch of at least 2 in training" for name in ("ReviewKD", "ReviewKD-narrow")}

GROWS = {"MGD": None, "MGD-unmasked": 1.0}

# Random features cannot be told from their neighbours, so that the masked share of the teacher's squares (23) remains.
TRAINING = {
    "FactorTransfer": {"lr": 0.01, "scale": 0.3},
    "MGD": {"lr": 0.03, "scale": 0.3, "floor": 0.65 * 23},
    "MGD-channel": {"lr": 0.03, "scale": 0.3, "floor": 0.15 * 23},
    "MGD-unmasked": {"lr": 0.02, "scale": 0.3},
}
