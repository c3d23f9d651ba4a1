"""Pseudo labels of landmarks: their geometry, quality and selection, and the procedure that makes them.

Points are (x, y) in pixels, (0, 0) the centre of the upper left pixel. Errors are shares of a norm, not percent.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from kd_tasks.errors import UserError, nearest
from kd_tasks.schedules import Moment

Source = Literal["own", "other", "mean"]
Restart = Literal["continue", "initial"]
Selection = Literal["scorer", "random", "all"]
ScorerInputs = Literal["heatmaps", "points"]
Deployed = Literal["student", "partner", "both"]
Norm = str | Sequence[Sequence[int]] | None

LEARNERS = ("student", "partner")
BOX_NORMS = ("box", "face_size")
GENTLEST, HARSHEST = -2.0, 3.0  # powers of two of tau
OUTLIERS, OUTLIER_REACH = 0.2, 3.0

# --- The procedure ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Procedure:
    """The options of `TeacherSupervisesStudents` that say how its rounds go; see there.

    Raises:
        UserError: for a value that makes no sense.
    """

    rounds: int = 3
    warm_up: str = "epoch 10"
    round_epochs: int | None = None
    labels_from: Source = "other"
    mirrored_labels: bool = False
    restart: Restart = "continue"
    selection: Selection = "scorer"
    share: float = 1.0
    pseudo_weight: float = 1.0
    held_out: float = 0.1
    tau: float | str = "median"
    norm: Norm = None
    scorer_inputs: ScorerInputs = "heatmaps"
    scorer_steps: int = 300
    scorer_lr: float = 1e-3
    scorer_batch: int = 16
    scorer_augments: bool = True
    corruptions: float = 0.25
    analyse: bool = False

    def __post_init__(self) -> None:
        for name, words in WORDS.items():
            one_of(name, getattr(self, name), get_args(words))
        for name in ("rounds", "scorer_steps", "scorer_batch", "round_epochs"):
            value = getattr(self, name)
            if value is None and name == "round_epochs":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"model.{name}: a whole number from 1 on belongs here, not {value!r}.")
        self._check_numbers()
        if isinstance(self.tau, str) and self.tau != "median":
            raise UserError(f"model.tau: 'median' or a number above zero belongs here, not {self.tau!r}.")
        if self.norm is not None and not isinstance(self.norm, str) and not _is_pair_of_groups(self.norm):
            raise UserError(
                "model.norm: the name of a norm, 'box', or two groups of points such as ((36,), (45,)) belong here, "
                f"not {self.norm!r}."
            )
        if self.first_epoch < 1:
            raise UserError("model.warm_up: students that were never trained cannot label; give 'epoch 1' or later.")

    def _check_numbers(self) -> None:
        for name, (least, most, open_below) in RANGES.items():
            value = getattr(self, name)
            if isinstance(value, str):
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not least <= value <= most or (open_below and value == least):
                below = "above" if open_below else "from"
                upper = f" to {most:g}" if math.isfinite(most) else " on" if not open_below else ""
                raise UserError(f"model.{name}: a number {below} {least:g}{upper} belongs here, not {value!r}.")

    @property
    def first_epoch(self) -> int:
        """The epoch before which the first round is.

        Raises:
            UserError: if the warm-up does not end between two epochs.
        """
        moment = Moment.parse(self.warm_up, "model.warm_up")
        if moment.unit != "epoch" or not moment.value.is_integer():
            raise UserError(
                f"model.warm_up: rounds begin between two epochs, so write whole epochs such as 'epoch 10', not "
                f"{self.warm_up!r}."
            )
        return int(moment.value)

    def first_epochs(self, epochs: int) -> tuple[int, ...]:
        """The epochs before which the rounds are, of a training of `epochs` epochs.

        Raises:
            UserError: if they do not fit.
        """
        left = epochs - self.first_epoch
        length = self.round_epochs or max(1, left // self.rounds)
        firsts = tuple(self.first_epoch + length * number for number in range(self.rounds))
        if left <= 0:
            raise UserError(
                f"model.warm_up: it ends at {self.warm_up!r}, and the training after {epochs} epochs "
                "(train_cfg.max_epochs), so that no round would follow. Shorten it, or train longer."
            )
        if firsts[-1] >= epochs:
            raise UserError(
                f"model.rounds: round {self.rounds} would begin before epoch {firsts[-1]}, and the training has "
                f"{epochs} epochs (train_cfg.max_epochs). Lower 'rounds' or 'round_epochs', or train longer."
            )
        return firsts

    def author(self, learner: str) -> str:
        """Whose labels the student called `learner` is given: a student's, or the `mean` of both."""
        if self.labels_from == "mean":
            return "mean"
        return learner if self.labels_from == "own" else LEARNERS[1 - LEARNERS.index(learner)]


