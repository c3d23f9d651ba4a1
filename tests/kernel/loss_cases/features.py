"""Reference values and settings of the losses on feature maps."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_tasks.losses import (
    BYOT,
    FSP,
    SAD,
    AttentionTransfer,
    ChannelWise,
    GradientAttention,
    GradientSymmetry,
    Hint,
    NeuronSelectivity,
)
from kd_tasks.losses.base import full_precision
from loss_cases import Case

Tensors = Mapping[str, Tensor]


def half_of_everything(features: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(features, (features.shape[2] // 2, features.shape[3] // 2))


def shrinking_regressor(x: Tensors) -> Tensor:
    return F.relu(F.conv2d(x["gs"], x["param_p_w"], x["param_p_b"]))


def down_regressor(x: Tensors) -> Tensor:
    maps = F.conv2d(x["gs"], x["param_reg_w"], x["param_reg_b"], stride=2, padding=1)
    return F.relu(F.batch_norm(maps, None, None, x["param_bn_w"], x["param_bn_b"], training=True))


def up_regressor(x: Tensors) -> Tensor:
    maps = F.conv_transpose2d(x["hs"], x["param_up_w"], x["param_up_b"], stride=2, padding=1)
    return F.relu(F.batch_norm(maps, None, None, x["param_bn_w"], x["param_bn_b"], training=True))


def flow(loss: FSP, x: Tensors, *ends: str) -> Tensor:
    """FSP of the maps whose names end so, as in `s1` and `t1`."""
    return loss([x[end.replace("_", "s")] for end in ends], [x[end.replace("_", "t")] for end in ends])


def self_attention(loss: SAD, x: Tensors) -> Tensor:
    """Three pairs of blocks, unweighted as in the fixture."""
    return sum(loss(x[f"feat{m}"], x[f"feat{m + 1}"]) for m in range(3))


def own_teacher(loss: BYOT, x: Tensors, deepest: float = 1.0) -> Tensor:
    """The loss of the shallow exits, and the deepest exit's cross-entropy with a weight.

    The reference counts its adapters from the deepest shallow exit on.
    """
    student = [x[name] for name in ("z1", "z2", "z3", "f1", "f2", "f3")]
    teacher = [x["z4"], x["f4"]]
    loss.to(x["f1"].dtype).prepare(student, teacher)
    weights = {name: x[f"param_ad{3 - int(name[9])}_{name[11]}"] for name, _ in loss.named_parameters()}
    value = torch.func.functional_call(loss, weights, (student, teacher), {"label": x["target"]})
    return value + deepest * F.cross_entropy(x["z4"], x["target"])


def tiny_network(x: Tensors, side: str, image: Tensor) -> Tensor:
    w1, b1, w2, b2 = (x[f"param_{side}_{name}"] for name in ("w1", "b1", "w2", "b2"))
    return torch.tanh(image.flatten(1) @ w1.T + b1) @ w2.T + b2


def gradient_attention(loss: GradientAttention, x: Tensors) -> Tensor:
    student, teacher = (tiny_network(x, side, x["x"]) for side in "st")
    return loss(student, teacher, image=x["x"], label=x["target"])


def gradient_symmetry(loss: GradientSymmetry, x: Tensors) -> Tensor:
    mirrored = x["x"].flip(-1)
    student = [tiny_network(x, "s", image) for image in (x["x"], mirrored)]
    return loss(student, image=x["x"], mirrored=mirrored, label=x["target"])


CASES = [
    Case("fitnets", lambda x: Hint()(x["fs"], x["ft"])),
    Case("fitnets", lambda x: Hint("half_channel_sum")(x["fs"], x["ft"]), "official_theano_bc01"),
    Case("fitnets", lambda x: Hint("half_sum")(shrinking_regressor(x), x["gt"]), "paper_half_sum"),
    Case("fitnets", lambda x: Hint()(down_regressor(x), x["gt"]), "convreg_down"),
    Case("fitnets", lambda x: Hint()(up_regressor(x), x["ht"]), "convreg_up"),
    Case("at", lambda x: AttentionTransfer()(x["fs"], x["ft"])),
    Case("at", lambda x: AttentionTransfer(form="paper")(x["fs"], x["ft"]), "paper_l2norm"),
    Case("at", lambda x: AttentionTransfer()(x["fs"], x["ft"]), "kdzoo_eps1e-6"),
    Case("at", lambda x: AttentionTransfer(p=3)(x["fs"], x["ft"]), "kdzoo_p3"),
    Case("at", lambda x: AttentionTransfer()(half_of_everything(x["qs"]), x["qt"]), "rep_avgpool"),
    Case("cwd", lambda x: ChannelWise()(x["fs"], x["ft"])),
    Case("cwd", lambda x: ChannelWise(1.0)(x["fs"], x["ft"]), "tau1"),
    Case("nst", lambda x: NeuronSelectivity()(x["fs"], x["ft"])),
    Case("nst", lambda x: NeuronSelectivity("linear")(x["fs"], x["ft"]), "linear"),
    Case("nst", lambda x: NeuronSelectivity("gaussian")(x["fs"], x["ft"]), "gaussian"),
    Case("nst", lambda x: NeuronSelectivity()(half_of_everything(x["qs"]), x["qt"]), "poly_avgpool"),
    Case("nst", lambda x: NeuronSelectivity(teacher_term=False)(x["fs"], x["ft"]), "mxnet_official_no_tt"),
    Case("fsp", lambda x: flow(FSP(), x, "_1", "_2", "_3")),
    Case("fsp", lambda x: flow(FSP(), x, "w_1", "w_2"), "rep_avgpool"),
    Case("fsp", lambda x: flow(FSP("max", "sum"), x, "q_1", "q_2"), "paper_maxpool_sum"),
    Case("sad_distill_loss", lambda x: self_attention(SAD(), x)),
    # The third party's deeper maps get a gradient as targets too; only the shallowest is no target.
    Case(
        "sad_distill_thirdparty",
        lambda x: self_attention(SAD(align_corners=False, reduction="mean"), x),
        without=("feat1", "feat2", "feat3"),
    ),
    Case("byot", lambda x: own_teacher(BYOT(), x)),
    Case("byot", lambda x: own_teacher(BYOT(skip_last=False), x), "no_skip"),
    Case("byot", lambda x: own_teacher(BYOT("luanyunteng"), x, deepest=0.9), "luanyunteng"),
    Case("byot", lambda x: own_teacher(BYOT("conference"), x), "paper_conference"),
    Case("at_grad", lambda x: gradient_attention(GradientAttention(), x)),
    Case("at_grad", lambda x: gradient_attention(GradientAttention(squared=True), x), "squared"),
    Case("at_grad", lambda x: gradient_symmetry(GradientSymmetry(), x), "symmetry"),
]

SETTINGS = {
    "Hint-half_sum": lambda: Hint("half_sum"),
    "Hint-half_channel_sum": lambda: Hint("half_channel_sum"),
    "AttentionTransfer-paper": lambda: AttentionTransfer(form="paper"),
    "AttentionTransfer-p1": lambda: AttentionTransfer(p=1.0),
    "AttentionTransfer-p4": lambda: AttentionTransfer(p=4.0),
    "NeuronSelectivity-linear": lambda: NeuronSelectivity("linear"),
    "NeuronSelectivity-cubic": lambda: NeuronSelectivity(degree=3, constant=0.5),
    "NeuronSelectivity-gaussian": lambda: NeuronSelectivity("gaussian"),
    "NeuronSelectivity-fixed": lambda: NeuronSelectivity("gaussian", variance=0.5),
    "NeuronSelectivity-mxnet": lambda: NeuronSelectivity(teacher_term=False),
    "FSP-paper": lambda: FSP("max", "sum"),
    "SAD-mean": lambda: SAD(map_norm="mean"),
    "SAD-spatial_mean": lambda: SAD(map_norm="spatial_mean"),
    "SAD-zscore": lambda: SAD(map_norm="zscore"),
    "SAD-thirdparty": lambda: SAD(align_corners=False, reduction="mean"),
    "SAD-p1": lambda: SAD(p=1.0),
    "BYOT-no_skip": lambda: BYOT(skip_last=False),
    "BYOT-conference": lambda: BYOT("conference"),
    "BYOT-luanyunteng": lambda: BYOT("luanyunteng"),
    "GradientAttention-squared": lambda: GradientAttention(squared=True),
    "GradientSymmetry-squared": lambda: GradientSymmetry(squared=True),
}


def exits(batch: int, size: tuple[int, int]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Three shallow exits, their features vectors, maps, and a vector as wide as the target."""
    features = [(batch, 8), (batch, 12, *size), (batch, 16)]
    return [(batch, 4)] * 3 + features, [(batch, 4), (batch, 16)]


