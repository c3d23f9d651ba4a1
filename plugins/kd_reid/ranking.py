"""Ranking for retrieval: distances, ranks of the true matches, the scores that follow from them, re-ranking.

Nothing here holds the distances of all queries at once: they come in blocks of queries. A gallery is ranked by
ascending distance, equal distances in the order of the gallery; entries with identity -1 (junk) and those of the
query's own identity and camera take no part.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from torch import Tensor

from kd_tasks.errors import UserError, nearest

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.int64]

DISTANCES = {
    "cosine": "cosine distance",
    "euclidean": "squared Euclidean distance",
}
AP_RULES = {
    "mean_precision": "AP is the mean precision at the matches, means are over the queries with a match "
    "(rule of torchreid and fast-reid)",
    "matlab": "AP is the trapezoid area of precision over recall, means are over all queries "
    "(rule of Market-1501's evaluation)",
}
MIXES = ("torchreid", "fastreid")
JUNK = -1
# Distances that are held at once; 2**23 of float32 are 32 MiB.
BLOCK = 2**23
# Counting what is nearer costs one pass over the gallery a match; from here on one sort is cheaper.
MANY_MATCHES = 256


@dataclass(frozen=True)
class Labels:
    """Who is on each picture and which camera took it: two arrays (N,) of int64; identity -1 is junk."""

    identity: Integers
    camera: Integers

    def __len__(self) -> int:
        return len(self.identity)

    def at(self, chosen: npt.NDArray[Any]) -> "Labels":
        """Those of the pictures at these positions, or where a mask is true."""
        return Labels(self.identity[chosen], self.camera[chosen])


class Distances(ABC):
    """Distances (queries, gallery), computed anew in blocks of queries each time one iterates over them."""

    shape: tuple[int, int]

    @abstractmethod
    def __iter__(self) -> Iterator[Floats]: ...

    def matrix(self) -> Floats:
        """All of them at once."""
        return np.concatenate(list(self)) if self.shape[0] else np.zeros(self.shape, np.float32)


class FeatureDistances(Distances):
    """Distances between features, at the cost of one matrix product.

    Args:
        queries: features (Q, D).
        gallery: features (G, D).
        distance: `cosine`, 1 minus the cosine; `euclidean`, the square of the Euclidean distance, which ranks alike and
            is what torchreid calls so.
        normalise: scale the features to length 1 first; for `cosine` that changes nothing.

    Raises:
        UserError: if there is no such distance, or the widths differ.
    """

    def __init__(self, queries: Tensor, gallery: Tensor, distance: str = "cosine", normalise: bool = False) -> None:
        check_name("distance", distance, DISTANCES)
        if queries.shape[1:] != gallery.shape[1:]:
            raise UserError(f"queries have features {tuple(queries.shape)}, the gallery {tuple(gallery.shape)}.")
        self.shape = (len(queries), len(gallery))
        self.distance = distance
        unit = normalise or distance == "cosine"
        self.gallery = _prepared(gallery, unit)
        self.queries = self.gallery if queries is gallery else _prepared(queries, unit)
        # distance = factor * product + offset of the query + offset of the gallery
        euclidean = distance == "euclidean"
        self.factor = -2.0 if euclidean else -1.0
        self.query_offset = _squares(self.queries) if euclidean else self.queries.new_ones(len(queries))
        self.gallery_offset = _squares(self.gallery) if euclidean else self.gallery.new_zeros(len(gallery))

    def __iter__(self) -> Iterator[Floats]:
        for rows in row_blocks(*self.shape):
            yield self.block(rows).numpy()

    def block(self, rows: slice) -> Tensor:
        """Distances (n, G) of some queries."""
        products = torch.mm(self.queries[rows] * self.factor, self.gallery.T)
        return products.add_(self.query_offset[rows, None]).add_(self.gallery_offset)

    def pairs(self, query: int, chosen: Tensor) -> Tensor:
        """Distances (n,) of one query to the gallery entries `chosen` (n,)."""
        products = torch.mv(self.gallery[chosen], self.queries[query] * self.factor)
        return products.add_(self.query_offset[query]).add_(self.gallery_offset[chosen])


def _squares(features: Tensor) -> Tensor:
    return features.square().sum(1)


def _prepared(features: Tensor, unit: bool) -> Tensor:
    features = features.detach().cpu()
    features = features if features.dtype in (torch.float32, torch.float64) else features.float()
    return F.normalize(features, dim=1) if unit else features


def row_blocks(queries: int, gallery: int) -> Iterator[slice]:
    """Consecutive slices of queries, of at most `BLOCK` distances each."""
    step = max(1, BLOCK // max(gallery, 1))
    return (slice(start, min(start + step, queries)) for start in range(0, queries, step))


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Raise a `UserError` if `name` is not among the known ones."""
    if name not in known:
        raise UserError(f"re-identification: no {what} {name!r}.{nearest(name, known)} Known: {', '.join(known)}.")


