"""A transfer: one line of a recipe. Student tap, teacher tap, connector, loss, weight, and when it acts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kd_tasks.connectors import build_connector
from kd_tasks.errors import UserError
from kd_tasks.losses.base import AdversarialLoss
from kd_tasks.registry import LOSSES
from kd_tasks.schedules import Moment, Weight

Tapped = Tensor | list[Tensor]


class Transfer(nn.Module):
    """What is compared, where, how, and how strongly.

    Args:
        name: the transfer's key in the recipe.
        loss: a loss, or its config.
        on: the tap on both sides; short for `student` and `teacher` with the same tap.
        student: the student's tap, or several, which reach the loss as a list.
        teacher: the teacher's tap, `a.logits` where there are several teachers; or several.
        target: a tap of the student itself in place of the teacher's (self-distillation).
        connector: brings the student's tap to the shape that the loss needs; a short name or a config. Several taps
            get one each.
        teacher_connector: the same on the teacher's side.
        context: which target the loss gets under a name of its own, such as `dict(label='mask')`.
        weight: a number, or a schedule, see `Weight`.
        begin: the moment from which the transfer acts, such as `epoch 5` or `iter 1000`.
        end: the moment from which it acts no more.

    Raises:
        UserError: if the taps are named twice or not at all, or a part cannot be built.
    """

    def __init__(
        self,
        name: str,
        loss: nn.Module | Mapping[str, Any],
        on: str | Sequence[str] | None = None,
        student: str | Sequence[str] | None = None,
        teacher: str | Sequence[str] | None = None,
        target: str | Sequence[str] | None = None,
        connector: str | Mapping[str, Any] | None = None,
        teacher_connector: str | Mapping[str, Any] | None = None,
        context: Mapping[str, str] | None = None,
        weight: float | Mapping[str, Any] = 1.0,
        begin: str = "iter 0",
        end: str | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.where = f"model.transfers.{name}"
        self.loss: Any = LOSSES.build(loss, f"{self.where}.loss") if isinstance(loss, Mapping) else loss
        self.reads_teacher = getattr(self.loss, "reads_teacher", True)
        try:
            self.student_taps, self.teacher_taps = named_taps(on, student, teacher, target, self.reads_teacher)
        except ValueError as error:
            raise UserError(f"{self.where}: {error}") from None
        self.own_target = target is not None
        self.several_student = not isinstance(student if on is None else on, str)
        self.several_teacher = not isinstance(next((t for t in (on, teacher, target) if t is not None), ""), str)
        ours, theirs = (len(taps) for taps in (self.student_taps, self.teacher_taps))
        self.connector = _connectors(connector, ours, self.several_student, f"{self.where}.connector")
        self.teacher_connector = _connectors(
            teacher_connector, theirs, self.several_teacher, f"{self.where}.teacher_connector"
        )
        if (connector or teacher_connector) and self.reads_teacher and ours != theirs and 1 not in (ours, theirs):
            raise UserError(
                f"{self.where}: connectors lead from tap to tap, but there are {ours} of the student and {theirs} of "
                "the teacher."
            )
        self.renamed = _checked_names(context or {}, self.loss, f"{self.where}.context")
        self.weight = Weight(weight, f"{self.where}.weight")
        self.begin = Moment.parse(begin, f"{self.where}.begin")
        self.end = Moment.parse(end, f"{self.where}.end") if end is not None else None

    @property
    def adversarial(self) -> bool:
        """Whether the loss has a critic with an optimiser of its own."""
        return isinstance(self.loss, AdversarialLoss)

    @property
    def needs_image_gradient(self) -> bool:
        """Whether the loss differentiates what is tapped with respect to the picture."""
        return bool(getattr(self.loss, "needs_image_gradient", False))

    def reads(self, name: str) -> bool:
        """Whether the loss reads `name` of the context as it is called there, not a target renamed to it."""
        return name not in self.renamed and name in self.loss.context_names()

    @property
    def ever_off(self) -> bool:
        """Whether there are moments at which this transfer does not act."""
        return self.end is not None or self.begin.value > 0 or min(self.weight.start, self.weight.end) == 0

    def strength(self, iteration: int, iterations_per_epoch: int) -> float:
        """The weight in an iteration; 0 where the transfer does not act."""
        if iteration < self.begin.iteration(iterations_per_epoch):
            return 0.0
        if self.end is not None and iteration >= self.end.iteration(iterations_per_epoch):
            return 0.0
        return self.weight.at(iteration, iterations_per_epoch)

    def pair(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> tuple[Tapped, Tapped | None]:
        """The tensors to compare, through the connectors, out of those that were tapped."""
        ours = _side(student, self.student_taps, self.several_student, self.connector)
        if not self.reads_teacher:
            return ours, None
        return ours, _side(teacher, self.teacher_taps, self.several_teacher, self.teacher_connector)

    def forward(self, student: Tapped, teacher: Tapped | None, context: Mapping[str, Any]) -> Tensor:
        """The loss of a pair, unweighted."""
        return self.loss(student, teacher, **self.named(context))

    def named(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """`context` with the names that the loss knows.

        Raises:
            UserError: if there is no target of a name that the recipe gives.
        """
        missing = [target for target in self.renamed.values() if target not in context]
        if missing:
            known = ", ".join(context)
            raise UserError(f"{self.where}.context: there is no target {missing[0]!r} in a batch; there are: {known}.")
        return {**context, **{name: context[target] for name, target in self.renamed.items()}}

    def show_modules(self, module: Callable[[str], nn.Module]) -> None:
        """Hand the modules behind the teacher's taps to a loss that reads their weights; else those of the student's.

        Args:
            module: the module behind a tap, by the tap's name.

        Raises:
            UserError: if they are not of the kind that the loss reads.
        """
        read = getattr(self.loss, "read_teacher", None)
        if read is None:
            return
        try:
            read([module(tap) for tap in self.teacher_taps or self.student_taps])
        except (AttributeError, ValueError) as error:
            raise UserError(f"{self.where}: {error}") from error

    def prepare(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], image: Tensor) -> None:
        """Give connectors and loss their sizes by probed taps of the picture `image`, and try the transfer.

        Raises:
            UserError: if the shapes do not fit, or if no gradient can reach the student.
        """
        if not any(student[tap].requires_grad for tap in self.student_taps):
            raise UserError(
                f"{self.where}: no gradient can reach the student from {', '.join(self.student_taps)}; the tap lies "
                "before everything that trains, or the student's layers before it are frozen."
            )
        context = _probed_context(image, student[self.student_taps[0]])
        try:
            self._size(student, teacher, context)
            if self.loss.missing(context):
                return
            self.eval()
            value = self.loss(*self.pair(student, teacher), **context)
            self.train()
        except (UserError, ValueError, RuntimeError, AssertionError, IndexError) as error:
            raise UserError(f"{self.where}: {error}") from error
        if value.dim() != 0:
            raise UserError(f"{self.where}: {type(self.loss).__name__} gives {tuple(value.shape)}, not a scalar.")
        self._check_gradients(value, [student[tap] for tap in self.student_taps])

    def _size(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], context: Mapping[str, Any]) -> None:
        if not self.reads_teacher and (self.connector is not None or self.teacher_connector is not None):
            raise UserError(f"{type(self.loss).__name__} reads no teacher, so that a connector has no size to reach.")
        ours, theirs = [student[tap] for tap in self.student_taps], [teacher[tap] for tap in self.teacher_taps]
        _size_connectors(self.connector, ours, theirs)
        _size_connectors(self.teacher_connector, theirs, ours)
        first, second = self.pair(student, teacher)
        self.loss.prepare(first, second, **{k: v for k, v in context.items() if k in self.loss.context_names()})

    def _check_gradients(self, value: Tensor, taps: Sequence[Tensor]) -> None:
        if not value.requires_grad or not any(_reached(value, [tap for tap in taps if tap.requires_grad])):
            raise UserError(
                f"{self.where}: {type(self.loss).__name__} gives no gradient to {', '.join(self.student_taps)}."
            )
        for key, connector in (("connector", self.connector), ("teacher_connector", self.teacher_connector)):
            weights = list(connector.parameters()) if connector is not None else []
            if weights and not all(_reached(value, weights)):
                raise UserError(
                    f"{self.where}.{key}: no gradient reaches its weights, so that it would stay random: "
                    f"{type(self.loss).__name__} takes this side as given. Use one without weights, or leave it out."
                )


def named_taps(
    on: Any, student: Any, teacher: Any, target: Any, reads_teacher: bool = True
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The student's taps and those they are compared with, out of the four keys of a recipe.

    Args:
        on: the tap of both sides.
        student: the student's tap, or several.
        teacher: the teacher's tap, or several.
        target: a tap of the student in place of the teacher's, or several.
        reads_teacher: whether the loss has a teacher's side.

    Raises:
        ValueError: if the taps are named twice or not at all; the message does not say where.
    """
    if on is not None and (student, teacher, target) != (None, None, None):
        raise ValueError("'on' names the tap of both sides; leave out 'student', 'teacher' and 'target', or 'on'.")
    if teacher is not None and target is not None:
        raise ValueError("'teacher' and 'target' exclude each other: a target is a tap of the student itself.")
    if not reads_teacher:
        if (on, teacher, target) != (None, None, None) or not student:
            raise ValueError("this loss reads the student alone: give 'student', and no 'on', 'teacher' or 'target'.")
        return ((student,) if isinstance(student, str) else tuple(student)), ()
    ours, theirs = (on, on) if on is not None else (student, teacher if teacher is not None else target)
    if not ours or not theirs:
        raise ValueError("a transfer needs a tap on both sides: 'on', or 'student' with 'teacher' or 'target'.")
    first, second = ((side,) if isinstance(side, str) else tuple(side) for side in (ours, theirs))
    return first, second


