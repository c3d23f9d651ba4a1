"""The rounds of `TeacherSupervisesStudents`: train the teacher, label, select."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce, broadcast, get_dist_info, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from scipy.stats import spearmanr
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kd_tasks.engine.files import write_json
from kd_tasks.engine.hooks import TrainingProgress, bare_model
from kd_tasks.engine.progress import Bars, progress_bar
from kd_tasks.engine.randomness import EpochIndex, mixed_seed, seed_worker, seeded
from kd_tasks.errors import UserError
from kd_tasks.methods.teacher_supervises.model import TeacherSupervisesStudents
from kd_tasks.methods.teacher_supervises.pseudo_labels import (
    Procedure,
    PseudoLabels,
    Rounds,
    best,
    kept,
    norm_lengths,
    normalised_errors,
    resolved_norm,
    to_original,
)
from kd_tasks.registry import HOOKS
from kd_tasks.taps import evaluating

ROUNDS_FILE = "rounds.json"


@dataclass
class _Judged:
    """Of some samples: `points` (P, K, 2) of the original pictures, `quality` (P,), `error` (P,) where asked for."""

    points: Tensor
    quality: Tensor
    error: Tensor


@HOOKS.register_module()
class SupervisedRounds(Hook):
    """Makes the rounds of `TeacherSupervisesStudents` before the epochs in which they are due.

    What a round does depends on the weights, the seed and its number alone; the random state of the training is as
    before. Predictions are divided among the ranks, the teacher learns on the first, and all have the same labels. Each
    round is a line of the log and an entry of `rounds.json` in the run folder.
    """

    def before_train(self, runner: Runner) -> None:
        """Look at the data set and the length of the training before a picture is read.

        Raises:
            UserError: if they do not suit the rounds.
        """
        model = bare_model(runner)
        if not isinstance(model, TeacherSupervisesStudents):
            raise UserError(
                f"custom_hooks: SupervisedRounds belongs to a TeacherSupervisesStudents, not to {type(model).__name__}."
            )
        if not getattr(runner.train_loop, "by_epoch", True):
            raise UserError("train_cfg: rounds begin between two epochs; train with by_epoch=True and max_epochs.")
        self._firsts = model.procedure.first_epochs(runner.max_epochs)
        dataset: Any = runner.train_dataloader.dataset
        self._labelled = _labelled(dataset)
        metainfo = getattr(dataset, "metainfo", None) or {}
        self._norm = resolved_norm(model.procedure.norm, metainfo) if model.procedure.selection == "scorer" else "box"
        _refuse_other_points(model, metainfo)
        _refuse_no_mirror(model, metainfo)
        if model.progress is None:
            model.progress = Rounds(self._held_out(model, runner.seed), _swaps(metainfo))
        elif len(model.progress.held_out) != len(self._labelled):
            raise UserError(
                f"--resume: the rounds of the checkpoint are about {len(model.progress.held_out)} samples, and the "
                f"data set has {len(self._labelled)}. Resume with the data of that run."
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Make the round that is due, if one is, and tell the sampler which samples are of use."""
        model = bare_model(runner)
        due = sum(first <= runner.epoch for first in self._firsts)
        while model.progress.done < due:
            self._round(runner, model, model.progress.done + 1)
        sampler = runner.train_dataloader.sampler
        if hasattr(sampler, "pool"):
            sampler.pool = model.progress.pool()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Put the labels and what belongs to them into the checkpoint; the teacher's weights are there already."""
        model = bare_model(runner)
        checkpoint["rounds"] = {**model.progress.state_dict(), "initial": model.initial}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Take the labels out of a checkpoint.

        Raises:
            UserError: if it has none.
        """
        if "rounds" not in checkpoint:
            raise UserError("--resume: the checkpoint is of another kind of training; it knows no rounds.")
        state = dict(checkpoint["rounds"])
        model = bare_model(runner)
        model.initial = state.pop("initial") or model.initial
        model.progress = Rounds.of_state(state)

    def _held_out(self, model: TeacherSupervisesStudents, seed: int) -> Tensor:
        places = self._labelled.nonzero().flatten()
        drawn = torch.randperm(len(places), generator=_generator("held out", seed))
        held_out = torch.zeros_like(self._labelled)
        share = model.procedure.held_out if model.procedure.selection == "scorer" else 0.0
        held_out[places[drawn[: round(share * len(places))]]] = True
        return held_out

    def _round(self, runner: Runner, model: TeacherSupervisesStudents, number: int) -> None:
        progress, procedure = model.progress, model.procedure
        assert progress is not None
        device = next(model.parameters()).device
        with (
            seeded(mixed_seed("round", runner.seed, number)),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            evaluating(model),
            _bars(runner) as bars,
        ):
            work = _Round(runner, model, self._norm, number, bars)
            found = work.taught(self._labelled, progress.held_out) if procedure.selection == "scorer" else {}
            found |= work.labelled((~self._labelled).nonzero().flatten())
        if number == procedure.rounds:
            progress.held_out = torch.zeros_like(progress.held_out)
        progress.done = number
        progress.history.append({"round": number, "epoch": runner.epoch, **found})
        if procedure.restart == "initial":
            for name, student in model.students.items():
                student.load_state_dict(model.initial[name])
            runner.optim_wrapper.optimizer.state.clear()
        self._tell(runner, progress.history)

    def _tell(self, runner: Runner, history: list[dict[str, Any]]) -> None:
        if not is_main_process():
            return
        runner.logger.info(f"pseudo labels: {json.dumps(history[-1])}")
        write_json(Path(runner.work_dir) / ROUNDS_FILE, history)


class _Round:
    """The work of one round.

    Args:
        runner: the runner.
        model: the students and their teacher, in eval mode.
        norm: see `resolved_norm`.
        number: of the round, from 1.
        bars: where progress is shown; None where it is not.
    """

    def __init__(
        self, runner: Runner, model: TeacherSupervisesStudents, norm: Any, number: int, bars: Bars | None
    ) -> None:
        self.model, self.procedure, self.norm, self.number, self.bars = model, model.procedure, norm, number, bars
        self.seed: int = runner.seed
        self.loader: DataLoader = runner.train_dataloader
        self.dataset: Any = runner.train_dataloader.dataset
        self.plain = self.dataset.plain()
        assert model.progress is not None
        self.progress = model.progress

    def taught(self, labelled: Tensor, held_out: Tensor) -> dict[str, Any]:
        """Train the teacher; what it found, by name."""
        fitted = (labelled & ~held_out).nonzero().flatten()
        unseen = held_out.nonzero().flatten()
        judged = self._judged(unseen if len(unseen) else fitted, "labelled", scored=False, truth=True)
        errors = torch.stack([one.error for one in judged.values()])
        known = errors[errors.isfinite()]
        if not len(known):
            raise UserError(
                "model.norm: no labelled sample has an error that can be told, since its norm is zero or its points "
                "are not visible. Choose another norm."
            )
        tau = float(known.median()) if self.procedure.tau == "median" else float(self.procedure.tau)
        tau = max(tau, torch.finfo(torch.float32).eps)
        loss = self._fit([group for group in (fitted, unseen) if len(group)], tau)
        return {"tau": tau, "labelled_error": float(known.mean()), "scorer_loss": loss}

    def labelled(self, unlabelled: Tensor) -> dict[str, Any]:
        """Label the samples at the places `unlabelled` and select; what was found, by name."""
        procedure = self.procedure
        scored = procedure.selection == "scorer"
        judged = self._judged(unlabelled, "unlabelled", scored, truth=procedure.analyse)
        count = kept(len(unlabelled), self.number, procedure.rounds, procedure.share)
        found: dict[str, Any] = {}
        for author, one in judged.items():
            if scored and not one.quality.isfinite().any():
                raise UserError(
                    f"round {self.number}: the teacher's quality is not finite on any sample. Lower model.scorer_lr."
                )
            chosen = self._chosen(one.quality, count, author)
            self.progress.labels[author] = _spread(one, unlabelled, chosen, len(self.dataset))
            found |= {f"{author}.{name}": value for name, value in _summary(one, chosen).items()}
        return found

    def _chosen(self, quality: Tensor, count: int, author: str) -> Tensor:
        if self.procedure.selection == "all":
            return torch.arange(len(quality))
        if self.procedure.selection == "random":
            quality = torch.rand(len(quality), generator=_generator("selection", self.seed, self.number, author))
        return best(quality, count)

    def _judged(self, places: Tensor, what: str, scored: bool, truth: bool) -> dict[str, _Judged]:
        """All authors' points and qualities of samples without augmentation, on all ranks the same."""
        model, size = self.model, self.procedure.scorer_batch
        rank, world = get_dist_info()
        rows = list(torch.arange(len(places)).split(size))[rank::world]
        batches = [[int(i) for i in places[row]] for row in rows]
        table: Tensor | None = None
        device = next(model.parameters()).device
        for row, data in zip(rows, self._loaded(self.plain, batches, f"labels, {what}"), strict=True):
            batch = model.data_preprocessor(data, False)
            inputs, targets = batch["inputs"], batch["targets"]
            affine = targets["to_input"].double()
            for place, author in enumerate(model.authors):
                points, quality = model.judged(author, inputs, scored)
                error = torch.zeros_like(quality)
                if truth:
                    error = normalised_errors(points, targets, norm_lengths(self.norm, targets))
                original = to_original(points.double(), affine, self.progress.swaps).flatten(1)
                if table is None:
                    table = original.new_zeros(len(model.authors), len(places), original.shape[1] + 2)
                table[place, row.to(device)] = torch.cat([original, quality[:, None], error[:, None]], 1)
        table = _summed(table, (len(model.authors), len(places)), device)
        columns = table.shape[-1] - 2
        return {
            author: _Judged(one[:, :columns].unflatten(1, (-1, 2)), one[:, -2], one[:, -1])
            for author, one in zip(model.authors, table.cpu(), strict=True)
        }

    def _fit(self, groups: list[Tensor], tau: float) -> float:
        """Train the teacher on samples of each group in equal parts; the mean loss of the last quarter of the steps."""
        scorer, losses = self.model.scorer, [math.nan]
        if is_main_process():
            losses = list(self._steps(groups, tau))
        for tensor in (*scorer.parameters(), *scorer.buffers()):
            broadcast(tensor.data)
        last = losses[-max(1, len(losses) // 4) :]
        return sum(last) / len(last)

    def _steps(self, groups: list[Tensor], tau: float) -> Iterator[float]:
        procedure, scorer = self.procedure, self.model.scorer
        draw, move = (_generator(what, self.seed, self.number) for what in ("examples", "corruptions"))
        seed = mixed_seed("examples", self.seed, self.number)
        batches: list[list[int]] = []
        for step in range(procedure.scorer_steps):
            drawn = [group[torch.randint(len(group), (1,), generator=draw)] for group in _in_turn(groups, procedure)]
            batches.append([EpochIndex(int(i), step, seed) for i in torch.cat(drawn)])
        shown = self.dataset if procedure.scorer_augments else self.plain
        optimiser = torch.optim.Adam(scorer.parameters(), lr=procedure.scorer_lr)
        scorer.requires_grad_(True).train()
        for data in self._loaded(shown, batches, "the teacher learns"):
            batch = self.model.data_preprocessor(data, False)
            pairs, quality = self.model.examples(batch["inputs"], batch["targets"], self.norm, tau, move)
            if not pairs:
                continue
            found = torch.cat([self.model.quality(*pair) for pair in pairs])
            loss = F.mse_loss(found, quality)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            yield loss.item()
        scorer.requires_grad_(False).eval()
        scorer.zero_grad()

    def _loaded(self, dataset: Dataset[Any], batches: list[list[int]], what: str) -> Iterator[Any]:
        loader = DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=self.loader.num_workers,
            collate_fn=self.loader.collate_fn,
            pin_memory=self.loader.pin_memory,
            worker_init_fn=seed_worker,
            generator=torch.Generator(),
        )
        if self.bars is None:
            yield from loader
            return
        task = self.bars.add_task(f"Round {self.number}: {what}", total=len(batches), note="")
        for batch in loader:
            yield batch
            self.bars.update(task, advance=1)
        self.bars.remove_task(task)


def _in_turn(groups: list[Tensor], procedure: Procedure) -> Iterator[Tensor]:
    return (groups[place % len(groups)] for place in range(procedure.scorer_batch))


def _summed(table: Tensor | None, shape: tuple[int, int], device: torch.device) -> Tensor:
    """The tables of all ranks together; a rank without samples has none."""
    _, world = get_dist_info()
    width = torch.tensor(0 if table is None else table.shape[-1], device=device)
    if world > 1:
        all_reduce(width, "max")
    if table is None:
        table = torch.zeros(*shape, int(width), dtype=torch.float64, device=device)
    if world > 1:
        all_reduce(table)
    return table


def _spread(judged: _Judged, places: Tensor, chosen: Tensor, count: int) -> PseudoLabels:
    """Labels of some samples as labels of all `count` of the data set."""
    points = judged.points.new_zeros(count, *judged.points.shape[1:])
    quality = judged.quality.new_full((count,), torch.nan)
    selected = torch.zeros(count, dtype=torch.bool)
    points[places], quality[places], selected[places[chosen]] = judged.points, judged.quality, True
    return PseudoLabels(points, quality, selected)


def _summary(judged: _Judged, chosen: Tensor) -> dict[str, Any]:
    """What is said of one author's labels; errors where they were asked for, None for what is not a number."""
    quality, error = judged.quality, judged.error
    summary: dict[str, Any] = {"quality": quality[chosen].mean(), "quality_of_all": quality.mean()}
    if error.any():
        known = error.isfinite() & quality.isfinite()
        counted = known[chosen]
        summary |= {"error": error[chosen][counted].mean(), "error_of_all": error[known].mean()}
        summary["spearman"] = rank_correlation(quality[known], -error[known])
    told = {name: float(value) if math.isfinite(value) else None for name, value in summary.items()}
    return {"kept": len(chosen), **told}


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation of two vectors; not-a-number where one of them is constant."""
    if len(first) < 2 or first.min() == first.max() or second.min() == second.max():
        return math.nan
    return float(spearmanr(first.numpy(), second.numpy()).statistic)


def _labelled(dataset: Any) -> Tensor:
    """Which samples of the data set are labelled, (n,).

    Raises:
        UserError: if it does not say, or none or all are.
    """
    name = type(dataset).__name__
    marks = getattr(dataset, "is_labelled", None)
    if marks is None or not callable(getattr(dataset, "plain", None)):
        lacking = "is_labelled" if marks is None else "plain()"
        raise UserError(f"train_dataloader.dataset: {name} has no {lacking}, which pseudo labels need.")
    labelled = torch.tensor([bool(mark) for mark in marks])
    if labelled.all() or not labelled.any():
        which = "all samples are" if labelled.all() else "no sample is"
        raise UserError(
            f"train_dataloader.dataset: of {name} {which} labelled, so that there is nothing to "
            f"{'label' if labelled.all() else 'learn from'}. Set labelled=0.2 and keep_unlabelled=True, for example."
        )
    return labelled


def _refuse_other_points(model: TeacherSupervisesStudents, metainfo: Mapping[str, Any]) -> None:
    points = metainfo.get("points")
    if not isinstance(points, int) or model.codec.channels(points) == model.channels:
        return
    raise UserError(
        f"model.student: it gives {model.channels} maps, and for the {points} points of the data set "
        f"{type(model.codec).__name__} needs {model.codec.channels(points)}."
    )


def _refuse_no_mirror(model: TeacherSupervisesStudents, metainfo: Mapping[str, Any]) -> None:
    if model.procedure.mirrored_labels and metainfo.get("swaps") is None:
        raise UserError(
            "model.mirrored_labels: the data set does not say which points change places in a mirror image (its "
            "metainfo has no 'swaps'). Set mirrored_labels=False."
        )


def _swaps(metainfo: Mapping[str, Any]) -> Tensor | None:
    swaps = metainfo.get("swaps")
    return None if swaps is None else torch.as_tensor(swaps, dtype=torch.long)


def _generator(*parts: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(mixed_seed(*parts))


@contextmanager
def _bars(runner: Runner) -> Iterator[Bars | None]:
    """The bars of the training if it shows any, or new ones; none on other ranks than the first."""
    running = [hook._bar for hook in runner.hooks if isinstance(hook, TrainingProgress) and hasattr(hook, "_bar")]
    if not is_main_process():
        yield None
    elif running:
        yield running[0]
    else:
        with progress_bar() as bars:
            yield bars
