"""Reference values and settings of the losses on relations, continued."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor
from torch.func import functional_call

from kd_tasks.losses import CRD, IRGEdge, IRGTransformation, IRGVertex, RelativeDissimilarity
from loss_cases import Case

BANKS = {"samples": 50, "width": 16, "negatives": 20}


def crd(x: Mapping[str, Tensor]) -> CRD:
    """The loss in the state that the fixture begins with."""
    loss = CRD(**BANKS)
    loss.prepare(x["f_s"], x["f_t"])
    loss.to(x["f_s"].dtype)
    names = {"embed_student": "embed_s", "embed_teacher": "embed_t"}
    state = {f"{ours}.{long}": x[f"param_{theirs}_{short}"] for ours, theirs in names.items() for long, short in WORDS}
    memories = {name: x[name] for name in ("memory_v1", "memory_v2")}
    loss.load_state_dict({**loss.state_dict(), **state, **memories})
    return loss


WORDS = (("weight", "w"), ("bias", "b"))


def contrasted(x: Mapping[str, Tensor]) -> Tensor:
    """The value with the fixture's leaves as parameters; the base class would detach the teacher's features."""
    loss = crd(x)
    weights = {f"embed_student.{long}": x[f"param_embed_s_{short}"] for long, short in WORDS}
    weights |= {f"embed_teacher.{long}": x[f"param_embed_t_{short}"] for long, short in WORDS}
    loss.forward = loss.compute
    return functional_call(loss, weights, (x["f_s"], x["f_t"], x["idx"]), {"contrast_index": x["contrast_idx"]})


def zoo_total(x: Mapping[str, Tensor]) -> Tensor:
    """The three parts of Knowledge-Distillation-Zoo with its weights; its edges are the mean of three layers."""
    edge = IRGEdge(pool=False, reduction="mean", detach_max=False)
    transformation = IRGTransformation(pool=False, reduction="mean", detach_max=False)
    edges = sum(edge(x[f"{name}_s"], x[f"{name}_t"]) for name in ("feat", "fm1", "fm2")) / 3
    moves = transformation([x["fm1_s"], x["fm2_s"]], [x["fm1_t"], x["fm2_t"]])
    return 0.1 * IRGVertex()(x["out_s"], x["out_t"]) + 5 * edges + 5 * moves


CASES = [
    # The fixture's gradients are those of the value, through the largest distance; the default holds it constant.
    # The gradient of the authors' code, half of the right one, is read by a test of its own.
    Case(
        "irg",
        lambda x: IRGEdge(detach_max=False)(x["feat_s"], x["feat_t"]),
        without=("caffe_official_feat_s",),
    ),
    Case(
        "irg",
        lambda x: IRGTransformation(detach_max=False)([x["v1_s"], x["v2_s"]], [x["v1_t"], x["v2_t"]]),
        "transformation_caffe",
    ),
    Case("irg", zoo_total, "kdzoo_total"),
    Case(
        "multi_teacher_you",
        lambda x: RelativeDissimilarity(normalise=False)(x["feat_s"], [x["feat_t1"], x["feat_t2"], x["feat_t3"]]),
    ),
    Case(
        "multi_teacher_you",
        lambda x: RelativeDissimilarity(normalise=False).of_triplets(
            x["feat_s"], [x["feat_t1"], x["feat_t2"], x["feat_t3"]], x["triplets"]
        ),
    ),
    # The reference holds the temperature in float32.
    Case("crd", contrasted, rtol=1e-5, gradient_rtol=1e-5),
]


def two_layers(batch: int, size: tuple[int, int], wider: int) -> list[tuple[int, ...]]:
    """A layer, and the next one of half the size and more channels."""
    return [(batch, 4, *size), (batch, 4 * wider, *(max(1, s // 2) for s in size))]


def teachers_of_three(batch: int, size: tuple[int, int]) -> tuple[Any, Any]:
    return (batch, 16), [(batch, 16), (batch, 12), (batch, 20)]


SHAPES = {
    "IRGTransformation": lambda batch, size: (two_layers(batch, size, 2), two_layers(batch, size, 3)),
    "RelativeDissimilarity": teachers_of_three,
}

small_crd = partial(CRD, samples=16, negatives=8, width=8)

CONSTANT_MAX = "the largest distance is taken as a constant"
CONSTANT_Z = "Z is a constant, though it is that of the batch at hand before any training"
STOPPED = {
    "CRD": CONSTANT_Z,
    "CRD-warm": CONSTANT_Z,
    "CRD-large": CONSTANT_Z,
    "IRGEdge": CONSTANT_MAX,
    "IRGEdge-sum": CONSTANT_MAX,
    "IRGTransformation": CONSTANT_MAX,
    "IRGTransformation-sum": CONSTANT_MAX,
}

# Scores within 1 / temperature on either side cannot tell all samples apart: about 0.9 is left of each part.
TRAINING = {"CRD-warm": {"floor": 1.8}}

BEYOND_HALF = {("RelativeDissimilarity-raw", "large_float16"): "the slopes of squared distances of 6e4"}

SETTINGS = {
    "CRD": small_crd,
    "CRD-warm": partial(small_crd, temperature=0.5, momentum=0.0),
    "CRD-large": partial(CRD, samples=400, negatives=8, width=8),
    "IRGEdge-differentiated": lambda: IRGEdge(detach_max=False),
    "IRGEdge-mean": lambda: IRGEdge(pool=False, reduction="mean", detach_max=False),
    "IRGEdge-sum": lambda: IRGEdge(reduction="sum"),
    "IRGTransformation-differentiated": lambda: IRGTransformation(detach_max=False),
    "IRGTransformation-mean": lambda: IRGTransformation(pool=False, reduction="mean", detach_max=False),
    "IRGTransformation-sum": lambda: IRGTransformation(reduction="sum"),
    "RelativeDissimilarity-raw": lambda: RelativeDissimilarity(normalise=False),
    "RelativeDissimilarity-drawn": lambda: RelativeDissimilarity(triplets=50),
    "RelativeDissimilarity-margin": lambda: RelativeDissimilarity(margin=0.5, ties="margin"),
}
