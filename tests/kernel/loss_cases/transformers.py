"""Reference values and settings of the losses on transformers."""

import math
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from kd_tasks.losses import (
    PatientHidden,
    SoftTargets,
    TinyBERTAttention,
    TinyBERTHidden,
    TinyBERTPrediction,
)
from kd_tasks.losses.transformers import layer_map
from loss_cases import Case

ALPHA, BETA, TEMPERATURE = 0.7, 500.0, 10.0


def patient(loss: PatientHidden, x: Mapping[str, Tensor]) -> Tensor:
    return loss(list(x["student"].unbind(1)), list(x["teacher"].unbind(1)))


def patient_total(x: Mapping[str, Tensor]) -> Tensor:
    """The authors' code divides the divergence by the number of classes as well."""
    soft = SoftTargets(TEMPERATURE)(x["logits_s"], x["logits_t"]) / x["logits_s"].shape[1]
    hard = F.cross_entropy(x["logits_s"], x["label"])
    return (1 - ALPHA) * hard + ALPHA * soft + BETA * patient(PatientHidden(), x)


def scores(x: Mapping[str, Tensor], side: str, heads: int = 2) -> Tensor:
    """Attention scores of one layer, padded keys at -10000."""
    query, key = (
        F.linear(x[f"x_{side}"], x[f"param_{side}_{name}_w"], x[f"param_{side}_{name}_b"])
        .unflatten(-1, (heads, -1))
        .transpose(1, 2)
        for name in ("query", "key")
    )
    plain = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    return plain - 10000 * (1 - x["mask"].detach()[:, None, None])


def fitted(x: Mapping[str, Tensor]) -> Tensor:
    """The hidden states' loss with the fixture's linear layer, over the uniform map."""
    student = list(x["reps_s"])
    teacher = [x["reps_t"][i] for i in layer_map(2, 4).hidden]
    loss = TinyBERTHidden()
    loss.prepare(student, teacher)
    parameters = {"fit.weight": x["param_fit_w"], "fit.bias": x["param_fit_b"]}
    return functional_call(loss, parameters, (student, teacher))


def attended(x: Mapping[str, Tensor]) -> Tensor:
    teacher = [x["att_t"][i] for i in layer_map(2, 4).attention]
    return TinyBERTAttention()(list(x["att_s"]), teacher)


CASES = [
    Case("pkd_patience_normalized", lambda x: patient(PatientHidden(), x)),
    Case("pkd_patience_raw", lambda x: patient(PatientHidden(normalise=False), x)),
    Case("pkd_total", patient_total),
    Case("tinybert_attention", lambda x: TinyBERTAttention()(scores(x, "s"), scores(x, "t"))),
    Case("tinybert_intermediate", lambda x: fitted(x) + attended(x)),
    Case("tinybert_prediction", lambda x: TinyBERTPrediction(2.0)(x["logits_s"], x["logits_t"])),
]

SETTINGS = {
    "PatientHidden-raw": lambda: PatientHidden(normalise=False),
    "PatientHidden-sum": lambda: PatientHidden(reduction="sum"),
    "TinyBERTHidden-plain": lambda: TinyBERTHidden(bias=False),
    "TinyBERTPrediction-warm": lambda: TinyBERTPrediction(4.0),
}

SHAPES = {
    "PatientHidden": lambda batch, size: ([(batch, 5, 16), (batch, 3, 16)], [(batch, 5, 16), (batch, 7, 16)]),
    "TinyBERTHidden": lambda batch, size: ([(batch, 5, 8)] * 3, [(batch, 5, 16)] * 3),
    "TinyBERTEmbedding": lambda batch, size: ((batch, 5, 8), (batch, 5, 16)),
    "TinyBERTAttention": lambda batch, size: ([(batch, 2, 5, 5)] * 2, [(batch, 2, 5, 5)] * 2),
}

GROWS = {"PatientHidden-sum": 2.0}

TRAINING = {
    "TinyBERTPrediction": {"scale": 10.0, "lr": 1.0},
    "TinyBERTPrediction-warm": {"scale": 40.0, "lr": 4.0},
}