@dataclass(frozen=True)
class Ranks:
    """Where the true matches of each query stand.

    Attributes:
        queries: how many queries there are, those without a match among them.
        query: (T,) the query of each match, ascending.
        rank: (T,) its rank, 1 for the nearest; ascending within a query.
    """

    queries: int
    query: Integers
    rank: Integers

    @property
    def counts(self) -> Integers:
        """Number of matches (Q,) of each query."""
        return np.bincount(self.query, minlength=self.queries)


def match_ranks(distances: Floats | Iterable[Floats], query: Labels, gallery: Labels) -> Ranks:
    """The ranks of all true matches; the rest of the gallery is counted and never sorted.

    Args:
        distances: (Q, G), or consecutive blocks (n, G) of their rows. Compared in the precision that they have.
        query: labels of the queries.
        gallery: labels of the gallery.

    Raises:
        UserError: if the shapes do not fit, or a distance is not finite.
    """
    ranks = [_row_ranks(row, wanted) for row, wanted in _rows(distances, query, gallery)]
    counts = [len(row) for row in ranks]
    numbers = np.repeat(np.arange(len(ranks)), counts)
    return Ranks(len(ranks), numbers, np.concatenate([*ranks, np.zeros(0, np.int64)]))


def _row_ranks(row: Floats, matches: Integers) -> Integers:
    if len(matches) > MANY_MATCHES:
        order = np.argsort(row, kind="stable")
        place = np.empty(len(row), np.int64)
        place[order] = np.arange(1, len(row) + 1)
        return np.sort(place[matches])
    # Of equal distances, those before the match in the gallery are nearer.
    nearer = [
        np.count_nonzero(row[:place] <= value) + np.count_nonzero(row[place + 1 :] < value)
        for place, value in zip(matches.tolist(), row[matches], strict=True)
    ]
    return np.sort(np.array(nearer, np.int64)) + 1


def _rows(distances: Floats | Iterable[Floats], query: Labels, gallery: Labels) -> Iterator[tuple[Floats, Integers]]:
    """Of each query: its distances, infinite where an entry takes no part, without junk; the places of its matches."""
    known = np.flatnonzero(gallery.identity != JUNK)
    members = _Members(gallery.at(known))
    number = 0
    for block in _blocks(distances):
        _check_block(block, number, len(query), len(gallery))
        for row in block if len(known) == len(gallery) else block[:, known]:
            removed, matches = members.of(int(query.identity[number]), int(query.camera[number]))
            if len(removed):
                row = row.copy()
                row[removed] = np.inf
            yield row, matches
            number += 1
    if number != len(query):
        raise UserError(f"there are distances of {number} queries and labels of {len(query)}.")


def _blocks(distances: Floats | Iterable[Floats]) -> Iterator[Floats]:
    if not isinstance(distances, np.ndarray):
        return iter(distances)
    if distances.ndim != 2:
        raise UserError(f"distances have the shape {distances.shape}; they must be (queries, gallery).")
    return (distances[rows] for rows in row_blocks(*distances.shape))


