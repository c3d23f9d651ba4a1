"""Adaptive knowledge aggregator: the weight of each teacher follows the risk on the labelled samples (Wu et al. 2019).

Several teachers teach one student through one loss, `L = sum over k of alpha_k L_k` with `alpha = softmax(beta)`. Which
of them help is asked of the few labelled samples: the student takes a step on the unlabelled ones on trial, and the
weights move so that the risk after that step falls.
"""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor, nn
from torch.func import functional_call

from kd_tasks.distiller import Distiller, places
from kd_tasks.errors import UserError, nearest
from kd_tasks.losses import LogEuclidean
from kd_tasks.losses.base import AdversarialLoss, full_precision
from kd_tasks.losses.gram import directions, safe_sqrt, squared_distances
from kd_tasks.registry import CRITERIA, LOSSES, TASK_MODELS
from kd_tasks.schedules import Moment
from kd_tasks.taps import Taps
from kd_tasks.task import Criterion, Decoder, Meta, Outputs
from kd_tasks.teachers import FrozenTeacher
from kd_tasks.transfer import Transfer

DISTILLED = "distilled"
"""The target that names the samples which the joined loss compares: their places in the batch, (M,)."""

PATIENCE = 10

Samples = Literal["unlabelled", "all"]
Weights = Mapping[str, Tensor]


# --- One update ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adaptation:
    """What one update of the teachers' weights found.

    Attributes:
        beta: the new logits of the weights, (K,).
        ahead: the student's weights after the step on trial, by name.
        risk: the risk there, a scalar.
        alpha_gradient: of the risk in alpha, the weights taken as free, (K,).
        beta_gradient: of the risk in beta, (K,).
    """

    beta: Tensor
    ahead: dict[str, Tensor]
    risk: Tensor
    alpha_gradient: Tensor
    beta_gradient: Tensor

    @property
    def alpha(self) -> Tensor:
        """The new weights, (K,)."""
        return self.beta.softmax(0)


def adapted(
    terms: Callable[[Weights], Sequence[Tensor]],
    risk: Callable[[Weights], Tensor],
    weights: Weights,
    beta: Tensor,
    inner_lr: float,
    weight_lr: float,
) -> Adaptation:
    """One two-step adaptation, in closed form, without a graph of second order.

    With `g_k` the gradient of the term `L_k` at the weights W, `W' = W - eta * sum over k of alpha_k g_k` and `r` the
    gradient of the risk at W': `d risk / d alpha_k = -eta <r, g_k>`, and from there to beta through the softmax. All
    g_k and r are averaged over the ranks, so that each rank finds the same.

    Args:
        terms: the K terms as scalars, at given weights.
        risk: the risk as a scalar, at given weights.
        weights: W, by name.
        beta: logits of the teachers' weights, (K,).
        inner_lr: eta, the rate of the step on trial.
        weight_lr: the rate at which beta moves.
    """
    here = _leaves(weights)
    values = terms(here)
    last = len(values) - 1
    gradients = _averaged(torch.stack([_gradient(v, here, keep_graph=k < last) for k, v in enumerate(values)]))
    alpha = beta.softmax(0).to(gradients)
    steps = (inner_lr * (alpha @ gradients)).split([w.numel() for w in here.values()])
    ahead = _leaves({name: w - step.view(w.shape) for (name, w), step in zip(weights.items(), steps, strict=True)})
    value = risk(ahead)
    alpha_gradient = -inner_lr * (gradients @ _averaged(_gradient(value, ahead)))
    beta_gradient = (alpha * (alpha_gradient - alpha @ alpha_gradient)).to(beta)
    return Adaptation(
        beta=beta - weight_lr * beta_gradient,
        ahead={name: w.detach() for name, w in ahead.items()},
        risk=value.detach(),
        alpha_gradient=alpha_gradient,
        beta_gradient=beta_gradient,
    )


def _leaves(weights: Weights) -> dict[str, Tensor]:
    return {name: w.detach().requires_grad_() for name, w in weights.items()}