def growing_maps(batch: int, size: tuple[int, int]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Maps of a student and a larger teacher that shrink with depth."""
    height, width = size
    smaller = (-(-height // 2), -(-width // 2))
    student = [(batch, 4, height, width), (batch, 5, height, width), (batch, 6, *smaller)]
    return student, [(batch, 4, 2 * height, width), (batch, 5, height, width), (batch, 6, *smaller)]


SHAPES = {
    "FSP": growing_maps,
    "SAD": lambda batch, size: ((batch, 4, *size), (batch, 6, -(-size[0] // 2), -(-size[1] // 2))),
    "BYOT": exits,
    "GradientSymmetry": lambda batch, size: ([(batch, 4, *size)] * 2, (batch, 4)),
}


def of_the_image(logits: Tensor, image: Tensor) -> Tensor:
    """`logits` as they are, with a slope with respect to `image` that a mirrored image has mirrored."""
    generator = torch.Generator().manual_seed(17)
    slopes = torch.randn(logits.shape[1], *image.shape[1:], generator=generator).to(image)
    nothing = ((image - image.detach())[:, None] * (slopes + slopes.flip(-1))).sum(dim=(2, 3, 4))
    return logits + nothing.reshape(*nothing.shape, *[1] * (logits.ndim - 2))


def attentive(student: Tensor, teacher: Tensor, context: dict[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Both sides' logits as a function of the image, in full precision so that it is the numbers that are tested."""
    student, teacher = full_precision(student), full_precision(teacher)
    image = context["image"].to(student).requires_grad_()
    return of_the_image(student, image), of_the_image(teacher, image), {**context, "image": image}


def symmetric(
    student: list[Tensor], teacher: None, context: dict[str, Tensor]
) -> tuple[list[Tensor], None, dict[str, Tensor]]:
    """The logits of two pictures as functions of these, in full precision."""
    pictures = {name: context[name].to(full_precision(student[0])).requires_grad_() for name in ("image", "mirrored")}
    pairs = zip(full_precision(student), pictures.values(), strict=True)
    return [of_the_image(logits, picture) for logits, picture in pairs], None, {**context, **pictures}


CONTEXT = {"mirrored": lambda first: torch.randn(len(first), 3, 16, 16, generator=torch.Generator().manual_seed(13))}
MADE = {"GradientAttention": attentive, "GradientSymmetry": symmetric}

GROWS = {"BYOT": None, "BYOT-conference": 1.0}

# The slopes of a formula of fourth degree reach 1e13 here, in float32; float16 ends at 6e4.
BEYOND_HALF = {(name, "large_float16"): "fourth degree" for name in ("FSP", "FSP-paper")}

# What is left is the entropy of the targets.
TRAINING = {"BYOT-luanyunteng": {"floor": 3.0}}

STOPPED = {"NeuronSelectivity-gaussian": "the width of the kernel is a constant"}