WORDS = {"labels_from": Source, "restart": Restart, "selection": Selection, "scorer_inputs": ScorerInputs}
RANGES = {
    "share": (0.0, 1.0, True),
    "pseudo_weight": (0.0, math.inf, True),
    "held_out": (0.0, 0.9, False),
    "tau": (0.0, math.inf, True),
    "scorer_lr": (0.0, math.inf, True),
    "corruptions": (0.0, 1.0, False),
}
OPTIONS = tuple(f.name for f in dataclasses.fields(Procedure))


def one_of(name: str, value: Any, words: Sequence[str]) -> None:
    """Raise a `UserError` unless `value`, of the key `name` of the model, is one of `words`."""
    if value not in words:
        raise UserError(f"model.{name}: {value!r} is none of {', '.join(words)}.{nearest(str(value), words)}")


def _is_pair_of_groups(value: Any) -> bool:
    def is_list(one: Any) -> bool:
        return isinstance(one, list | tuple) and len(one) > 0

    return is_list(value) and len(value) == 2 and all(is_list(g) and all(isinstance(i, int) for i in g) for g in value)


# --- Geometry --------------------------------------------------------------------------------------------------------


def to_input(points: Tensor, affine: Tensor, swaps: Tensor | None = None) -> Tensor:
    """Points of original pictures in the pixels of inputs; where the input is mirrored, each under its new name.

    Args:
        points: (N, K, 2), in pixels of the original pictures.
        affine: (N, 2, 3), from there to the inputs; a negative determinant mirrors.
        swaps: the point that each is in a mirrored picture, (K,); None if the points have no sides.
    """
    if swaps is not None:
        mirrored = torch.linalg.det(affine[..., :2]) < 0
        points = points[:, swaps.to(points.device)].where(mirrored[:, None, None], points)
    return points @ affine[..., :2].mT + affine[..., 2].unsqueeze(1)


def to_original(points: Tensor, affine: Tensor, swaps: Tensor | None = None) -> Tensor:
    """The inverse of `to_input`."""
    inverse = torch.linalg.inv(affine[..., :2])
    found = (points - affine[..., 2].unsqueeze(1)) @ inverse.mT
    if swaps is None:
        return found
    mirrored = torch.linalg.det(affine[..., :2]) < 0
    return found[:, swaps.to(found.device)].where(mirrored[:, None, None], found)


# --- Quality ---------------------------------------------------------------------------------------------------------


def resolved_norm(norm: Norm, metainfo: Mapping[str, Any]) -> Any:
    """`box`, or two groups of points, as `norm` and the data set's `metainfo` say.

    Raises:
        UserError: if the data set has no norm of that name, or none at all.
    """
    norms = dict(metainfo.get("norms") or {})
    chosen = norm if norm is not None else metainfo.get("default_norm")
    if chosen is None:
        raise UserError("model.norm: the data set names no default; give 'box' or two groups of points.")
    if not isinstance(chosen, str):
        return tuple(tuple(group) for group in chosen)
    if chosen in norms:
        return norms[chosen]
    if chosen in BOX_NORMS:
        return "box"
    known = [*norms, "box"]
    raise UserError(f"model.norm: there is no norm {chosen!r}.{nearest(chosen, known)} There are: {', '.join(known)}.")


def norm_lengths(norm: Any, targets: Mapping[str, Tensor]) -> Tensor:
    """The norm of each face in pixels of the input, (N,); not-a-number where its points are not visible.

    Args:
        norm: as `resolved_norm` gives it; of a box it is the square root of the area.
        targets: `points` and `visible`, or `box` and `to_input`.
    """
    if norm == "box":
        scale = torch.linalg.det(targets["to_input"][..., :2].double()).abs().sqrt()
        return targets["box"][:, 2:].double().prod(1).sqrt() * scale
    points = targets["points"].double()
    points = points.where(targets["visible"].bool().unsqueeze(-1), torch.nan)
    first, second = (points[:, list(group)].mean(1) for group in norm)
    return (first - second).norm(dim=-1)