def _gradient(value: Tensor, weights: Weights, keep_graph: bool = False) -> Tensor:
    """The gradient of a scalar in all weights as one vector; zero where it depends on none."""
    leaves = list(weights.values())
    if not value.requires_grad:
        return torch.cat([torch.zeros_like(w).flatten() for w in leaves])
    found = torch.autograd.grad(value, leaves, retain_graph=keep_graph, allow_unused=True)
    return torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for g, w in zip(found, leaves, strict=True)])


def _averaged(tensor: Tensor) -> Tensor:
    if not _distributed():
        return tensor
    dist.all_reduce(tensor)
    return tensor / dist.get_world_size()


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


# --- The risk --------------------------------------------------------------------------------------------------------


class _PairRisk(nn.Module):
    """A risk on the distances of labelled samples."""

    def __init__(self, margin: float, on: str, relu: bool, normalise: bool) -> None:
        super().__init__()
        if not margin > 0:
            raise ValueError(f"margin must be above zero, not {margin!r}.")
        self.margin = margin
        self.on = on
        self.relu = relu
        self.normalise = normalise

    def distances(self, outputs: Outputs) -> Tensor:
        """Euclidean distances of all samples, (N, N), in double precision."""
        rows = named_output(outputs, self.on, self).flatten(1).double()
        rows = rows.relu() if self.relu else rows
        return safe_sqrt(squared_distances(directions(rows) if self.normalise else rows))


