"""What all losses share: the call, the precision, the detached teacher, the checks of shapes."""

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kd_tasks.losses.gather import all_gather

TAPS = {
    "logits": "class scores (N, K) or of every pixel (N, K, H, W)",
    "several logits": "class scores (N, K) of several heads or networks",
    "maps": "feature maps (N, C, H, W)",
    "several maps": "feature maps (N, C, H, W) of several layers",
    "embeddings": "features (N, D); maps are flattened",
    "several embeddings": "features (N, D) of several layers or networks",
    "outputs": "regressed values (N, D), or heatmaps (N, K, H, W)",
    "tokens": "hidden states (N, L, D) of a transformer",
    "attention": "attention scores (N, heads, L, L) of a transformer",
}


class Loss(nn.Module, ABC):
    """Base of all distillation losses: `loss(student, teacher, **context) -> scalar`.

    A subclass writes `compute`, and its formula is all that stands there. The base class
    - leaves autocast and lifts bfloat16 and float16 to float32 (float64 stays float64),
    - detaches the teacher, unless `detach_teacher` is off,
    - passes on of the context (labels, masks, the image) what `compute` names.

    The class attributes feed `kd-tasks list losses` and the page of all losses: `paper`, `year`, `taps` (a key of
    `TAPS`), `usual_weight` (of the transfer, at the default settings) and `usual_tap` (as in a config). The page prints
    the second paragraph of the docstring as the formula.

    `smallest_batch` is how many samples the loss needs; a smaller batch is an error. A loss with `reads_teacher` off
    has a student's side alone, and is called as `loss(student, **context)`. `one_of` names context of which at least
    one must be given.
    """

    paper: ClassVar[str] = ""
    year: ClassVar[int] = 0
    taps: ClassVar[str] = ""
    usual_weight: ClassVar[float] = 1.0
    usual_tap: ClassVar[str] = ""
    smallest_batch: ClassVar[int] = 1
    reads_teacher: ClassVar[bool] = True
    one_of: ClassVar[tuple[str, ...]] = ()
    detach_teacher: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()

    @classmethod
    @functools.cache
    def context_names(cls) -> dict[str, bool]:
        """Names of the context that `compute` reads, each with whether it must be given."""
        parameters = list(inspect.signature(cls.compute).parameters.values())[3:]
        return {p.name: p.default is inspect.Parameter.empty for p in parameters}

    def prepare(self, student: Any, teacher: Any, **context: Any) -> None:
        """Create parameters whose sizes depend on the inputs. Called once, with probed tensors, before training."""

    def forward(self, student: Tensor, teacher: Tensor | None = None, **context: Any) -> Tensor:
        """The loss, a scalar.

        Raises:
            ValueError: for shapes that do not fit, or context that `compute` needs and the call lacks.
        """
        if teacher is None and self.reads_teacher:
            raise ValueError(f"{type(self).__name__} compares the student with a teacher, but is given no teacher.")
        if self.detach_teacher:
            teacher = detached(teacher)
        student, teacher, chosen = self.batch(full_precision(student), full_precision(teacher), self.choose(context))
        rows = len(_first(student))
        if rows < self.smallest_batch:
            raise ValueError(f"{type(self).__name__} needs a batch of at least {self.smallest_batch}, not {rows}.")
        with torch.autocast(_first(student).device.type, enabled=False):
            return self.compute(student, teacher, **chosen)

    def batch(self, student: Any, teacher: Any, context: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
        """What `compute` is given; a loss that compares samples may join the batches of all ranks here."""
        return student, teacher, context

    def choose(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Of `context`, what `compute` names, in full precision."""
        names = self.context_names()
        missing = self.missing(context)
        if missing:
            raise ValueError(f"{type(self).__name__} needs {missing} beside the student and the teacher.")
        return {name: full_precision(value) for name, value in context.items() if name in names}

    def missing(self, context: Collection[str]) -> str:
        """What `compute` needs and a context with these names lacks, in words; empty if nothing."""
        lacking = [name for name, needed in self.context_names().items() if needed and name not in context]
        if self.one_of and not set(self.one_of) & set(context):
            lacking.append(" or ".join(self.one_of))
        return ", ".join(lacking)

    @abstractmethod
    def compute(self, student: Any, teacher: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The formula, in full precision. Further parameters are context, given by name."""


class RelationalLoss(Loss):
    """A loss that compares samples with samples, so that its value belongs to the whole batch.

    Args:
        gather: join the batches of all ranks first, with gradient, so that N processes with batch B have the loss and
            the parameter gradients of one process with batch N * B. Off: each rank compares its own samples.

    Context tensors that `compute` names are joined as well; their first axis is the batch.
    """

    smallest_batch: ClassVar[int] = 2

    def __init__(self, gather: bool = False) -> None:
        super().__init__()
        self.gather = gather

    def batch(self, student: Any, teacher: Any, context: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
        if not self.gather:
            return student, teacher, context
        return gathered(student), gathered(teacher), {name: gathered(value) for name, value in context.items()}


class AdversarialLoss(Loss):
    """A loss with a critic that is trained against the student by an optimiser of its own.

    `compute` is the student's term and must leave no gradient in the critic's favour; `critic_loss` is what the critic
    minimises, on detached student and teacher tensors.
    """

    critic: nn.Module

    def critic_loss(self, student: Tensor, teacher: Tensor, **context: Any) -> Tensor:
        """The critic's objective, in full precision, with both inputs detached."""
        chosen = self.choose(context)
        with torch.autocast(_first(student).device.type, enabled=False):
            return self.compute_critic(full_precision(detached(student)), full_precision(detached(teacher)), **chosen)

    @abstractmethod
    def compute_critic(self, student: Any, teacher: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The critic's formula; the same context names as `compute`."""


def full_precision(value: Any) -> Any:
    """`value` with half-precision tensors lifted to float32; lists and tuples element by element."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if isinstance(value, list | tuple):
        return type(value)(full_precision(v) for v in value)
    return value


def detached(value: Any) -> Any:
    """`value` cut off from the graph; lists and tuples element by element."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, list | tuple):
        return type(value)(detached(v) for v in value)
    return value


def gathered(value: Any) -> Any:
    """`value` with the rows of all ranks; lists and tuples element by element; anything but tensors as it is."""
    if isinstance(value, Tensor):
        return all_gather(value)
    if isinstance(value, list | tuple):
        return type(value)(gathered(v) for v in value)
    return value


def check_same_shape(student: Tensor, teacher: Tensor, loss: nn.Module) -> None:
    """Raise `ValueError` with both shapes if they differ."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"{type(loss).__name__} compares tensors of one shape, but the student's is {tuple(student.shape)} and the "
            f"teacher's {tuple(teacher.shape)}. A connector can bring the student's to the teacher's."
        )


def check_maps(student: Tensor, teacher: Tensor, loss: nn.Module) -> None:
    """Raise `ValueError` with both shapes unless both are maps (N, C, H, W) of one batch size."""
    if student.ndim != 4 or teacher.ndim != 4 or len(student) != len(teacher):
        raise ValueError(
            f"{type(loss).__name__} compares maps (N, C, H, W) of one batch size, but the student's shape is "
            f"{tuple(student.shape)} and the teacher's {tuple(teacher.shape)}."
        )


def check_same_size(student: Tensor, teacher: Tensor, loss: nn.Module) -> None:
    """Raise `ValueError` with both shapes unless both are maps (N, C, H, W) with the same N, H and W."""
    check_maps(student, teacher, loss)
    if student.shape[2:] != teacher.shape[2:]:
        raise ValueError(
            f"{type(loss).__name__} compares maps of one height and width, but the student's shape is "
            f"{tuple(student.shape)} and the teacher's {tuple(teacher.shape)}. "
            f"A connector can bring the student's to the teacher's."
        )


def check_option(value: object, known: Collection[object], name: str, loss: nn.Module) -> None:
    """Raise `ValueError` if the argument `name` of `loss` is none of the `known` values."""
    if value not in known:
        raise ValueError(f"{type(loss).__name__}: {name}={value!r} is none of {', '.join(map(repr, known))}.")


def check_positive(value: float, name: str, loss: nn.Module) -> None:
    """Raise `ValueError` if the argument `name` of `loss` is not above zero."""
    if not value > 0:
        raise ValueError(f"{type(loss).__name__}: {name} must be above zero, not {value!r}.")


def _first(value: Any) -> Tensor:
    first: Tensor = value[0] if isinstance(value, list | tuple) else value
    return first