def normalised_errors(points: Tensor, targets: Mapping[str, Tensor], lengths: Tensor) -> Tensor:
    """Mean distance of the visible points from the truth over the norm, (N,); not-a-number where there is none.

    Args:
        points: predicted, (N, K, 2), in pixels of the input.
        targets: `points` and `visible`.
        lengths: the norm of each face, (N,).
    """
    visible = targets["visible"].bool()
    distances = (points.double() - targets["points"].double()).norm(dim=-1).where(visible, 0.0)
    errors = distances.sum(1) / visible.sum(1) / lengths.where(lengths > 0, torch.nan)
    return errors.where(visible.any(1), torch.nan)


def corrupted(points: Tensor, lengths: Tensor, tau: float, generator: torch.Generator) -> Tensor:
    """Points moved away from the truth: each by itself, the whole face, or a fifth of them far.

    The mean distance that a face's points are moved is drawn between `tau / 4` and `8 tau` norms, evenly on a
    logarithmic scale.

    Args:
        points: (N, K, 2).
        lengths: the norm of each face, (N,).
        tau: the error of a usual label.
        generator: of random numbers, on the CPU.
    """
    count, width = points.shape[:2]
    power = GENTLEST + (HARSHEST - GENTLEST) * torch.rand(count, generator=generator)
    reach = tau * power.exp2() / math.sqrt(math.pi / 2)  # of a normal vector in the plane the mean length is that root
    alone = torch.randn(count, width, 2, generator=generator)
    together = torch.randn(count, 1, 2, generator=generator).expand_as(alone)
    far = torch.rand(count, width, 1, generator=generator) < OUTLIERS
    kinds = torch.stack([alone, together, OUTLIER_REACH * alone * far])
    chosen = kinds[torch.randint(len(kinds), (count,), generator=generator), torch.arange(count)]
    moved = chosen.to(points) * reach.to(points)[:, None, None] * lengths.to(points)[:, None, None]
    return points + moved


# --- Selection -------------------------------------------------------------------------------------------------------


def kept(unlabelled: int, number: int, rounds: int, share: float = 1.0) -> int:
    """How many pseudo labels round `number` (from 1) of `rounds` keeps: `round(|U| r / R * share)`."""
    return round(unlabelled * number / rounds * share)


def best(quality: Tensor, count: int) -> Tensor:
    """Places of the `count` highest qualities, the highest first; not-a-number comes last, equals in their order."""
    return quality.nan_to_num(nan=-torch.inf).argsort(descending=True, stable=True)[:count]


# --- What a round leaves ---------------------------------------------------------------------------------------------


@dataclass
class PseudoLabels:
    """The labels of one author for every sample of the data set.

    Attributes:
        points: (n, K, 2), float64, in pixels of the original pictures.
        quality: (n,), float64; not-a-number where none was given.
        selected: which are trained on, (n,).
    """

    points: Tensor
    quality: Tensor
    selected: Tensor


@dataclass
class Rounds:
    """Where the procedure stands; all tensors on the CPU.

    Attributes:
        held_out: labelled samples that the students do not train on, (n,).
        swaps: the point that each is in a mirrored picture, (K,); None if the points have no sides.
        done: rounds done.
        labels: by author.
        history: what each round found, numbers by name.
    """

    held_out: Tensor
    swaps: Tensor | None = None
    done: int = 0
    labels: dict[str, PseudoLabels] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    def pool(self) -> list[int]:
        """The samples that some author's labels are selected of, in order."""
        chosen = [labels.selected for labels in self.labels.values()]
        return torch.stack(chosen).any(0).nonzero().flatten().tolist() if chosen else []

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        labels = {author: dict(vars(one)) for author, one in self.labels.items()}
        return {**vars(self), "labels": labels}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> "Rounds":
        """What `state_dict` gave."""
        labels = {author: PseudoLabels(**one) for author, one in state["labels"].items()}
        return cls(**{**state, "labels": labels, "history": list(state["history"])})
