"""Ranking for re-identification at the size of Market-1501 against a full sort, and against one matrix product."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from kd_reid.ranking import FeatureDistances, Labels, match_ranks, scores
from torch import Tensor

from tests.benchmarks import Row, in_turns

IDENTITIES = 750
CAMERAS = 6
DISTRACTORS = 0.175
QUERIES_AT_ONCE = 512
Floats = npt.NDArray[np.float32]


def run(queries: int = 3368, gallery: int = 15913, width: int = 2048, rounds: int = 3) -> list[Row]:
    """Random features; identities, cameras and distractors about as many as in Market-1501."""
    features = [torch.from_numpy(random_features(seed, n, width)) for seed, n in enumerate((queries, gallery))]
    labels = random_labels(2, queries), random_labels(3, gallery, DISTRACTORS)
    size = f"{queries} queries, {gallery} pictures"
    distances = list(FeatureDistances(*features))
    ranked, product = ours(distances, *labels), one_product(*features)
    return [
        in_turns(f"distances, {size}: one product", all_blocks(*features), product, 1.2, rounds, warm_up=1),
        in_turns(f"ranks and scores, {size}: argsort", ranked, by_hand(distances, *labels), 0.2, rounds, warm_up=0),
        in_turns(f"ranks and scores, {size}: one product", ranked, product, 0.25, rounds, warm_up=0),
    ]


def random_features(seed: int, count: int, width: int) -> Floats:
    """Features (count, width) without any order."""
    return np.random.default_rng(seed).standard_normal((count, width), dtype=np.float32)


def random_labels(seed: int, count: int, distractors: float = 0.0) -> Labels:
    """Identities from 1 on, a share of distractors (0) and cameras."""
    generator = np.random.default_rng(seed)
    identity = generator.integers(1, IDENTITIES + 1, count)
    identity[generator.random(count) < distractors] = 0
    return Labels(identity, generator.integers(0, CAMERAS, count))


def all_blocks(queries: Tensor, gallery: Tensor) -> Callable[[], None]:
    """All cosine distances, one block after the other."""

    def compute() -> None:
        for _ in FeatureDistances(queries, gallery):
            pass

    return compute


def one_product(queries: Tensor, gallery: Tensor) -> Callable[[], Tensor]:
    """The matrix product of features of length 1."""
    sides = F.normalize(queries), F.normalize(gallery)
    return lambda: torch.mm(sides[0], sides[1].T)


def ours(distances: list[Floats], query: Labels, gallery: Labels) -> Callable[[], dict[str, float]]:
    """All scores from distances."""

    def evaluate() -> dict[str, float]:
        result = scores(match_ranks(distances, query, gallery))
        return {"mAP": result.mAP, "mINP": result.mINP, **{f"Rank-{k}": result.cmc[k - 1] for k in (1, 5, 10, 20)}}

    return evaluate


def by_hand(distances: list[Floats], query: Labels, gallery: Labels) -> Callable[[], dict[str, float]]:
    """The same by sorting all rows and cumulative sums, without a loop over queries."""

    def evaluate() -> dict[str, float]:
        matrix = np.concatenate(distances)
        parts = [
            by_sorting(matrix[rows], query.at(rows), gallery)
            for rows in np.array_split(np.arange(len(query)), -(-len(query) // QUERIES_AT_ONCE))
        ]
        ap, inp, first = (np.concatenate(values) for values in zip(*parts, strict=True))
        ranks = {f"Rank-{k}": float(np.mean(first <= k)) for k in (1, 5, 10, 20)}
        return {"mAP": float(ap.mean()), "mINP": float(inp.mean()), **ranks}

    return evaluate


def by_sorting(distances: Floats, query: Labels, gallery: Labels) -> tuple[npt.NDArray[np.floating], ...]:
    """AP, INP and rank of the first match of the queries that have one."""
    order = np.argsort(distances, axis=1)
    same = gallery.identity[order] == query.identity[:, None]
    kept = ~(same & (gallery.camera[order] == query.camera[:, None]))
    hits = same & kept
    chosen = hits.any(axis=1)
    hits, kept = hits[chosen], kept[chosen]
    rank, number = np.cumsum(kept, axis=1, dtype=np.int32), np.cumsum(hits, axis=1, dtype=np.int32)
    count = number[:, -1]
    ap = np.where(hits, number / np.maximum(rank, 1), 0).sum(axis=1) / count
    first = rank[np.arange(len(rank)), hits.argmax(axis=1)]
    last = rank[np.arange(len(rank)), hits.shape[1] - 1 - hits[:, ::-1].argmax(axis=1)]
    return ap, count / last, first
