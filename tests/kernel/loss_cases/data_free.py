"""Reference values and settings of the losses without training data."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kd_tasks.losses import BatchNormStatistics, DAFLActivation, DAFLEntropy, DAFLOneHot, DataImpression
from loss_cases import Case


def generator_total(x: Mapping[str, Tensor]) -> Tensor:
    logits = x["logits_t"]
    return DAFLOneHot()(logits) + 5 * DAFLEntropy()(logits) + 0.1 * DAFLActivation()(x["feat_t"])


def batch_norm(mean: Tensor, variance: Tensor) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(len(mean)).to(mean.dtype)
    layer.running_mean.copy_(mean.detach())
    layer.running_var.copy_(variance.detach())
    return layer


def statistics(*layers: nn.Module) -> BatchNormStatistics:
    loss = BatchNormStatistics()
    loss.read_teacher(layers)
    return loss


def random_statistics() -> BatchNormStatistics:
    generator = torch.Generator().manual_seed(17)
    draws = torch.rand(3, 2, 4, generator=generator) + 0.5
    return statistics(*(batch_norm(mean, variance) for mean, variance in draws))


def soft_labels(rows: int, classes: int) -> Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(19)).mul(3).softmax(dim=1)


CASES = [
    Case("dafl_onehot", lambda x: DAFLOneHot()(x["logits_t"])),
    Case("dafl_activation", lambda x: DAFLActivation()(x["feat_t"])),
    Case("dafl_information_entropy", lambda x: DAFLEntropy()(x["logits_t"])),
    Case("dafl_generator_total", generator_total),
    Case(
        "bn_statistics_deepinversion",
        lambda x: statistics(batch_norm(x["param_running_mean"], x["param_running_var"]))(x["x"]),
    ),
    Case("zskd_data_impression", lambda x: DataImpression()(x["logits_t"], soft_label=x["target"].detach())),
]

SETTINGS = {
    "DAFLActivation-sum": lambda: DAFLActivation("sum"),
    "DAFLEntropy-paper": lambda: DAFLEntropy("paper"),
    "BatchNormStatistics": random_statistics,
    "DataImpression-cold": lambda: DataImpression(1.0),
}

SHAPES = {
    "DAFLEntropy": lambda batch, size: ((batch, 4), (batch, 4)),
    "DataImpression": lambda batch, size: ((batch, 4), (batch, 4)),
}

CONTEXT = {"soft_label": lambda first: soft_labels(*first.shape).to(first.dtype)}


def entropy(labels: Tensor) -> float:
    return -(labels * labels.log()).sum(dim=1).mean().item()


# These have a lower end other than zero, or none: a feature of size 6 is where 50 steps can lead.
TRAINING = {
    "DAFLActivation": {"floor": -6.0},
    "DAFLActivation-sum": {"floor": -6.0 * 16},
    "DAFLEntropy": {"scale": 4.0, "lr": 0.3, "floor": -math.log10(4)},
    "DAFLEntropy-paper": {"scale": 4.0, "lr": 0.3, "floor": -math.log(4) / 4},
    "DataImpression": {"lr": 5.0, "floor": entropy(soft_labels(8, 4))},
    "DataImpression-cold": {"floor": entropy(soft_labels(8, 4))},
}
