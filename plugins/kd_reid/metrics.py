"""The metric of re-identification: mAP, Rank-k and mINP of a retrieval, as torchreid and fast-reid report them."""

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from mmengine.registry import METRICS
from torch import Tensor

from kd_reid.ranking import (
    AP_RULES,
    DISTANCES,
    Distances,
    FeatureDistances,
    Labels,
    Reranked,
    Scores,
    check_name,
    expand,
    match_ranks,
    rates_at,
    scores,
    single_shot_cmc,
    unmatched,
)
from kd_tasks.engine.log import log_once
from kd_tasks.errors import UserError, nearest
from kd_tasks.evaluation.metric import Metric

ROLES = ("query", "gallery")
# Embedding, identity, camera, role of one picture.
Result = tuple[npt.NDArray[np.float32], int, int, str]


@METRICS.register_module()
class ReIDMetric(Metric):
    """mAP, Rank-1/5/10/20 and mINP in percent, of ranking the gallery for each query by the distance of embeddings.

    Of the gallery, entries with the query's own identity and camera and those with identity -1 (junk) do not count;
    other identities, distractors among them, do. Entries at equal distance stand in the order of the data set. After
    `evaluate`, `scores` holds the whole CMC and the AP of each query, in the order of the data set. Fixtures
    `metrics/reid`.

    Args:
        distance: `cosine`; `euclidean`, squared, which ranks alike.
        normalise: scale embeddings to length 1 before a Euclidean distance.
        ap: `mean_precision`, the rule of torchreid and fast-reid: queries without a match are left out; `matlab`, the
            rule of Market-1501's own evaluation: trapezoids, and queries without a match count 0.
        ranks: the k of Rank-k.
        rerank: whether to rank again by k-reciprocal neighbours, or the arguments of that, such as
            `dict(k1=20, k2=6, lambda_value=0.3, mix='torchreid')`.
        query_expansion: None, or `dict(times=1, k=5, alpha=3)`: averages each embedding with its nearest ones first.
        max_rank: length of the CMC in `scores`.
        single_gallery_shot: Rank-k by the old split of CUHK03: one picture of each identity in the gallery, the mean
            of 10 random draws. mAP and mINP are those of the whole gallery.
        seed: of these draws.
        mean_with_rank1: also give `metric`, the mean of mAP and Rank-1 (fast-reid).
        false_rates: also give `TPR@FPR=...` at these FPRs by the rule of fast-reid, see `rates_at`.
        collect_device: `cpu` or `gpu`, where the ranks' results meet.
        prefix: put before the names, with a slash.

    Raises:
        UserError: in `evaluate`, if there is no query, no gallery, or no query with a match; it says why.
    """

    def __init__(
        self,
        distance: str = "cosine",
        normalise: bool = False,
        ap: str = "mean_precision",
        ranks: Sequence[int] = (1, 5, 10, 20),
        rerank: bool | Mapping[str, Any] = False,
        query_expansion: Mapping[str, Any] | None = None,
        max_rank: int = 50,
        single_gallery_shot: bool = False,
        seed: int = 0,
        mean_with_rank1: bool = False,
        false_rates: Sequence[float] = (),
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        check_name("distance", distance, DISTANCES)
        check_name("rule of AP", ap, AP_RULES)
        if not ranks or min(ranks) < 1 or max(ranks) > max_rank:
            raise UserError(
                f"ReIDMetric: ranks are {tuple(ranks)}; give at least one, from 1 to max_rank ({max_rank})."
            )
        self.distance = distance
        self.normalise = normalise
        self.ap = ap
        self.ranks = tuple(ranks)
        self.rerank = None if rerank is False else _options("rerank", {} if rerank is True else rerank, Reranked)
        self.query_expansion = _options("query_expansion", query_expansion, expand)
        self.max_rank = max_rank
        self.single_gallery_shot = single_gallery_shot
        self.seed = seed
        self.mean_with_rank1 = mean_with_rank1
        self.false_rates = tuple(false_rates)
        self.scores: Scores | None = None
        self._distances(*torch.ones(2, 1, 1))  # impossible options are refused before any picture is read

    @property
    def rule(self) -> str:
        """In words, what is ranked by what and how the scores are formed."""
        normalised = " of normalised embeddings" if self.normalise and self.distance == "euclidean" else ""
        parts = [DISTANCES[self.distance] + normalised, AP_RULES[self.ap], "ties by the order of the gallery"]
        if self.query_expansion is not None:
            parts.append(f"after query expansion {_shown(self.query_expansion)}")
        if self.rerank is not None:
            parts.append(f"after k-reciprocal re-ranking {_shown(self.rerank)}")
        if self.single_gallery_shot:
            parts.append("Rank-k with one picture of each identity in the gallery, mean of 10 draws (rule of CUHK03)")
        return "; ".join(parts)

    def process(self, data_batch: Mapping[str, Any], data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Keep one batch.

        Args:
            data_batch: `targets['identity']` and `targets['camera']` (N,), and the `role` of each `meta`.
            data_samples: dicts with an `embedding` (D,).
        """
        targets, metas = data_batch["targets"], data_batch["meta"]
        for key in ("identity", "camera"):
            if key not in targets:
                raise UserError(
                    f"ReIDMetric: the targets have no {key!r}, but {_listed(targets)}; the data set must be one of "
                    "re-identification."
                )
        samples = zip(data_samples, targets["identity"], targets["camera"], metas, strict=True)
        self.results += [
            (_embedding(sample, meta), int(identity), int(camera), _role(meta))
            for sample, identity, camera, meta in samples
        ]

    def compute_metrics(self, results: list[Result]) -> dict[str, float]:
        """The metrics in percent; sets `scores`."""
        (queries, query), (gallery, known) = (_part(results, role) for role in ROLES)
        missing = unmatched(query, known)
        distances = self._distances(queries, gallery)
        ranks = match_ranks(distances, query, known)
        if not len(ranks.rank):
            raise UserError(f"ReIDMetric: {missing}. Are queries and gallery those of one split?")
        self.scores = scores(ranks, self.ap, self.max_rank)
        log_once(f"ReIDMetric: {self.rule}.")
        if missing:
            effect = "they count 0" if self.ap == "matlab" else "they are left out of the means"
            log_once(f"ReIDMetric: {missing}; {effect}.", logging.WARNING)
        return {name: 100 * value for name, value in self._numbers(self.scores, distances, query, known).items()}

    def _distances(self, queries: Tensor, gallery: Tensor) -> Distances:
        if self.query_expansion is not None:
            queries, gallery = expand(queries, gallery, **self.query_expansion)
        if self.rerank is not None:
            return Reranked(queries, gallery, self.distance, self.normalise, **self.rerank)
        return FeatureDistances(queries, gallery, self.distance, self.normalise)

    def _numbers(self, result: Scores, distances: Distances, query: Labels, gallery: Labels) -> dict[str, float]:
        cmc = result.cmc
        if self.single_gallery_shot:
            cmc = single_shot_cmc(distances, query, gallery, self.max_rank, seed=self.seed)
        numbers = {"mAP": result.mAP, **{f"Rank-{k}": float(cmc[k - 1]) for k in self.ranks}, "mINP": result.mINP}
        if self.mean_with_rank1:
            numbers["metric"] = (result.mAP + float(cmc[0])) / 2
        if self.false_rates:
            rates = rates_at(distances, query, gallery, self.false_rates)
            numbers |= {f"TPR@FPR={rate:.0e}": value for rate, value in zip(self.false_rates, rates, strict=True)}
        return numbers


def _options(name: str, given: Any, function: Callable[..., Any]) -> dict[str, Any] | None:
    """All arguments of `function` that have a default, other than those of the metric itself, with the given values."""
    if given is None:
        return None
    parameters = inspect.signature(function).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    known = {key: value for key, value in defaults.items() if key not in ("distance", "normalise")}
    if not isinstance(given, Mapping):
        raise UserError(f"ReIDMetric: {name} is {given!r}; give a dict with some of {_listed(known)}.")
    for key in given:
        if key not in known:
            raise UserError(f"ReIDMetric: {name} has no {key!r}.{nearest(key, known)} Known: {_listed(known)}.")
    return known | dict(given)


def _embedding(sample: Mapping[str, Any], meta: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    if "embedding" not in sample:
        raise UserError(f"ReIDMetric: the decoder gives no 'embedding', but {_listed(sample)}.")
    values = sample["embedding"].detach().float().cpu().numpy()
    if not np.isfinite(values).all():
        raise UserError(f"{meta.get('path', 'a picture')}: its embedding has values that are not finite.")
    return values


def _role(meta: Mapping[str, Any]) -> str:
    if meta.get("role") not in ROLES:
        raise UserError(
            f"ReIDMetric: {meta.get('path', 'a picture')} has the role {meta.get('role')!r}; each picture must be "
            "'query' or 'gallery'. Evaluate on a split that has both, such as 'test'."
        )
    return str(meta["role"])


def _part(results: Sequence[Result], role: str) -> tuple[Tensor, Labels]:
    chosen = [result for result in results if result[3] == role]
    if not chosen:
        what = {"query": "query", "gallery": "picture of the gallery"}[role]
        raise UserError(f"ReIDMetric: there is no {what} among {len(results)} pictures; check the data set's folders.")
    embeddings, identities, cameras, _ = zip(*chosen, strict=True)
    labels = Labels(np.array(identities, np.int64), np.array(cameras, np.int64))
    return torch.from_numpy(np.stack(embeddings)), labels


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "nothing"


def _shown(options: Mapping[str, Any]) -> str:
    return "(" + ", ".join(f"{key} {value}" for key, value in options.items()) + ")"