@CRITERIA.register
class TripletRisk(_PairRisk):
    """Batch-hard triplet hinge: `mean over anchors of max(0, margin + d(hardest positive) - d(hardest negative))`.

    Args:
        margin: of the Euclidean distance.
        on: the output or tap of the student that holds the embedding.
        relu: set negative features to zero first, as the similarity of `LogEuclidean` does.
        normalise: bring embeddings to length 1.

    An anchor needs another sample of its identity and one of another identity; without any anchor the risk is zero, and
    a batch cannot be judged by it.
    """

    def __init__(self, margin: float = 0.3, on: str = "embedding", relu: bool = True, normalise: bool = True) -> None:
        super().__init__(margin, on, relu, normalise)

    def forward(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`dict(triplet=scalar)` of samples that all have a `label`, (N,)."""
        distances, label = self.distances(outputs), targets["label"]
        same, anchors = label.unsqueeze(0) == label.unsqueeze(1), self.anchors(label)
        hardest = distances.where(same, -torch.inf).amax(1) - distances.where(~same, torch.inf).amin(1)
        hinge = (self.margin + hardest.where(anchors, -self.margin)).clamp_min(0)
        return {"triplet": hinge.sum() / anchors.sum().clamp_min(1)}

    def anchors(self, label: Tensor) -> Tensor:
        """Which samples are anchors, (N,)."""
        same = label.unsqueeze(0) == label.unsqueeze(1)
        return (same.sum(1) > 1) & ~same.all(1)

    def judges(self, label: Tensor) -> bool:
        """Whether the risk can judge samples of these labels, (N,)."""
        return bool(self.anchors(label).any())


@CRITERIA.register
class ContrastiveRisk(_PairRisk):
    """Contrastive risk: mean over pairs of `d^2` for one identity and `max(0, margin - d)^2` for two.

    Args:
        margin: of the Euclidean distance.
        on: the output or tap of the student that holds the embedding.
        relu: set negative features to zero first, as the similarity of `LogEuclidean` does.
        normalise: bring embeddings to length 1.
    """

    def __init__(self, margin: float = 1.0, on: str = "embedding", relu: bool = True, normalise: bool = True) -> None:
        super().__init__(margin, on, relu, normalise)

    def forward(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`dict(contrastive=scalar)` of samples that all have a `label`, (N,)."""
        distances, label = self.distances(outputs), targets["label"]
        same = label.unsqueeze(0) == label.unsqueeze(1)
        values = distances.where(same, (self.margin - distances).clamp_min(0)).square()
        pairs = torch.ones_like(values).triu(1)
        return {"contrastive": (values * pairs).sum() / pairs.sum().clamp_min(1)}


@CRITERIA.register
class LabelRisk(nn.Module):
    """Cross-entropy between the scores of the student's classes and the `label`, mean over samples, in nats.

    Args:
        on: the output or tap of the student that holds the scores, (N, K).
    """

    def __init__(self, on: str = "logits") -> None:
        super().__init__()
        self.on = on

    def forward(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`dict(cross_entropy=scalar)` of samples that all have a `label`, (N,)."""
        return {"cross_entropy": F.cross_entropy(named_output(outputs, self.on, self).float(), targets["label"])}


RISKS = {"triplet": "TripletRisk", "contrastive": "ContrastiveRisk", "cross_entropy": "LabelRisk"}


def named_output(outputs: Outputs, name: str, risk: nn.Module) -> Tensor:
    """The output called `name`.

    Raises:
        UserError: if there is none.
    """
    if name not in outputs:
        raise UserError(
            f"model.risk: {type(risk).__name__} reads {name!r}, but the student has no such output and the transfer no "
            f"such tap.{nearest(name, outputs)} There are: {', '.join(outputs)}."
        )
    return outputs[name]


def _built_risk(risk: Any) -> Any:
    if isinstance(risk, str):
        if risk not in RISKS:
            raise UserError(f"model.risk: {risk!r} is no known risk.{nearest(risk, RISKS)} Known: {', '.join(RISKS)}.")
        risk = {"type": RISKS[risk]}
    built = CRITERIA.build(risk, "model.risk") if isinstance(risk, Mapping) else risk
    return built.requires_grad_(False) if isinstance(built, nn.Module) else built


# --- The joined loss -------------------------------------------------------------------------------------------------


class JoinedLoss(nn.Module):
    """One loss, applied to each of several teachers: `sum over k of alpha_k loss(student, teacher_k)`.

    It stands in the place of a transfer's loss, is given a list of teachers, and keeps `beta` for the checkpoint.

    Args:
        loss: a loss that takes one teacher.
        teachers: how many there are.
    """

    reads_teacher = True
    beta: Tensor

    def __init__(self, loss: Any, teachers: int) -> None:
        super().__init__()
        self.loss = loss
        self.register_buffer("beta", torch.zeros(teachers))

    @property
    def alpha(self) -> Tensor:
        """The weights, (K,), with sum 1."""
        return self.beta.softmax(0)

    @property
    def smallest_batch(self) -> int:
        """How many samples the loss needs."""
        return getattr(self.loss, "smallest_batch", 1)

    def context_names(self) -> dict[str, bool]:
        """The loss's, and the places of the samples to compare."""
        return {**self.loss.context_names(), DISTILLED: False}

    def missing(self, context: Collection[str]) -> str:
        """What the loss needs and a context with these names lacks, in words; empty if nothing."""
        lacking: str = self.loss.missing(context)
        return lacking

    def prepare(self, student: Tensor, teacher: Sequence[Tensor], **context: Any) -> None:
        """Give the loss its sizes, which hold for all teachers."""
        self.loss.prepare(student, teacher[0], **context)

    def forward(self, student: Tensor, teacher: Sequence[Tensor], **context: Any) -> Tensor:
        """The terms' weighted sum."""
        if isinstance(self.loss, LogEuclidean):
            with self._weighted():
                student, teacher, chosen = self._chosen(student, teacher, context)
                return self.loss(student, teacher, **chosen)
        terms = torch.stack(self.terms(student, teacher, **context))
        return (self.alpha.to(terms) * terms).sum()

    def terms(self, student: Tensor, teacher: Sequence[Tensor], **context: Any) -> list[Tensor]:
        """The terms of the teachers, unweighted."""
        student, teachers, chosen = self._chosen(student, teacher, context)
        return [self.loss(student, one, **chosen) for one in teachers]

    def _chosen(
        self, student: Tensor, teachers: Sequence[Tensor], context: Mapping[str, Any]
    ) -> tuple[Tensor, list[Tensor], dict[str, Any]]:
        """Of everything, the samples to compare; of the context, what the loss reads."""
        read = {name: value for name, value in context.items() if name in self.loss.context_names()}
        if DISTILLED not in context:
            return student, list(teachers), read
        rows, count = context[DISTILLED], len(student)
        chosen = {name: _rows(value, rows, count) for name, value in read.items()}
        return student[rows], [teacher[rows] for teacher in teachers], chosen

    @contextmanager
    def _weighted(self) -> Iterator[None]:
        """Let the loss itself weight the teachers: it then decomposes the student's matrix once."""
        self.loss.weights = self.alpha
        try:
            yield
        finally:
            self.loss.weights = None


def _rows(value: Any, rows: Tensor, count: int) -> Any:
    """The entries of `value` at the places `rows`, if it has one for each of `count` samples."""
    if isinstance(value, Tensor) and value.dim() and len(value) == count:
        return value[rows]
    if isinstance(value, list) and len(value) == count:
        return [value[place] for place in rows.tolist()]
    return value


def shared_teachers(transfers: Mapping[str, Mapping[str, Any]], name: str) -> list[str]:
    """The teachers that the transfer called `name` compares one tap of the student with, one tap a teacher.

    Raises:
        UserError: if there is no such transfer, or it compares something else.
    """
    if not isinstance(name, str) or name not in transfers:
        hint, known = nearest(str(name), transfers), ", ".join(transfers) or "none"
        raise UserError(f"model.aggregate: there is no transfer {name!r}.{hint} There are: {known}.")
    transfer, where = transfers[name], f"model.transfers.{name}"
    taps = transfer.get("teacher")
    if isinstance(taps, str) or not isinstance(taps, Sequence) or len(taps) < 2:
        raise UserError(
            f"{where}.teacher: to weight teachers takes a list of at least two taps, one a teacher, such as "
            f"['north.embedding', 'south.embedding']; this is {taps!r}."
        )
    teachers = [str(tap).partition(".")[0] for tap in taps]
    if len(set(teachers)) < len(teachers):
        raise UserError(f"{where}.teacher: each teacher has one weight and so one tap, but the taps are {list(taps)}.")
    if not isinstance(transfer.get("student"), str):
        raise UserError(f"{where}.student: each teacher is compared with one tap of the student; name it.")
    return teachers


def _with_joined_loss(
    transfers: Mapping[str, Mapping[str, Any]], name: str
) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    """`transfers` with the loss of the one called `name` joined over its teachers, and the teachers' names.

    Raises:
        UserError: if there is no such transfer, or it does not compare one tap with several teachers.
    """
    teachers = shared_teachers(transfers, name)
    transfer, where = transfers[name], f"model.transfers.{name}"
    given = transfer.get("loss")
    loss = LOSSES.build(given, f"{where}.loss") if isinstance(given, Mapping) else given
    _check_loss(loss, f"{where}.loss")
    return {**transfers, name: {**transfer, "loss": JoinedLoss(loss, len(teachers))}}, teachers


def _check_loss(loss: Any, where: str) -> None:
    kind = type(loss).__name__
    if not isinstance(loss, nn.Module):
        raise UserError(f"{where}: a transfer needs a loss, such as dict(type='LogEuclidean').")
    if getattr(loss, "weights", None) is not None:
        raise UserError(f"{where}.weights: the weights of the teachers are found in training; leave this key out.")
    one_sided = not getattr(loss, "reads_teacher", True)
    if one_sided or isinstance(loss, AdversarialLoss) or hasattr(loss, "read_teacher"):
        raise UserError(f"{where}: {kind} does not compare two tensors alone, so that teachers cannot share it.")
    if getattr(loss, "needs_image_gradient", False):
        raise UserError(
            f"{where}: {kind} differentiates with respect to the picture, which has one gradient a teacher."
        )


# --- The distiller ---------------------------------------------------------------------------------------------------


@TASK_MODELS.register
class AdaptiveDistiller(Distiller):
    """A distiller whose teachers share one transfer, each with a weight that follows the risk on labelled samples.

    With `L_k` the loss of the student and teacher k on the unlabelled samples, the transfer `aggregate` has the value
    `sum over k of alpha_k L_k`, `alpha = softmax(beta)`, uniform at the start. Every `interval` iterations, before the
    student's own step: `W' = W - inner_lr * sum over k of alpha_k grad L_k(W)`, and beta moves by `weight_lr` against
    the gradient of the risk of W' on the labelled samples, see `adapted`. A sample is labelled if its target `label` is
    not negative.

    Wu et al., Distilled Person Re-Identification: Towards a More Scalable System, CVPR 2019, sections 3.2 and 4::

        model = dict(
            type='AdaptiveDistiller',
            student=dict(...),
            teachers=dict(north=dict(..., checkpoint='...'), south=dict(...), old=dict(...)),
            aggregate='similarity',
            transfers=dict(similarity=dict(
                student='embedding', teacher=['north.embedding', 'south.embedding', 'old.embedding'],
                loss=dict(type='LogEuclidean'), weight=0.1)),
            criterion=dict(...))

    Cost: an update takes two forward passes of the student, a backward pass for each teacher and one for the risk; the
    teachers are run once, as in every step. It keeps one gradient of the student's size a teacher. With 5 teachers and
    interval 5 the student's share of a step takes about twice the time, and the teachers' as long as before.

    The log has the weight of each teacher as `alpha.NAME`. They are part of the run's checkpoint, not of `student.pth`.

    Args:
        student: the student network, or its config.
        transfers: the recipe: by name, a `Transfer` config.
        teachers: at least two, by name.
        aggregate: name of the transfer that the teachers share. Its `teacher` is a list of taps, one a teacher; its
            loss is one that compares two tensors. Other transfers have no part in the adaptation.
        interval: iterations between two updates of the weights.
        begin: the moment of the first one, such as `epoch 5`; until then the weights are uniform. A student that has
            learnt nothing yet says little about its teachers, and a weight that was lost is slow to come back.
        inner_lr: rate of the step on trial, a plain gradient step without the transfer's `weight`.
        weight_lr: rate of the teachers' weights. The gradient is as small as `inner_lr`, and goes with the size of the
            loss: watch `alpha.NAME` in the log.
        risk: `triplet`, `contrastive`, `cross_entropy`, or a criterion config. It is given the outputs of the student
            and the taps of its transfers, both of the labelled samples alone, and their targets; its terms are added.
        adaptive: off: the weights stay uniform, and everything else is the same.
        on: samples that the teachers are compared on: `unlabelled` of the batch, or all of them where those are fewer
            than the loss needs; `all`.
        criterion: task losses, or its config.
        decoder: predictions from outputs, or its config.
        data_preprocessor: batch to device and to the student's input, or its config.
        checkpoint: weights of the student to start from.
        task_weight: weight of the task losses, a number or a schedule.
        input_size: (H, W) of the training pictures, for the probe that sizes the connectors. The runner fills it in.

    *Deviations*: the form of the risk, the softmax and the plain inner step are choices, as the paper's text was not at
    hand and no official code is known. In an update both passes are in full precision, and run the whole batch in the
    student's training mode, so that batch normalisation sees the statistics that it sees in training; its buffers and
    the random state are as before. An update is left out where the batch of any rank has no labelled samples, or none
    that the risk can judge.

    Raises:
        UserError: for every fault of the recipe that can be found without data; in training, if no batch of an epoch
            had labelled samples that the risk can judge.
    """

    updates: Tensor

    def __init__(
        self,
        student: nn.Module | dict[str, Any],
        transfers: Mapping[str, Mapping[str, Any]],
        teachers: Mapping[str, FrozenTeacher | dict[str, Any]],
        aggregate: str,
        interval: int = 5,
        begin: str = "iter 0",
        inner_lr: float = 0.01,
        weight_lr: float = 1.0,
        risk: str | Criterion | dict[str, Any] = "triplet",
        adaptive: bool = True,
        on: Samples = "unlabelled",
        criterion: Criterion | dict[str, Any] | None = None,
        decoder: Decoder | dict[str, Any] | None = None,
        data_preprocessor: nn.Module | dict[str, Any] | None = None,
        checkpoint: str | None = None,
        task_weight: float | Mapping[str, Any] = 1.0,
        input_size: Sequence[int] = (64, 64),
    ) -> None:
        _check_options(interval, inner_lr, weight_lr, on)
        first = Moment.parse(begin, "model.begin")
        with torch.random.fork_rng(devices=[]):
            joined, names = _with_joined_loss(transfers, aggregate)
            built_risk = _built_risk(risk)
        super().__init__(
            student=student,
            transfers=joined,
            teachers=teachers,
            criterion=criterion,
            decoder=decoder,
            data_preprocessor=data_preprocessor,
            checkpoint=checkpoint,
            task_weight=task_weight,
            input_size=input_size,
        )
        self.aggregate = aggregate
        self.weighted = tuple(names)
        self.interval, self.inner_lr, self.weight_lr = interval, inner_lr, weight_lr
        self.begin = first
        self.adaptive, self.on = adaptive, on
        self.risk = built_risk
        self.register_buffer("updates", torch.zeros(2, dtype=torch.long))

    _due = False
    _waiting: tuple[Mapping[str, Any], Sequence[Meta]] | None = None

    @classmethod
    def refuse_unfit(cls, model: Mapping[str, Any], train_cfg: Mapping[str, Any]) -> None:
        """Teachers whose weights are to be found that do not share one transfer; see `TaskModel`."""
        transfers = model.get("transfers")
        entries = transfers if isinstance(transfers, Mapping) else {}
        if model.get("aggregate") is not None:
            shared_teachers({n: e for n, e in entries.items() if isinstance(e, Mapping)}, model["aggregate"])

    @property
    def alpha(self) -> dict[str, Tensor]:
        """The weights of the teachers by name, scalars on the device, with sum 1."""
        return dict(zip(self.weighted, self._joined.alpha.unbind(), strict=True))

    @property
    def _acts(self) -> bool:
        return self.iteration >= self.begin.iteration(self.iterations_per_epoch)

    def step_through(
        self, forward: Callable[..., Any], data: dict[str, Any], optim_wrapper: OptimWrapper | OptimWrapperDict
    ) -> dict[str, Tensor]:
        """The distiller's step, after an update of the weights where one is due; the log has the weights."""
        targets = data.get("targets", {})
        chosen = self._distilled(targets, len(data["inputs"]))  # on the CPU, so that no GPU has to be waited for
        self._due = self.adaptive and self._acts and self.iteration % self.interval == 0
        try:
            log = super().step_through(forward, {**data, "targets": {**targets, DISTILLED: chosen}}, optim_wrapper)
        finally:
            self._due, self._waiting = False, None
        return {**log, **{f"alpha.{name}": weight for name, weight in self.alpha.items()}}

    def losses(self, inputs: Tensor, targets: Mapping[str, Any], meta: Sequence[Meta] = ()) -> dict[str, Tensor]:
        """The distiller's terms; the shared transfer compares the chosen samples only."""
        if DISTILLED not in targets:
            targets = {**targets, DISTILLED: self._distilled(targets, len(inputs))}
        self._waiting = (targets, meta) if self._due else None
        return super().losses(inputs, targets, meta)

    def _teach(self, inputs: Tensor, active: Any) -> dict[str, Tensor]:
        """What the teachers say; where an update is due, their weights are brought up to it."""
        taught = super()._teach(inputs, active)
        waiting, self._waiting = self._waiting, None
        if waiting is not None and self._shared in active:
            self._adapt(inputs.detach(), *waiting, taught)
        return taught

    def _adapt(self, inputs: Tensor, targets: Mapping[str, Any], meta: Sequence[Meta], taught: Weights) -> None:
        """Update the weights, if every rank has labelled samples that the risk can judge."""
        label = _labels(targets, len(inputs))
        labelled = (label >= 0).nonzero().flatten()
        judged = getattr(self.risk, "judges", lambda label: len(label) > 0)
        if not _on_every_rank(judged(label[labelled]), inputs.device):
            self._left_out()
            return
        context = {**targets, "image": inputs}
        if self._shared.reads("index"):
            context["index"] = places(meta, inputs.device)
        trial = _Trial(self._student_taps, self._shared)

        def terms(outputs: Outputs, tapped: dict[str, Tensor]) -> list[Tensor]:
            pair: Any = self._shared.pair(tapped, taught)
            return self._joined.terms(*pair, **self._shared.named(context))

        def risk(outputs: Outputs, tapped: dict[str, Tensor]) -> Tensor:
            count = len(inputs)
            seen = {name: _rows(value, labelled, count) for name, value in {**tapped, **outputs}.items()}
            truth = {name: _rows(value, labelled, count) for name, value in targets.items() if name != DISTILLED}
            return torch.stack([full_precision(value) for value in self.risk(seen, truth).values()]).sum()

        weights = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        with _on_trial(self.network, inputs.device):
            found = adapted(
                functools.partial(trial.at, inputs=inputs, then=terms),
                functools.partial(trial.at, inputs=inputs, then=risk),
                weights,
                self._joined.beta,
                self.inner_lr,
                self.weight_lr,
            )
        self._joined.beta.copy_(found.beta)
        self.updates[0] += 1

    def _left_out(self) -> None:
        """Count an update that was due and could not be.

        Raises:
            UserError: if there never were any.
        """
        self.updates[1] += 1
        done, left_out = self.updates.tolist()
        if not done and left_out >= PATIENCE and self.iteration >= self.iterations_per_epoch - 1:
            raise UserError(
                f"model: {left_out} updates of the teachers' weights were due, and no batch had what {self._needed()}. "
                "Label some samples of the training data and let the sampler put some into every batch, or set "
                "model.adaptive=False for uniform weights."
            )
        if left_out == 1:
            print_log(
                f"iteration {self.iteration}: the batch has not what {self._needed()}; the teachers' weights stay as "
                "they are there",
                logger="current",
                level=30,
            )

    def _needed(self) -> str:
        words = "the risk needs: samples whose 'label' is not negative"
        pairs = ", of two identities, with two of one" if hasattr(self.risk, "judges") else ""
        return words + pairs

    def _distilled(self, targets: Mapping[str, Any], count: int) -> Tensor:
        """Places of the samples that the shared transfer compares, (M,)."""
        if self.on == "all" or "label" not in targets:
            return torch.arange(count)
        label = _labels(targets, count)
        chosen = (label < 0).nonzero().flatten()
        return (
            chosen if len(chosen) >= max(1, self._joined.smallest_batch) else torch.arange(count, device=label.device)
        )

    @property
    def _shared(self) -> Transfer:
        transfer: Any = self.transfers[self.aggregate]
        return transfer

    @property
    def _joined(self) -> JoinedLoss:
        return self._shared.loss


class _Trial(nn.Module):
    """The student and the shared transfer as one module, which runs at other weights and changes no buffer."""

    def __init__(self, taps: Taps, transfer: Transfer) -> None:
        super().__init__()
        self.network, self.transfer = taps.network, transfer
        self._taps = taps

    def forward(self, inputs: Tensor, then: Callable[..., Any]) -> Any:
        return then(*self._taps.run(inputs))

    def at(self, weights: Weights, inputs: Tensor, then: Callable[..., Any]) -> Any:
        """`then(outputs, tapped)` of the student at `weights`."""
        state = {name: buffer.clone() for name, buffer in self.named_buffers()}
        state |= {f"network.{name}": weight for name, weight in weights.items()}
        return functional_call(self, state, (inputs, then))


@contextmanager
def _on_trial(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Full precision, gradients, no compiled code, whose backward pass runs once only; the random state comes back."""
    compiled, network._compiled_call_impl = network._compiled_call_impl, None
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), torch.autocast(device.type, enabled=False), torch.enable_grad():
            yield
    finally:
        network._compiled_call_impl = compiled


def _labels(targets: Mapping[str, Any], count: int) -> Tensor:
    """The target `label`, (N,).

    Raises:
        UserError: if there is none, or not one number a sample.
    """
    label = targets.get("label")
    if not isinstance(label, Tensor) or label.shape != (count,):
        what = "there is none" if label is None else f"it is {getattr(label, 'shape', type(label).__name__)}"
        raise UserError(
            "model: AdaptiveDistiller tells labelled samples by the target 'label', one number a sample and negative "
            f"for unlabelled ones, but {what}."
        )
    return label


def _on_every_rank(ready: bool, device: torch.device) -> bool:
    if not _distributed():
        return ready
    flag = torch.tensor(int(ready), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MIN)
    return bool(flag)


def _check_options(interval: Any, inner_lr: float, weight_lr: float, on: str) -> None:
    if not isinstance(interval, int) or interval < 1:
        raise UserError(f"model.interval: a whole number from 1 on belongs here, not {interval!r}.")
    for name, value in (("inner_lr", inner_lr), ("weight_lr", weight_lr)):
        if not value > 0:
            raise UserError(f"model.{name}: a rate is above zero, not {value!r}.")
    if on not in get_args(Samples):
        known = get_args(Samples)
        raise UserError(f"model.on: {on!r} is none of {', '.join(known)}.{nearest(str(on), known)}")