def _check_block(block: Floats, start: int, queries: int, gallery: int) -> None:
    if block.ndim != 2 or block.shape[1] != gallery or start + len(block) > queries:
        raise UserError(
            f"distances of the shape {block.shape}, from query {start} on, do not fit labels of {queries} queries and "
            f"{gallery} gallery entries."
        )
    if block.size and not (np.isfinite(block.min()) and np.isfinite(block.max())):
        raise UserError("some distances are not finite: are all features numbers, and small enough to be squared?")


class _Members:
    """The gallery's entries by identity."""

    def __init__(self, gallery: Labels) -> None:
        self.camera = gallery.camera
        self.order = np.argsort(gallery.identity, kind="stable")
        identities, starts = np.unique(gallery.identity[self.order], return_index=True)
        ends = [*starts[1:].tolist(), len(gallery)]
        spans = zip(starts.tolist(), ends, strict=True)
        self.spans = {int(identity): slice(*span) for identity, span in zip(identities, spans, strict=True)}

    def of(self, identity: int, camera: int) -> tuple[Integers, Integers]:
        """Entries of this identity: those of the same camera, which are removed, and the matches."""
        members = self.order[self.spans.get(identity, slice(0))]
        same = self.camera[members] == camera
        return members[same], members[~same]


@dataclass(frozen=True)
class Scores:
    """The scores of a ranking, 0 to 1.

    Attributes:
        mAP: mean of the average precisions.
        mINP: mean of the inverse negative penalties: matches / rank of the last match.
        cmc: (max_rank,) share of queries with a match among the first 1, 2, ... entries; behind the end of a small
            gallery it stays as it is.
        ap: (Q,) average precision of each query; nan without a match.
        inp: (Q,) the same of the inverse negative penalty.
    """

    mAP: float
    mINP: float
    cmc: Floats
    ap: Floats
    inp: Floats

    @property
    def valid(self) -> int:
        """Number of queries with a match."""
        return int(np.count_nonzero(~np.isnan(self.ap)))


def scores(ranks: Ranks, rule: str = "mean_precision", max_rank: int = 50) -> Scores:
    """mAP, mINP and CMC.

    Args:
        ranks: see `match_ranks`.
        rule: `mean_precision`: the mean of the precisions at the matches; queries without a match are left out of all
            means. `matlab`: the area under precision over recall by trapezoids, with precision 1 before the first
            entry; queries without a match count 0 in all means.
        max_rank: length of the CMC.

    Raises:
        UserError: if there is no such rule, or no query has a match.
    """
    check_name("rule of AP", rule, AP_RULES)
    counts = ranks.counts
    valid = counts > 0
    if not valid.any():
        raise UserError(f"none of {ranks.queries} queries has a match in the gallery by another camera.")
    ends = np.cumsum(counts)
    number = np.arange(1, len(ranks.rank) + 1) - (ends - counts)[ranks.query]
    precision = number / ranks.rank
    if rule == "matlab":
        before = np.divide(number - 1, ranks.rank - 1, out=np.ones_like(precision), where=ranks.rank > 1)
        precision = (before + precision) / 2
    divisor = ranks.queries if rule == "matlab" else int(valid.sum())
    ap, inp = np.full((2, ranks.queries), np.nan)
    ap[valid] = np.bincount(ranks.query, precision, ranks.queries)[valid] / counts[valid]
    inp[valid] = counts[valid] / ranks.rank[ends[valid] - 1]
    first = ranks.rank[(ends - counts)[valid]]
    hits = np.bincount(np.minimum(first, max_rank + 1) - 1, minlength=max_rank + 1)[:max_rank]
    return Scores(float(np.nansum(ap) / divisor), float(np.nansum(inp) / divisor), np.cumsum(hits) / divisor, ap, inp)


def unmatched(query: Labels, gallery: Labels) -> str:
    """In words, how many queries have no match and why; empty if all have one."""
    members = _Members(gallery.at(gallery.identity != JUNK))
    absent: list[int] = []
    own_camera: list[int] = []
    for identity, camera in zip(query.identity.tolist(), query.camera.tolist(), strict=True):
        removed, matches = members.of(identity, camera)
        if not len(matches):
            (own_camera if len(removed) else absent).append(identity)
    parts = []
    if absent:
        parts.append(f"{len(absent)} whose identity is missing from the gallery ({_some(absent)})")
    if own_camera:
        parts.append(f"{len(own_camera)} whose identity is there only by the query's own camera ({_some(own_camera)})")
    if not parts:
        return ""
    return f"{len(absent) + len(own_camera)} of {len(query)} queries have no match: {'; '.join(parts)}"