def _connectors(cfg: str | Mapping[str, Any] | None, taps: int, several: bool, where: str) -> nn.Module | None:
    """The connector of a tap, or a list of them for several taps; None without a config."""
    if cfg is None or not several:
        return build_connector(cfg, where)
    built = (build_connector(cfg, where) for _ in range(taps))
    return nn.ModuleList(part for part in built if part is not None)


def _size_connectors(connector: nn.Module | None, own: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Size each tap's connector by its counterpart on the other side; by the first one where the numbers differ."""
    if connector is None:
        return
    parts: Iterable[Any] = connector if isinstance(connector, nn.ModuleList) else [connector]
    counterparts = others if len(own) == len(others) else [others[0]] * len(own)
    for part, tap, other in zip(parts, own, counterparts, strict=True):
        part.prepare(tap, other)


def _side(taps: Mapping[str, Tensor], names: Sequence[str], several: bool, connector: nn.Module | None) -> Tapped:
    values = [taps[name] for name in names]
    if connector is None:
        return values if several else values[0]
    if not isinstance(connector, nn.ModuleList):
        return connector(values[0])
    return [join(value) for join, value in zip(connector, values, strict=True)]


def _checked_names(context: Mapping[str, str], loss: Any, where: str) -> dict[str, str]:
    known = loss.context_names()
    unknown = [name for name in context if name not in known]
    if unknown:
        reads = ", ".join(known) or "none"
        raise UserError(f"{where}: {type(loss).__name__} reads no {unknown[0]!r}; the context it reads: {reads}.")
    return dict(context)


def _probed_context(image: Tensor, tapped: Tensor) -> dict[str, Tensor]:
    """A stand-in for the context of a batch: the probe's pictures, their places, and the first class everywhere."""
    label = torch.zeros(len(tapped), *tapped.shape[2:], dtype=torch.long)
    return {"image": image, "index": torch.arange(len(image)), "label": label}


def _reached(value: Tensor, tensors: Sequence[Tensor]) -> list[bool]:
    """Which of `tensors` the gradient of `value` reaches."""
    gradients = torch.autograd.grad(value, tensors, retain_graph=True, allow_unused=True)
    return [gradient is not None for gradient in gradients]
