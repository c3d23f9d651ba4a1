"""The task model of Teacher Supervises Students."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, get_args

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from kd_tasks.errors import UserError
from kd_tasks.methods.teacher_supervises.pseudo_labels import (
    LEARNERS,
    OPTIONS,
    Deployed,
    Norm,
    Procedure,
    Restart,
    Rounds,
    ScorerInputs,
    Selection,
    Source,
    corrupted,
    norm_lengths,
    normalised_errors,
    one_of,
    to_input,
)
from kd_tasks.registry import CODECS, NETWORKS, TASK_MODELS
from kd_tasks.taps import evaluating
from kd_tasks.task import Criterion, Decoder, Meta, Outputs, TaskModel

HEATMAPS = "heatmaps"
CODEC_METHODS = ("channels", "encode", "decode", "as_output", "pictures", "merge_flipped")


# --- The networks ----------------------------------------------------------------------------------------------------


def finer_mean(maps: Sequence[Tensor]) -> Tensor:
    """Mean of maps (N, C, h, w), brought to the size of the finest."""
    size = max((tuple(m.shape[-2:]) for m in maps), key=math.prod)
    return torch.stack([resized(m, size) for m in maps]).mean(0)


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (N, C, h, w) at another size, bilinear between the centres of their cells."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


@NETWORKS.register
class BothStudents(nn.Module):
    """Two heatmap networks as one: the mean of their maps, at the finer size.

    Args:
        student: a network with the output `heatmaps`, (N, C, h, w).
        partner: another one, with as many maps.
    """

    def __init__(self, student: nn.Module, partner: nn.Module) -> None:
        super().__init__()
        self.student, self.partner = student, partner

    def forward(self, images: Tensor) -> Outputs:
        """Images (N, 3, H, W) to `heatmaps`."""
        return {HEATMAPS: finer_mean([self.student(images)[HEATMAPS], self.partner(images)[HEATMAPS]])}


# --- The task model --------------------------------------------------------------------------------------------------


@TASK_MODELS.register
class TeacherSupervisesStudents(TaskModel):
    """Two students that label each other's unlabelled samples, and a teacher that picks the labels.

    Up to `warm_up` both learn from the labelled samples: the same batches, each its own loss, one optimiser for both,
    the loss is the sum. Then, before each of `rounds` stretches of epochs, the teacher (`scorer`) learns to tell the
    quality `q = exp(-e / tau)` of maps on a picture, with `e` the normalised mean error of the points that they hold;
    each student labels every unlabelled sample, and of its labels the `round(|U| r / R * share)` of highest quality are
    trained on in round r. An unlabelled sample without a selected label takes no part.

    Labels lie in pixels of the original pictures and go through each sample's own augmentation. The hook
    `SupervisedRounds`, which a training gets by itself, makes them, and they are in the checkpoint. It needs a data set
    with `is_labelled` (one bool a sample) and `plain()`, whose samples have `points`, `visible`, `labelled`, `to_input`
    (and `box`) in their targets and `index` in their meta, and whose `metainfo` may have `swaps`, `norms` and
    `default_norm`. A sampler with an attribute `pool` is told which unlabelled samples are of use.

    Args:
        student: a network with the output `heatmaps`, or its config; built before anything else that draws random
            numbers, so that it starts from the weights that it would have if trained alone with the same seed.
        partner: the other student, of another architecture.
        scorer: the teacher: picture and maps at the picture's size, (N, 3 + C, H, W), to `quality`, (N,).
        criterion: task losses of one student, or its config; leaves out samples whose target `labelled` is false.
        decoder: predictions from outputs, or its config.
        data_preprocessor: batch to device and to the students' input, or its config.
        codec: of the heatmaps (see `kd_tasks.vision.heatmaps`), or its config; that of the criterion or the decoder if
            not given.
        rounds: R.
        warm_up: when the first round is, such as `epoch 10`.
        round_epochs: epochs from one round to the next. Default: what is left after the warm-up in equal parts. The
            last round lasts to the end.
        labels_from: whose labels a student learns from: the `other`'s, its `own`, or the `mean` of both students' maps.
        mirrored_labels: label by the mean of the maps of a picture and of its mirror image (flip test).
        restart: `continue` from the current weights, or go back to the `initial` ones, with an optimiser without
            memory, in each round. The learning rate follows its schedule over the whole training.
        selection: by the `scorer`; `random`, equally many; or `all` in every round. The last two train no teacher and
            are there for comparison.
        share: of the unlabelled samples that the last round keeps at most.
        pseudo_weight: weight of a sample with a pseudo label; one with a true label has weight 1.
        held_out: share of the labelled samples that the students do not train on before the last round, so that the
            teacher sees maps of faces that the students do not know by heart, and `tau` is an error of such faces.
        tau: the error at which the quality is `1 / e`, as a share of the norm; `median`: that of the students' errors
            on the samples that are held out (on all labelled ones if none are).
        norm: what errors are divided by: the name of one of the data set's norms, `box` (root of its area), or two
            groups of points, whose means' distance it is. Default: the data set's.
        scorer_inputs: the students' `heatmaps`, or maps drawn afresh from the `points` that they hold.
        scorer_steps: of Adam in each round; the teacher's weights stay from round to round.
        scorer_lr: the rate.
        scorer_batch: pictures in a step, and in a batch of predictions.
        scorer_augments: show the teacher augmented pictures when it learns. Labels are made on plain ones.
        corruptions: share of the teacher's examples whose maps are those of true points, moved away (see `corrupted`);
            the others are predictions of the students.
        analyse: write down how the quality agrees with the error on the unlabelled samples (Spearman's rank
            correlation). This reads their points, for the log alone.
        deployed: what is tested, saved as `student.pth` and exported: the `student`, the `partner`, or `both`, a
            network that gives the mean of their maps.
        checkpoint: weights of the student to start from.
        input_size: (H, W) of a training picture, for a probe of the shapes. The runner fills it in.

    *Deviations*: the authors released the networks alone, and the paper's text was not at hand. Open are: what the
    teacher is trained to give and by which loss (here: `q` above, mean squared error of the mean patch score), whether
    it is adversarial (here: not), how many labels are kept and in how many rounds, whether students exchange labels
    (here by default, which is how they come to differ in what they are trained on), whether they restart (here not),
    and on what the teacher is trained: `corruptions` is a proposal of the specification, `held_out` a choice of ours.
    Gradients of both students are clipped together where they are clipped; otherwise neither sees the other's.

    Raises:
        UserError: for options that make no sense, and networks that do not fit together; in training, if the hook is
            missing.
    """

    needs_hooks: ClassVar[tuple[dict[str, Any], ...]] = ({"type": "SupervisedRounds"},)

    def __init__(
        self,
        student: nn.Module | dict[str, Any],
        partner: nn.Module | dict[str, Any],
        scorer: nn.Module | dict[str, Any],
        criterion: Criterion | dict[str, Any] | None = None,
        decoder: Decoder | dict[str, Any] | None = None,
        data_preprocessor: nn.Module | dict[str, Any] | None = None,
        codec: Any = None,
        rounds: int = 3,
        warm_up: str = "epoch 10",
        round_epochs: int | None = None,
        labels_from: Source = "other",
        mirrored_labels: bool = False,
        restart: Restart = "continue",
        selection: Selection = "scorer",
        share: float = 1.0,
        pseudo_weight: float = 1.0,
        held_out: float = 0.1,
        tau: float | str = "median",
        norm: Norm = None,
        scorer_inputs: ScorerInputs = "heatmaps",
        scorer_steps: int = 300,
        scorer_lr: float = 1e-3,
        scorer_batch: int = 16,
        scorer_augments: bool = True,
        corruptions: float = 0.25,
        analyse: bool = False,
        deployed: Deployed = "student",
        checkpoint: str | None = None,
        input_size: Sequence[int] = (64, 64),
    ) -> None:
        given = locals()
        procedure = Procedure(**{name: given[name] for name in OPTIONS})
        one_of("deployed", deployed, get_args(Deployed))
        super().__init__(student, criterion, decoder, data_preprocessor, checkpoint)
        self.procedure, self.which = procedure, deployed
        self.progress: Rounds | None = None
        with torch.random.fork_rng(devices=[]):
            built = NETWORKS.build(partner, "model.partner") if isinstance(partner, Mapping) else partner
            self.scorer: nn.Module = NETWORKS.build(scorer, "model.scorer") if isinstance(scorer, Mapping) else scorer
            self.follow_layout(built)
            self._place(self.network, built)
            self.codec = self._found_codec(codec)
            self._cells = self._probed(tuple(input_size))
        self.scorer.requires_grad_(False)
        self.initial = {n: _copied(s) for n, s in self.students.items()} if restart == "initial" else {}

    def _place(self, student: nn.Module, partner: nn.Module) -> None:
        """What is deployed is `network`; the other student stands beside it."""
        if self.which == "both":
            self.network = BothStudents(student, partner)
        elif self.which == "partner":
            self.network, self.student = partner, student
        else:
            self.partner = partner

    @property
    def students(self) -> dict[str, nn.Module]:
        """Both students by name."""
        holder = {"both": self.network, "partner": self, "student": self}[self.which]
        return {name: self.network if name == self.which else getattr(holder, name) for name in LEARNERS}

    @property
    def authors(self) -> tuple[str, ...]:
        """Whose labels there are."""
        return tuple(dict.fromkeys(self.procedure.author(name) for name in LEARNERS))

    @classmethod
    def refuse_unfit(cls, model: Mapping[str, Any], train_cfg: Mapping[str, Any]) -> None:
        """Options that make no sense, and rounds that do not fit into the training; see `TaskModel`."""
        if "deployed" in model:
            one_of("deployed", model["deployed"], get_args(Deployed))
        procedure = Procedure(**{name: model[name] for name in OPTIONS if name in model})
        if not train_cfg.get("by_epoch", True) or "max_iters" in train_cfg:
            raise UserError("train_cfg: rounds begin between two epochs; train with by_epoch=True and max_epochs.")
        if isinstance(train_cfg.get("max_epochs"), int):
            procedure.first_epochs(train_cfg["max_epochs"])

    @classmethod
    def deployed_network(cls, model: Mapping[str, Any]) -> dict[str, Any]:
        """The config of the network that a model of the config `model` deploys."""
        which = model.get("deployed", "student")
        if which != "both":
            return dict(model[which])
        parts = {name: dict(model[name]) for name in LEARNERS}
        for part in parts.values():
            if "pretrained" in part:
                part["pretrained"] = False
        return {"type": BothStudents.__name__, **parts}

    def _found_codec(self, codec: Any) -> Any:
        built = CODECS.build(codec, "model.codec") if isinstance(codec, Mapping) else codec
        found = built if built is not None else getattr(self.criterion, "codec", getattr(self.decoder, "codec", None))
        if not all(hasattr(found, name) for name in CODEC_METHODS):
            raise UserError(
                "model.codec: the teacher needs to know what is encoded in heatmaps, and neither the criterion nor the "
                "decoder has a codec. Name one, such as codec=dict(type='GaussianHeatmap', sigma=2.0)."
                if found is None
                else f"model.codec: {found!r} is no codec of heatmaps."
            )
        return found

    def _probed(self, size: tuple[int, ...]) -> dict[str, tuple[float, float]]:
        """Try the networks on noise; the size of each author's maps as shares of the picture's.

        Raises:
            UserError: if they do not fit together.
        """
        images = torch.randn(2, 3, *size)
        with evaluating(self), torch.no_grad():
            maps = {name: _heatmaps(student(images), name) for name, student in self.students.items()}
            shapes = {name: tuple(m.shape) for name, m in maps.items()}
            if len({shape[1] for shape in shapes.values()}) > 1:
                raise UserError(
                    f"model.partner: the students' maps must be as many; they are {shapes['student']} and "
                    f"{shapes['partner']}."
                )
            seen = torch.cat([images, resized(maps["student"], size)], 1)
            try:
                quality = self.scorer(seen)["quality"]
            except (RuntimeError, KeyError, TypeError) as error:
                raise UserError(
                    f"model.scorer: it gives no 'quality' of a picture with its maps, {tuple(seen.shape)}: {error}"
                ) from error
        if quality.shape != (2,):
            raise UserError(f"model.scorer: 'quality' is one number a picture, (2,) here, not {tuple(quality.shape)}.")
        weights = [{name: tuple(w.shape) for name, w in s.state_dict().items()} for s in self.students.values()]
        if weights[0] == weights[1]:
            print_log("model.partner: both students are of the same architecture", logger="current", level=30)
        self.channels = maps["student"].shape[1]
        maps["mean"] = finer_mean(list(maps.values()))
        return {name: (m.shape[2] / size[0], m.shape[3] / size[1]) for name, m in maps.items()}

    # --- Training

    def losses(self, inputs: Tensor, targets: Mapping[str, Any], meta: Sequence[Meta] = ()) -> dict[str, Tensor]:
        """The terms of both students, as `student.NAME` and `partner.NAME`."""
        return {
            f"{name}.{term}": value
            for name, student in self.students.items()
            for term, value in self._terms(student(inputs), *self.supervision(name, targets, meta)).items()
        }

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of all terms, and the terms for the log.

        Raises:
            UserError: in a training without the hook that makes the pseudo labels.
        """
        if self.progress is None:
            raise UserError(
                "model: TeacherSupervisesStudents is trained in rounds, and the training has no hook that makes them. "
                "Add custom_hooks=[dict(type='SupervisedRounds')]."
            )
        return super().parse_losses(losses)

    def _terms(self, outputs: Outputs, targets: dict[str, Any], pseudo: Tensor) -> dict[str, Tensor]:
        weight = self.procedure.pseudo_weight
        if weight == 1 or self.progress is None or not self.progress.done:
            return self.criterion(outputs, targets)
        true = targets["labelled"] & ~pseudo
        both = torch.stack([true.sum(), weight * pseudo.sum()]) / (true.sum() + pseudo.sum()).clamp_min(1)
        parts = [self.criterion(outputs, {**targets, "labelled": which}) for which in (true, pseudo)]
        return {name: both[0] * parts[0][name] + both[1] * parts[1][name] for name in parts[0]}

    def supervision(
        self, learner: str, targets: Mapping[str, Any], meta: Sequence[Meta]
    ) -> tuple[dict[str, Any], Tensor]:
        """What the student called `learner` learns from in a batch, and which samples have pseudo labels, (N,).

        The points of a sample that has no label at the moment are zeros, whatever the data set says.
        """
        labelled, points = targets["labelled"].bool(), targets["points"]
        pseudo, made = torch.zeros_like(labelled), torch.zeros_like(points)
        if self.progress is not None:
            places = _places(meta)
            known = labelled & ~self.progress.held_out[places].to(labelled.device)
            labels = self.progress.labels.get(self.procedure.author(learner))
            if labels is not None:
                pseudo = labels.selected[places].to(labelled.device) & ~labelled
                affine = targets["to_input"].double()
                made = to_input(labels.points[places].to(affine), affine, self.progress.swaps).to(points)
            labelled = known
        given = (labelled | pseudo).unsqueeze(-1)
        made = made.where(pseudo[:, None, None], 0.0)
        supervised = {
            "points": points.where(labelled[:, None, None], made),
            "visible": (targets["visible"].bool() | pseudo.unsqueeze(-1)) & given,
            "labelled": labelled | pseudo,
        }
        return {**targets, **supervised}, pseudo

    # --- The teacher

    def maps_of(self, author: str, inputs: Tensor) -> Tensor:
        """The maps of one student, or the mean of both, in the mode that the students are in, (N, C, h, w)."""
        if author != "mean":
            return self.students[author](inputs)[HEATMAPS].float()
        return finer_mean([student(inputs)[HEATMAPS].float() for student in self.students.values()])

    def quality(self, inputs: Tensor, maps: Tensor) -> Tensor:
        """What the teacher thinks of maps on their pictures, (N,)."""
        size = inputs.shape[-2:]
        if self.procedure.scorer_inputs == "points":
            points, _ = self.codec.decode(maps, size)
            visible = torch.ones(points.shape[:2], dtype=torch.bool, device=points.device)
            maps = self.codec.as_output(self.codec.encode(points, visible, size, maps.shape[-2:])[0].to(maps))
        pictures = self.codec.pictures(maps, (size[0], size[1]))
        return self.scorer(torch.cat([inputs.float(), resized(pictures, size)], 1))["quality"].float()

    @torch.no_grad()
    def judged(self, author: str, inputs: Tensor, scored: bool = True) -> tuple[Tensor, Tensor]:
        """The points of an author in pixels of the inputs, (N, K, 2), and their quality, (N,).

        Args:
            author: a student's name, or `mean`.
            inputs: preprocessed pictures.
            scored: ask the teacher; otherwise the quality is not-a-number.
        """
        maps = self.maps_of(author, inputs)
        if self.procedure.mirrored_labels:
            assert self.progress is not None and self.progress.swaps is not None  # the hook has refused what has none
            mirrored = self.maps_of(author, inputs.flip(-1))
            maps = self.codec.merge_flipped(maps, mirrored, self.progress.swaps.tolist())
        points, _ = self.codec.decode(maps, inputs.shape[-2:])
        unknown = torch.full((len(inputs),), torch.nan, device=inputs.device)
        return points, self.quality(inputs, maps) if scored else unknown

    @torch.no_grad()
    def examples(
        self, inputs: Tensor, targets: Mapping[str, Tensor], norm: Any, tau: float, generator: torch.Generator
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """What the teacher learns from, of labelled samples.

        Args:
            inputs: preprocessed pictures, (N, 3, H, W).
            targets: `points`, `visible`, and what the norm reads.
            norm: see `resolved_norm`.
            tau: the error of quality `1 / e`.
            generator: of random numbers, on the CPU.

        Returns:
            pairs of pictures and maps, and the quality of all of them one after the other; samples whose error cannot
            be told are left out.
        """
        lengths = norm_lengths(norm, targets)
        usable = ((lengths > 0) & targets["visible"].bool().any(1)).nonzero().flatten()
        order = usable[torch.randperm(len(usable), generator=generator).to(usable.device)]
        size, cut = inputs.shape[-2:], round(self.procedure.corruptions * len(order))
        pairs: list[tuple[Tensor, Tensor]] = []
        errors: list[Tensor] = []
        for place, author in enumerate(self.authors):
            moved, own = (rows[place :: len(self.authors)] for rows in (order[:cut], order[cut:]))
            if len(own):
                maps = self.maps_of(author, inputs[own])
                errors.append(_errors_at(own, self.codec.decode(maps, size)[0], targets, lengths))
                pairs.append((inputs[own], maps))
            if len(moved):
                points = corrupted(targets["points"][moved], lengths[moved], tau, generator)
                cells = tuple(round(n * share) for n, share in zip(size, self._cells[author], strict=True))
                drawn, _ = self.codec.encode(points, targets["visible"][moved].bool(), size, cells)
                maps = self.codec.as_output(drawn)
                errors.append(_errors_at(moved, points, targets, lengths))
                pairs.append((inputs[moved], maps.float()))
        return pairs, torch.cat([*errors, lengths.new_zeros(0)]).div(-tau).exp().float()


def _errors_at(rows: Tensor, points: Tensor, targets: Mapping[str, Tensor], lengths: Tensor) -> Tensor:
    truth = {name: targets[name][rows] for name in ("points", "visible")}
    return normalised_errors(points, truth, lengths[rows])


def _heatmaps(outputs: Outputs, learner: str) -> Tensor:
    maps = outputs.get(HEATMAPS)
    if maps is None or maps.dim() != 4:
        what = ", ".join(outputs) if maps is None else f"it is {tuple(maps.shape)}"
        raise UserError(f"model.{learner}: it needs an output 'heatmaps', (N, C, h, w); it has: {what}.")
    return maps


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


def _places(meta: Sequence[Meta]) -> Tensor:
    if not meta or any("index" not in sample for sample in meta):
        raise UserError("model: pseudo labels are found by the samples' 'index', which this batch's meta has not.")
    return torch.tensor([int(sample["index"]) for sample in meta])