def _some(identities: Sequence[int], shown: int = 5) -> str:
    different = sorted(set(identities))
    rest = f" and {len(different) - shown} more" if len(different) > shown else ""
    return ", ".join(map(str, different[:shown])) + rest


def single_shot_cmc(
    distances: Floats | Iterable[Floats],
    query: Labels,
    gallery: Labels,
    max_rank: int = 50,
    repeats: int = 10,
    seed: int = 0,
) -> Floats:
    """CMC (max_rank,) of the old split of CUHK03: the gallery has one picture of each identity, drawn at random.

    The mean over `repeats` draws for each query, which are those of torchreid after `numpy.random.seed(seed)`. Queries
    without a match are left out. It sorts each row.

    Raises:
        UserError: as `match_ranks`, and if no query has a match.
    """
    random = np.random.RandomState(seed)
    known = gallery.identity[gallery.identity != JUNK]
    curves = []
    for row, matches in _rows(distances, query, gallery):
        if not len(matches):
            continue
        order = np.argsort(row, kind="stable")[: np.count_nonzero(row < np.inf)]
        ranked = known[order]
        identities, first, inverse = np.unique(ranked, return_index=True, return_inverse=True)
        groups = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
        wanted = known[matches[0]]
        places = np.zeros(max_rank + 1)
        for _ in range(repeats):
            drawn = {int(identities[i]): random.choice(groups[i]) for i in np.argsort(first)}
            rank = sum(place < drawn[int(wanted)] for place in drawn.values())
            places[min(rank, max_rank)] += 1
        curves.append(np.cumsum(places[:max_rank]) / repeats)
    if not curves:
        raise UserError(f"none of {len(query)} queries has a match in the gallery by another camera.")
    return np.mean(curves, axis=0)


def rates_at(
    distances: Floats | Distances, query: Labels, gallery: Labels, false_rates: Sequence[float]
) -> list[float]:
    """TPR, 0 to 1, of the ROC at the points that are nearest to some FPRs, by the rule of fast-reid.

    There a pair of different people is a positive and its distance the score, so that FPR is the share of pairs of one
    person at that distance or farther, and TPR the same share of pairs of different people. The points are those that
    scikit-learn's `roc_curve` gives: points between two equal steps are left out. Iterates twice over the distances.

    Args:
        distances: (Q, G), or an object that gives them in blocks more than once.
        query: labels of the queries.
        gallery: labels of the gallery.
        false_rates: the FPRs.

    Raises:
        UserError: as `match_ranks`, and if there are no pairs of one of the kinds.
    """
    same = np.concatenate([row[matches] for row, matches in _rows(distances, query, gallery)])
    levels, steps = np.unique(same, return_counts=True)
    below, up_to = np.zeros((2, len(levels)), np.int64)
    others = 0
    for pairs in _different_pairs(distances, query, gallery):
        others += len(pairs)
        below += np.searchsorted(pairs, levels)
        up_to += np.searchsorted(pairs, levels, "right")
    if not len(same) or not others:
        raise UserError(f"a ROC needs pairs of one person ({len(same)} here) and of different people ({others}).")
    levels, steps, below, up_to = (values[::-1] for values in (levels, steps, below, up_to))
    tied = up_to - below
    alike = (steps[1:] == steps[:-1]) & (tied[1:] == tied[:-1]) & (below[:-1] == up_to[1:])
    kept = np.append(~alike, True)
    kept[0] |= up_to[0] == others
    fpr = np.append(0, np.cumsum(steps)[kept] / len(same))
    tpr = np.append(0, (others - below[kept]) / others)
    return [float(tpr[np.argmin(np.abs(fpr - rate))]) for rate in false_rates]


