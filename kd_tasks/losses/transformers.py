"""Losses on the states and attention scores of transformers, and the maps from student layers to teacher layers."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_tasks.losses.base import Loss, check_option, check_positive, check_same_shape

EPS = 1e-6
MASKED = -100.0

Layers = Tensor | Sequence[Tensor]


class PatientHidden(Loss):
    """Patient distillation: the class token's states in the student's layers follow those in chosen teacher layers.

    With the class token's state `h` of M matched layers, `u = h / ||h||`:
    `1 / (N M D) * sum over samples and layers of ||u_s - u_t||^2`; the paper: the sum alone.

    Sun et al. 2019 (PKD, arXiv 1908.09355), the loss of the patient teacher. `patience_layers` gives the layers.

    Args:
        normalise: bring the states to length 1 first; off: compare them as they are.
        reduction: `mean` over samples, layers and features, as in the authors' code, to which the published weights of
            10 to 1000 belong; `sum` over all three, as in the paper: N * M * D times as much.

    Shapes: tokens (N, L, D), of which the first is compared, or states (N, D); a list of them for several layers, which
    may differ in L and D. States of M layers stacked to (N, M, D) are passed as `list(states.unbind(1))`. `mean` is
    invariant to the batch size, `sum` grows with it.

    *Deviations*: the default is the mean of the authors' code, without its cast to float16. A state shorter than 1e-6
    has no direction: it counts as zero and gets no gradient. With layers of different D, `mean` divides by all numbers
    of a sample.
    """

    Reduction = Literal["mean", "sum"]

    paper: ClassVar[str] = "Sun et al., Patient Knowledge Distillation for BERT Model Compression, EMNLP 2019"
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "tokens"
    usual_weight: ClassVar[float] = 100.0
    usual_tap: ClassVar[str] = "backbone.blocks.5"

    def __init__(self, normalise: bool = True, reduction: Reduction = "mean") -> None:
        super().__init__()
        check_option(reduction, get_args(self.Reduction), "reduction", self)
        self.normalise = normalise
        self.reduction = reduction

    def compute(self, student: Layers, teacher: Layers) -> Tensor:
        differences = []
        for ours, theirs in matched(student, teacher, self):
            first, second = self.state(ours), self.state(theirs)
            check_same_shape(first, second, self)
            differences.append(first - second)
        squares = torch.cat(differences, dim=1).square()
        return squares.mean() if self.reduction == "mean" else squares.sum()

    def state(self, tokens: Tensor) -> Tensor:
        """The state (N, D) that is compared, of tokens (N, L, D) or the state itself."""
        if tokens.ndim not in (2, 3):
            raise ValueError(f"PatientHidden reads tokens (N, L, D) or states (N, D), not {tuple(tokens.shape)}.")
        state = tokens[:, 0] if tokens.ndim == 3 else tokens
        return unit(state) if self.normalise else state


class TinyBERTHidden(Loss):
    """Hidden states of TinyBERT: the student's states, through a linear layer, regress the teacher's.

    `sum over layers of mean of (W h_s + b - h_t)^2`, the mean over samples, tokens and features; one `W` and `b` for
    all layers.

    Jiao et al. 2020, equation 8 (arXiv 1909.10351). `layer_map` gives the layers.

    Args:
        bias: whether the linear layer `fit` has a bias, as in the authors' code; the paper writes none.

    Context: `token_mask` (N, L), not zero where a token counts. Without it padded tokens count too, as in the authors'
    code.

    Shapes: tokens (N, L, D), a list of them for several layers. D may differ between student and teacher, but not
    between layers. Invariant to the batch size; with a mask, weighted by the number of tokens. `fit` is sized by
    `prepare` and trained with the student.

    *Deviations*: as in the authors' code `fit` has a bias and is there even if the widths agree, and a list that begins
    with the embeddings shares it with them. The paper's own matrix for the embeddings is a `TinyBERTEmbedding` beside
    this loss.
    """

    paper: ClassVar[str] = (
        "Jiao et al., TinyBERT: Distilling BERT for Natural Language Understanding, Findings of EMNLP 2020"
    )
    year: ClassVar[int] = 2020
    taps: ClassVar[str] = "tokens"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "backbone.blocks.5"

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.bias = bias
        self.fit: nn.Linear | None = None

    def prepare(self, student: Layers, teacher: Layers, **context: Any) -> None:
        ours, theirs = matched(student, teacher, self)[0]
        self.fit = nn.Linear(ours.shape[-1], theirs.shape[-1], bias=self.bias, device=ours.device)

    def compute(self, student: Layers, teacher: Layers, token_mask: Tensor | None = None) -> Tensor:
        terms = [self.layer(ours, theirs, token_mask) for ours, theirs in matched(student, teacher, self)]
        return torch.stack(terms).sum()

    def layer(self, student: Tensor, teacher: Tensor, token_mask: Tensor | None) -> Tensor:
        """The term of one layer."""
        if self.fit is None:
            raise ValueError(f"{type(self).__name__} has no linear layer yet: call prepare(student, teacher) first.")
        fits = student.shape[-1] == self.fit.in_features and teacher.shape[-1] == self.fit.out_features
        if not fits or student.shape[:-1] != teacher.shape[:-1]:
            raise ValueError(
                f"{type(self).__name__} maps tokens of {self.fit.in_features} features to as many tokens of "
                f"{self.fit.out_features}, but the student's shape is {tuple(student.shape)} and the teacher's "
                f"{tuple(teacher.shape)}."
            )
        squares = (self.fit(student) - teacher).square().mean(dim=-1)
        return masked_mean(squares, None if token_mask is None else kept(token_mask, squares, self))


class TinyBERTEmbedding(TinyBERTHidden):
    """Embeddings of TinyBERT: the student's embedded tokens, through a linear layer, regress the teacher's.

    `mean of (W e_s + b - e_t)^2` over samples, tokens and features.

    Jiao et al. 2020, equation 9 (arXiv 1909.10351).

    Args:
        bias: whether the linear layer `fit` has a bias, as in the authors' code; the paper writes none.

    Context: `token_mask` (N, L), not zero where a token counts. Without it padded tokens count too, as in the authors'
    code.

    Shapes: tokens (N, L, D); D may differ between student and teacher. Invariant to the batch size; with a mask,
    weighted by the number of tokens. `fit` is sized by `prepare` and trained with the student.

    *Deviations*: the bias is the authors' code's. The linear layer belongs to this loss alone, as in the paper. In the
    authors' code it is that of the hidden states: for that, put the embeddings first in the list of a `TinyBERTHidden`.
    """

    usual_tap: ClassVar[str] = "backbone.patch_embed"


class TinyBERTAttention(Loss):
    """Attention of TinyBERT: the student's attention scores, before the softmax, regress the teacher's.

    `sum over layers of mean of (A_s - A_t)^2`, `A = Q K' / sqrt(d)`, the mean over samples, heads, queries and keys;
    scores of -100 or less are masked ones and count as 0 on their side.

    Jiao et al. 2020, equation 7 (arXiv 1909.10351). `layer_map` gives the layers.

    Context: `token_mask` (N, L), not zero where a token counts: pairs with a padded query or key are left out. Without
    it the padded rows of queries count too, as in the authors' code.

    Shapes: scores (N, heads, L, L), the same for both, a list of them for several layers. Invariant to the batch size;
    with a mask, weighted by the number of pairs.

    *Deviations*: none. Scores of minus infinity are masked ones too. Fused attention kernels never show their scores,
    so that a tap needs a model that computes them.
    """

    paper: ClassVar[str] = TinyBERTHidden.paper
    year: ClassVar[int] = 2020
    taps: ClassVar[str] = "attention"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "backbone.blocks.5.attn.scores"

    def compute(self, student: Layers, teacher: Layers, token_mask: Tensor | None = None) -> Tensor:
        terms = [self.layer(ours, theirs, token_mask) for ours, theirs in matched(student, teacher, self)]
        return torch.stack(terms).sum()

    def layer(self, student: Tensor, teacher: Tensor, token_mask: Tensor | None) -> Tensor:
        """The term of one layer."""
        check_same_shape(student, teacher, self)
        if student.ndim != 4:
            raise ValueError(f"TinyBERTAttention reads scores (N, heads, L, L), not {tuple(student.shape)}.")
        squares = (_unmasked(student) - _unmasked(teacher)).square().mean(dim=1)
        if token_mask is None:
            return squares.mean()
        tokens = kept(token_mask, squares[:, 0], self)
        return masked_mean(squares, tokens[:, :, None] & tokens[:, None, :])


class TinyBERTPrediction(Loss):
    """Predictions of TinyBERT: cross-entropy of the student with the teacher's probabilities.

    `1 / (N K) * sum over samples and classes of -softmax(t / T) * log softmax(s / T)`; for maps the mean runs over
    pixels as well.

    Jiao et al. 2020, equation 10 (arXiv 1909.10351).

    Args:
        temperature: T, above 0.

    Shapes: logits (N, K) or (N, K, ...), the same for both. Invariant to the batch size.

    *Deviations*: the mean is over classes too, as in the authors' code: 1 / K of the usual soft cross-entropy. No
    factor T^2, as in both.
    """

    paper: ClassVar[str] = TinyBERTHidden.paper
    year: ClassVar[int] = 2020
    taps: ClassVar[str] = "logits"
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = "logits"

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        check_positive(temperature, "temperature", self)
        self.temperature = temperature

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_same_shape(student, teacher, self)
        soft_labels = F.softmax(teacher / self.temperature, dim=1)
        return -(soft_labels * F.log_softmax(student / self.temperature, dim=1)).mean()


class LayerMap(NamedTuple):
    """Teacher layers for a student's layers.

    Attributes:
        hidden: for the embeddings and every layer of the student, an index into the teacher's list of hidden states,
            which begins with the embeddings; one more than the student has layers.
        attention: for every layer of the student, an index into the teacher's layers.
    """

    hidden: list[int]
    attention: list[int]


def layer_map(student_layers: int, teacher_layers: int) -> LayerMap:
    """TinyBERT's uniform map: layer m of the student learns from layer m * k of the teacher, k = teacher / student.

    Raises:
        ValueError: unless the teacher's number of layers is a multiple of the student's.
    """
    if student_layers < 1 or teacher_layers < 1 or teacher_layers % student_layers:
        raise ValueError(
            f"layer_map: {teacher_layers} layers of a teacher are no multiple of {student_layers} of a student."
        )
    step = teacher_layers // student_layers
    return LayerMap([i * step for i in range(student_layers + 1)], [i * step + step - 1 for i in range(student_layers)])


def patience_layers(kind: Literal["skip", "last"], student_layers: int, teacher_layers: int) -> list[int]:
    """Teacher layers for the student's layers but the last, counted from 0: the strategies of patient distillation.

    Args:
        kind: `skip` takes evenly spaced layers (1, 3, 5, 7, 9 for 6 of 12), `last` the last ones (6 to 10).
        student_layers: the student's number of layers, at least 2.
        teacher_layers: the teacher's, at least as many.

    Raises:
        ValueError: for another kind, or numbers that do not fit.
    """
    if kind not in ("skip", "last"):
        raise ValueError(f"patience_layers: kind={kind!r} is none of 'skip', 'last'.")
    if not 2 <= student_layers <= teacher_layers:
        raise ValueError(
            f"patience_layers needs at least 2 layers of the student and as many of the teacher, not {student_layers} "
            f"and {teacher_layers}."
        )
    if kind == "last":
        return list(range(teacher_layers - student_layers, teacher_layers - 1))
    return [(i + 1) * teacher_layers // student_layers - 1 for i in range(student_layers - 1)]


def matched(student: Layers, teacher: Layers, loss: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Layer by layer, the student's tensor and the teacher's; a single tensor is one layer.

    Raises:
        ValueError: unless there are as many of the student as of the teacher, and at least one.
    """
    ours, theirs = ([x] if isinstance(x, Tensor) else list(x) for x in (student, teacher))
    if len(ours) != len(theirs) or not ours:
        raise ValueError(
            f"{type(loss).__name__} compares layers one by one, but the student has {len(ours)} and the teacher "
            f"{len(theirs)}."
        )
    return list(zip(ours, theirs, strict=True))


def unit(states: Tensor) -> Tensor:
    """Rows of length 1; shorter ones than `EPS` become zero, without gradient."""
    lengths = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
    long = lengths > EPS
    return torch.where(long, states / torch.where(long, lengths, 1.0), 0.0)


def kept(token_mask: Tensor, tokens: Tensor, loss: nn.Module) -> Tensor:
    """Which tokens count, (N, L) of bool.

    Raises:
        ValueError: unless the mask has the shape (N, L) of `tokens`.
    """
    if token_mask.shape != tokens.shape:
        raise ValueError(
            f"{type(loss).__name__}: token_mask has the shape {tuple(token_mask.shape)}, but there are "
            f"{tuple(tokens.shape)} tokens."
        )
    return token_mask != 0


def masked_mean(values: Tensor, counts: Tensor | None) -> Tensor:
    """Mean of the values that count; 0 if none does."""
    if counts is None:
        return values.mean()
    return torch.where(counts, values, 0.0).sum() / counts.sum().clamp_min(1)


def _unmasked(scores: Tensor) -> Tensor:
    return torch.where(scores > MASKED, scores, 0.0)