def _different_pairs(distances: Floats | Distances, query: Labels, gallery: Labels) -> Iterator[Floats]:
    """Sorted distances of different people, in parts."""
    held: list[Floats] = []
    for row, matches in _rows(distances, query, gallery):
        chosen = row < np.inf
        chosen[matches] = False
        held.append(row[chosen])
        if sum(map(len, held)) >= BLOCK:
            yield np.sort(np.concatenate(held))
            held = []
    if held:
        yield np.sort(np.concatenate(held))


def expand(queries: Tensor, gallery: Tensor, times: int = 1, k: int = 5, alpha: float = 3.0) -> tuple[Tensor, Tensor]:
    """Average query expansion of queries (Q, D) and gallery (G, D), as fast-reid has it; returns both.

    Each feature becomes the mean of the `k` features, itself among them, with the largest cosine to it, each times
    cosine ** alpha. Fixture `metrics/reid/aqe`.

    *Deviations*: with an `alpha` that is no whole number, negative cosines count 0 instead of nan.

    Args:
        queries: (Q, D).
        gallery: (G, D).
        times: how often.
        k: number of features in a mean.
        alpha: exponent of the weights.
    """
    features = torch.cat([queries, gallery])
    if k < 1 or times < 0:
        raise UserError(f"query expansion: k is {k} and times is {times}; k must be at least 1 and times at least 0.")
    for _ in range(times):
        unit = F.normalize(features, dim=1)
        parts = []
        for rows in row_blocks(len(unit), len(unit)):
            cosine, place = torch.mm(unit[rows], unit.T).topk(min(k, len(unit)))
            weights = (cosine if float(alpha).is_integer() else cosine.clamp_min(0)) ** alpha
            parts.append(_weighted_mean(features, place, weights))
        features = torch.cat(parts)
    return features[: len(queries)], features[len(queries) :]


def _weighted_mean(features: Tensor, place: Tensor, weights: Tensor) -> Tensor:
    total = torch.zeros(len(place), features.shape[1], dtype=features.dtype, device=features.device)
    for column in range(place.shape[1]):
        total.addcmul_(features[place[:, column]], weights[:, column, None])
    return total / place.shape[1]


class Reranked(Distances):
    """Distances after k-reciprocal re-ranking (Zhong, Zheng, Cao and Li; CVPR 2017), from sparse neighbourhoods.

    The numbers are those of torchreid's `re_ranking` (fixtures `metrics/reid/rerank_*`): distances are squared, also
    the Euclidean ones, which are squares already, and divided by the largest of their column.

    *Deviations*: neighbours at equal distance stand in the order of queries and gallery; nothing of size
    (Q + G) x (Q + G) is held.

    Args:
        queries: features (Q, D).
        gallery: features (G, D).
        distance: as in `FeatureDistances`.
        normalise: as in `FeatureDistances`.
        k1: number of neighbours that are checked for being mutual.
        k2: number of neighbours whose neighbourhoods are averaged.
        lambda_value: share of the original distance in the result.
        mix: that original distance: `torchreid`, squared and divided as above; `fastreid`, as it is.

    Raises:
        UserError: if an argument is not possible.
    """

    def __init__(
        self,
        queries: Tensor,
        gallery: Tensor,
        distance: str = "cosine",
        normalise: bool = False,
        k1: int = 20,
        k2: int = 6,
        lambda_value: float = 0.3,
        mix: str = "torchreid",
    ) -> None:
        check_name("mix", mix, MIXES)
        if k1 < 1 or k2 < 1 or not 0 <= lambda_value <= 1:
            raise UserError(
                f"re-ranking: k1 is {k1}, k2 {k2}, lambda_value {lambda_value}; k1 and k2 must be at least 1, "
                "lambda_value from 0 to 1."
            )
        self.shape = (len(queries), len(gallery))
        self.lambda_value = lambda_value
        self.mix = mix
        everything = torch.cat([queries, gallery])
        self.original = FeatureDistances(everything, everything, distance, normalise)
        neighbours, self.largest = _neighbours(self.original, max(k1 + 1, k2))
        expanded = _expanded(neighbours, k1)
        self.weights = _weights(self.original, self.largest, expanded)
        if k2 > 1:
            self.weights = _membership(neighbours[:, :k2]).astype(np.float32) @ self.weights / np.float32(k2)
        self.by_member = self.weights[len(queries) :].tocsc()

    def __iter__(self) -> Iterator[Floats]:
        queries, gallery = self.shape
        for rows in row_blocks(queries, queries + gallery):
            original = self.original.block(rows)[:, queries:].numpy()
            if self.mix == "torchreid":
                original = np.square(original) / self.largest[rows, None]
            jaccard = np.stack([self._jaccard(number) for number in range(rows.start, rows.stop)])
            yield jaccard * (1 - self.lambda_value) + original * self.lambda_value

    def _jaccard(self, query: int) -> Floats:
        """Jaccard distances (G,) between the neighbourhoods of one query and those of the gallery."""
        span = slice(*self.weights.indptr[query : query + 2])
        members, own = self.weights.indices[span], self.weights.data[span]
        starts, ends = self.by_member.indptr[members], self.by_member.indptr[members + 1]
        lengths = ends - starts
        flat = np.repeat(ends - np.cumsum(lengths), lengths) + np.arange(lengths.sum())
        shared = np.minimum(np.repeat(own, lengths), self.by_member.data[flat])
        overlap = np.bincount(self.by_member.indices[flat], shared, self.shape[1]).astype(own.dtype)
        return 1 - overlap / (2 - overlap)


def _neighbours(distances: FeatureDistances, count: int) -> tuple[Integers, Floats]:
    """The `count` nearest (N, count) of each by squared distance, nearest first, and the largest of these (N,)."""
    total = distances.shape[0]
    count = min(count, total)
    nearest_ones = np.empty((total, count), np.int64)
    largest = np.empty(total, np.float32)
    for rows in row_blocks(total, total):
        block = distances.block(rows).square_()
        largest[rows] = block.amax(1).numpy()
        limits = block.topk(count, largest=False).values[:, -1].numpy()
        for number, row, limit in zip(range(rows.start, rows.stop), block.numpy(), limits, strict=True):
            candidates = np.flatnonzero(row <= limit)
            nearest_ones[number] = candidates[np.argsort(row[candidates], kind="stable")[:count]]
    return nearest_ones, np.maximum(largest, np.finfo(np.float32).tiny)


def _membership(neighbours: Integers) -> csr_array:
    """Sparse (N, N) of int32: 1 where the column is among the neighbours (N, k) of the row."""
    total, count = neighbours.shape
    ones = np.ones(neighbours.size, np.int32)
    matrix = csr_array((ones, neighbours.flatten(), np.arange(total + 1) * count), shape=(total, total))
    matrix.sort_indices()
    return matrix


def _mutual(neighbours: Integers) -> csr_array:
    """Sparse (N, N): 1 where row and column are among each other's neighbours."""
    matrix = _membership(neighbours)
    return matrix.multiply(matrix.T).tocsr()


def _expanded(neighbours: Integers, k1: int) -> csr_array:
    """Each one's mutual neighbours, and theirs where more than two thirds of these are its own too."""
    own, half = _mutual(neighbours[:, : k1 + 1]), _mutual(neighbours[:, : round(k1 / 2) + 1])
    shared = own.multiply(own @ half.T).tocoo()
    accepted = 3 * shared.data > 2 * np.diff(half.indptr)[shared.col]
    ones = np.ones(np.count_nonzero(accepted), np.int32)
    chosen = csr_array((ones, (shared.row[accepted], shared.col[accepted])), shape=own.shape)
    result = (own + chosen @ half).tocsr()
    result.sort_indices()
    return result


def _weights(distances: FeatureDistances, largest: Floats, members: csr_array) -> csr_array:
    """exp(- squared distance / largest) of the members of each row, divided by their sum."""
    values = np.empty(members.nnz, np.float32)
    for row in range(members.shape[0]):
        span = slice(*members.indptr[row : row + 2])
        original = distances.pairs(row, torch.from_numpy(members.indices[span])).numpy()
        weights = np.exp(-np.square(original) / largest[row])
        values[span] = weights / weights.sum()
    return csr_array((values, members.indices, members.indptr), shape=members.shape)
