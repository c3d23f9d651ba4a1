"""Ranking, re-ranking and their scores against torchreid, fast-reid and Market-1501's evaluation, and against loops."""

import json
import logging
import multiprocessing
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from kd_reid import metrics, ranking
from kd_reid.metrics import ReIDMetric
from kd_reid.ranking import (
    FeatureDistances,
    Labels,
    Reranked,
    expand,
    match_ranks,
    rates_at,
    scores,
    single_shot_cmc,
    unmatched,
)
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS

from kd_tasks.errors import UserError
from tests.benchmarks import reid as benchmark

FIXTURES = Path(__file__).parents[1] / "fixtures" / "metrics" / "reid"
CASES = (
    "basic",
    "junk_and_distractors",
    "invalid_queries",
    "gallery_smaller_than_max_rank",
    "perfect",
    "worst",
    "single_match_each_plus_same_cam",
    "ties_same_class_only",
    "float64_near_ties",
)
FEATURE_CASES = [(d, n) for d in ("euclidean", "cosine") for n in (False, True)]
RERANK_CASES = {
    "k1=20,k2=6,lambda=0.3": ({"k1": 20, "k2": 6, "lambda_value": 0.3}, "reranked_20_6_03"),
    "k1=10,k2=1,lambda=0.5": ({"k1": 10, "k2": 1, "lambda_value": 0.5}, "reranked_10_1_05"),
}


def read_case(name: str, file: str | None = None) -> tuple[dict[str, np.ndarray], dict]:
    with np.load(FIXTURES / (file or f"{name}.npz")) as data:
        arrays = dict(data)
    expected = FIXTURES / f"{name}.expected.json"
    return arrays, json.loads(expected.read_text()) if expected.exists() else {}


def labels_of(data) -> tuple[Labels, Labels]:
    return Labels(data["q_pids"], data["q_camids"]), Labels(data["g_pids"], data["g_camids"])


def features_of(data) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(data["qf"]), torch.from_numpy(data["gf"])


def evaluated(metric, queries, gallery, query, known, batch=16, gallery_first=False):
    """The metric's numbers, from batches as a loader gives them."""
    parts = [("query", queries, query), ("gallery", gallery, known)]
    samples = [
        (features[i], int(labels.identity[i]), int(labels.camera[i]), role)
        for role, features, labels in (reversed(parts) if gallery_first else parts)
        for i in range(len(labels))
    ]
    evaluator = Evaluator(metric)
    for start in range(0, len(samples), batch):
        evaluator.process(*reversed(batch_of(samples[start : start + batch])))
    return evaluator.evaluate(len(samples))


def batch_of(samples):
    embeddings, identities, cameras, roles = zip(*samples, strict=True)
    targets = {"identity": torch.tensor(identities), "camera": torch.tensor(cameras)}
    meta = [{"path": f"{number}.jpg", "role": role} for number, role in enumerate(roles)]
    return {"targets": targets, "meta": meta}, [{"embedding": torch.as_tensor(values)} for values in embeddings]


def line(*places):
    """Embeddings (n, 1) on a line, for Euclidean distances."""
    return torch.tensor(places, dtype=torch.float32)[:, None]


def labels(*pairs):
    return Labels(*np.array(pairs, np.int64).reshape(-1, 2).T)


# --- ranks and scores -------------------------------------------------------------------------------------------------


@pytest.fixture(params=["counting", "sorting"])
def way(request, monkeypatch):
    """Both ways to the rank of a match, however many there are."""
    monkeypatch.setattr(ranking, "MANY_MATCHES", 10**9 if request.param == "counting" else 0)


@pytest.mark.parametrize("name", CASES)
def test_scores_are_those_of_torchreid_and_fastreid(name, way):
    data, expected = read_case(name)
    result = scores(match_ranks(data["distmat"], *labels_of(data)), max_rank=expected["max_rank"])
    ours = result.ap[~np.isnan(result.ap)], result.inp[~np.isnan(result.inp)]
    wanted = expected["fastreid_py"]
    np.testing.assert_allclose(ours[0], wanted["AP"], rtol=1e-12)
    np.testing.assert_allclose(ours[1], wanted["INP"], rtol=1e-12)
    np.testing.assert_allclose([result.mAP, result.mINP], [wanted["mAP"], wanted["mINP"]], rtol=1e-12)
    np.testing.assert_allclose(result.mAP, expected["torchreid_py"]["mAP"], rtol=1e-12)
    for toolbox in ("torchreid_py", "fastreid_py"):
        np.testing.assert_allclose(result.cmc, expected[toolbox]["cmc"], rtol=0, atol=1e-7)  # theirs are float32


@pytest.mark.parametrize("name", CASES)
def test_the_matlab_rule_is_that_of_the_original_evaluation(name):
    data, expected = read_case(name)
    wanted = expected["official_matlab_rule_layumi"]
    result = scores(match_ranks(data["distmat"], *labels_of(data)), "matlab", max_rank=len(wanted["cmc"]))
    per_query = [np.nan if value is None else value for value in wanted["per_query_AP"]]
    np.testing.assert_allclose(result.ap, per_query, rtol=1e-12)
    np.testing.assert_allclose(result.mAP, wanted["mAP"], rtol=1e-12)
    np.testing.assert_allclose(result.cmc, wanted["cmc"], rtol=0, atol=1e-7)


def test_ties_stand_in_the_order_of_the_gallery(way):
    data, expected = read_case("ties")
    result = scores(match_ranks(data["distmat"], *labels_of(data)))
    bounds = expected["tie_bounds"]
    wanted = bounds["stable_by_gallery_index"]
    np.testing.assert_allclose([result.mAP, result.mINP], [wanted["mAP"], wanted["mINP"]], rtol=1e-12)
    np.testing.assert_allclose(result.cmc, wanted["cmc"], rtol=0, atol=1e-7)
    assert bounds["pessimistic"]["mAP"] < result.mAP < bounds["optimistic"]["mAP"]


def test_scores_of_the_small_official_example():
    data, _ = read_case("reid_cmc_map", "../../losses/reid_cmc_map.npz")
    query, gallery = Labels(data["in_q_pid"], data["in_q_cam"]), Labels(data["in_g_pid"], data["in_g_cam"])
    result = scores(match_ranks(data["in_dist"], query, gallery), max_rank=10)
    assert result.mAP == pytest.approx(float(data["out"]), rel=1e-12)
    np.testing.assert_allclose(result.cmc, data["out_cmc"], rtol=0, atol=1e-7)


def naive_ranks(distances, query, gallery):
    """Ranks of the matches of each query by sorting pairs of distance and place, one query after the other."""
    result = []
    for row, identity, camera in zip(distances, query.identity, query.camera, strict=True):
        entries = sorted(
            (distance, place)
            for place, distance in enumerate(row)
            if gallery.identity[place] != -1
            and not (gallery.identity[place] == identity and gallery.camera[place] == camera)
        )
        result.append([r for r, (_, place) in enumerate(entries, 1) if gallery.identity[place] == identity])
    return result


def random_case(seed, queries=23, gallery=61, values=9):
    """Distances with many ties, junk (-1) and distractors (0) in the gallery, and queries without a match."""
    generator = np.random.default_rng(seed)
    distances = generator.integers(0, values, (queries, gallery)).astype(np.float32)
    query = Labels(generator.integers(1, 7, queries), generator.integers(0, 3, queries))
    return distances, query, Labels(generator.integers(-1, 6, gallery), generator.integers(0, 3, gallery))


@pytest.mark.parametrize("seed", range(8))
def test_ranks_and_scores_against_a_loop(seed, way):
    distances, query, gallery = random_case(seed, values=9 if seed % 2 else 10**6)
    ranks = match_ranks(distances, query, gallery)
    wanted = naive_ranks(distances.tolist(), query, gallery)
    assert [ranks.rank[ranks.query == number].tolist() for number in range(len(query))] == wanted
    assert [] in wanted
    found = [row for row in wanted if row]
    precisions = [[(i + 1) / rank for i, rank in enumerate(row)] for row in found]
    result = scores(ranks, max_rank=100)
    assert result.mAP == pytest.approx(np.mean([np.mean(row) for row in precisions]), rel=1e-12)
    assert result.mINP == pytest.approx(np.mean([len(row) / row[-1] for row in found]), rel=1e-12)
    np.testing.assert_allclose(result.cmc, [np.mean([row[0] <= k for row in found]) for k in range(1, 101)], rtol=1e-12)
    assert result.valid == len(found)
    assert np.isnan(result.ap).tolist() == [not row for row in wanted]


def test_scores_do_not_depend_on_the_blocks(monkeypatch):
    distances, query, gallery = random_case(3)
    whole = match_ranks(distances, query, gallery)
    features = torch.from_numpy(distances), torch.from_numpy(np.random.default_rng(0).random((61, 61), np.float32))
    matrix = FeatureDistances(*features, "euclidean").matrix()
    monkeypatch.setattr(ranking, "BLOCK", 4 * 61)
    np.testing.assert_array_equal(match_ranks(distances, query, gallery).rank, whole.rank)
    blocks = list(FeatureDistances(*features, "euclidean"))
    assert {len(block) for block in blocks} == {4, 3}
    np.testing.assert_allclose(np.concatenate(blocks), matrix, rtol=1e-6)
    np.testing.assert_array_equal(match_ranks(iter([distances[:5], distances[5:]]), query, gallery).rank, whole.rank)


def test_distances_are_not_changed_by_ranking():
    distances, query, gallery = random_case(1)
    before = distances.copy()
    match_ranks(distances, query, gallery)
    np.testing.assert_array_equal(distances, before)


def test_cmc_goes_on_behind_the_end_of_a_small_gallery():
    distances = np.array([[0.1, 0.2, 0.3]], np.float32)
    ranks = match_ranks(distances, labels((1, 0)), labels((2, 1), (1, 1), (3, 1)))
    assert scores(ranks, max_rank=6).cmc.tolist() == [0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("distances", "message"),
    [
        (np.zeros((2, 2), np.float32), "do not fit labels of 1 queries and 3 gallery"),
        (np.zeros(3, np.float32), r"must be \(queries, gallery\)"),
        (np.array([[0, np.nan, 1]]), "not finite"),
        (np.array([[0, np.inf, 1]]), "not finite"),
        ([], "distances of 0 queries and labels of 1"),
    ],
)
def test_distances_that_cannot_be_ranked_are_refused(distances, message):
    with pytest.raises(UserError, match=message):
        match_ranks(distances, labels((1, 0)), labels((2, 1), (1, 1), (3, 1)))


def test_reasons_for_queries_without_a_match():
    query, gallery = labels((1, 0), (2, 0), (2, 1), (9, 0), (9, 1), (8, 0)), labels((1, 1), (2, 0), (-1, 0), (0, 0))
    assert unmatched(query, gallery) == (
        "4 of 6 queries have no match: 3 whose identity is missing from the gallery (8, 9); 1 whose identity is there "
        "only by the query's own camera (2)"
    )
    assert unmatched(labels((1, 0)), gallery) == ""
    assert "(-1)" in unmatched(labels((1, 0), (-1, 1)), gallery)


# --- distances --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("distance", "normalise"), FEATURE_CASES)
def test_distances_and_scores_of_features_are_those_of_torchreid(distance, normalise):
    data, expected = read_case("features", "features.inputs.npz")
    wanted = expected[f"{distance}_norm{int(normalise)}"]
    queries, gallery = features_of(data)
    matrix = FeatureDistances(queries, gallery, distance, normalise).matrix()
    sample = np.array(wanted["dist_sample"])
    np.testing.assert_allclose(matrix[: len(sample), : sample.shape[1]], sample, rtol=1e-5, atol=1e-6)
    assert matrix.sum(dtype=np.float64) == pytest.approx(wanted["dist_sum"], rel=1e-6)
    metric = ReIDMetric(distance, normalise, mean_with_rank1=True)
    numbers = evaluated(metric, queries, gallery, *labels_of(data))
    fastreid = wanted["fastreid_py"]
    ranks = {f"Rank-{k}": 100 * fastreid["cmc"][k - 1] for k in (1, 5, 10, 20)}
    means = {"mAP": 100 * fastreid["mAP"], "mINP": 100 * fastreid["mINP"], "metric": fastreid["metric"]}
    assert numbers == pytest.approx({**ranks, **means}, rel=1e-6)
    np.testing.assert_allclose(metric.scores.ap, fastreid["AP"], rtol=1e-9)


def test_features_of_double_and_half_precision():
    queries, gallery = torch.randn(3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    exact = FeatureDistances(queries, gallery, "euclidean").matrix()
    assert exact.dtype == np.float64
    np.testing.assert_allclose(exact, torch.cdist(queries, gallery).square().numpy(), rtol=1e-10)
    assert FeatureDistances(queries.half(), gallery.half()).matrix().dtype == np.float32


def test_features_of_two_widths_are_refused():
    with pytest.raises(UserError, match=r"\(2, 3\).*\(2, 4\)"):
        FeatureDistances(torch.ones(2, 3), torch.ones(2, 4))


# --- other rules ------------------------------------------------------------------------------------------------------


def test_rates_are_those_of_fastreid():
    data, expected = read_case("roc")
    rates = rates_at(data["distmat"], *labels_of(data), [1e-4, 1e-3, 1e-2])
    assert rates == pytest.approx([expected[f"TPR@FPR={rate:.0e}"] for rate in (1e-4, 1e-3, 1e-2)], rel=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_rates_are_those_at_the_points_of_scikit_learn(seed, monkeypatch):
    roc_curve = pytest.importorskip("sklearn.metrics").roc_curve
    distances, query, gallery = random_case(seed, values=(5, 40, 10**6)[seed % 3])
    monkeypatch.setattr(ranking, "BLOCK", 200)
    same, counts = np.zeros((2, *distances.shape), bool)
    for q, g in np.ndindex(*distances.shape):
        same[q, g] = query.identity[q] == gallery.identity[g]
        counts[q, g] = gallery.identity[g] != -1 and not (same[q, g] and query.camera[q] == gallery.camera[g])
    fpr, tpr, _ = roc_curve(~same[counts], distances[counts])
    wanted = np.linspace(0, 1, 57)
    ours = rates_at(distances, query, gallery, wanted.tolist())
    np.testing.assert_allclose(ours, [tpr[np.argmin(np.abs(fpr - rate))] for rate in wanted], rtol=1e-12)


def test_points_between_equal_steps_of_the_roc_are_left_out_but_not_the_first():
    gallery = labels((1, 1), (1, 1), (2, 1), (2, 2), (3, 1))
    kept = np.array([[5.0, 4.0, 5.0, 4.0, 3.0]])  # scikit-learn's points: (0, 0), (1/2, 1/3), (1, 2/3), (1, 1)
    assert rates_at(kept, labels((1, 0)), gallery, [0.6]) == pytest.approx([1 / 3])
    left_out = np.array([[3.0, 2.0, 5.0, 5.0, 4.0]])  # (0, 0), (0, 2/3), (0, 1), (1, 1)
    assert rates_at(left_out, labels((1, 0)), gallery, [0.4, 0.6]) == [0.0, 1.0]


def test_rates_need_both_kinds_of_pairs():
    with pytest.raises(UserError, match=r"pairs of one person \(1 here\) and of different people \(0\)"):
        rates_at(np.ones((1, 1)), labels((1, 0)), labels((1, 1)), [0.1])


def test_single_gallery_shot_is_that_of_torchreid():
    data, expected = read_case("cuhk03")
    wanted = expected["cmc_with_np_random_seed_0"]
    curve = single_shot_cmc(data["distmat"], *labels_of(data), max_rank=len(wanted), seed=0)
    np.testing.assert_allclose(curve, wanted, rtol=0, atol=1e-6)
    assert scores(match_ranks(data["distmat"], *labels_of(data))).mAP == pytest.approx(expected["mAP"], rel=1e-12)
    assert not np.allclose(single_shot_cmc(data["distmat"], *labels_of(data), max_rank=len(wanted), seed=1), curve)


def test_query_expansion_is_that_of_fastreid():
    data, _ = read_case("aqe")
    queries, gallery = expand(*features_of(data), times=1, k=5, alpha=3.0)
    np.testing.assert_allclose(queries, data["qf_out"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gallery, data["gf_out"], rtol=1e-5, atol=1e-6)


def test_query_expansion_twice_and_with_a_broken_exponent():
    data, _ = read_case("aqe")
    once = expand(*features_of(data))
    for ours, wanted in zip(expand(*features_of(data), times=2), expand(*once), strict=True):
        torch.testing.assert_close(ours, wanted)
    features = torch.tensor([[1.0, 0.0], [-1.0, 0.1]])
    torch.testing.assert_close(expand(features[:1], features[1:], k=2, alpha=0.5)[0], features[:1] / 2)


# --- re-ranking -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", RERANK_CASES)
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_reranking_is_that_of_torchreid(distance, setting, monkeypatch):
    data, expected = read_case(f"rerank_{distance}")
    options, key = RERANK_CASES[setting]
    np.testing.assert_allclose(FeatureDistances(*features_of(data), distance).matrix(), data["q_g"], rtol=1e-5)
    monkeypatch.setattr(ranking, "BLOCK", 7 * 110)
    np.testing.assert_allclose(Reranked(*features_of(data), distance, **options).matrix(), data[key], rtol=0, atol=1e-6)
    wanted = expected[setting]["fastreid_py"]
    metric = ReIDMetric(distance, rerank=options)
    numbers = evaluated(metric, *features_of(data), *labels_of(data))
    assert [numbers[name] for name in ("mAP", "mINP")] == pytest.approx([100 * wanted[n] for n in ("mAP", "mINP")])
    np.testing.assert_allclose(metric.scores.cmc[: len(wanted["cmc"])], wanted["cmc"], rtol=0, atol=1e-7)
    before = evaluated(ReIDMetric(distance), *features_of(data), *labels_of(data))
    assert before["mAP"] == pytest.approx(100 * expected["before"]["torchreid_py"]["mAP"])


def naive_reranking(distances, queries, k1, k2, lambda_value):
    """The paper's steps on a symmetric matrix of all distances, with sets."""
    squared = distances**2 / (distances**2).max(axis=1, keepdims=True)
    order = np.argsort(squared, axis=1, kind="stable")
    total = len(distances)

    def mutual(i, k):
        return {j for j in order[i, : k + 1] if i in order[j, : k + 1]}

    weights = np.zeros_like(squared)
    for i in range(total):
        own = members = mutual(i, k1)
        for j in own:
            theirs = mutual(j, round(k1 / 2))
            if 3 * len(theirs & own) > 2 * len(theirs):
                members = members | theirs
        chosen = sorted(members)
        weights[i, chosen] = np.exp(-squared[i, chosen]) / np.exp(-squared[i, chosen]).sum()
    weights = np.stack([weights[order[i, :k2]].mean(axis=0) for i in range(total)])
    overlap = np.array([[np.minimum(a, b).sum() for b in weights[queries:]] for a in weights[:queries]])
    return (1 - overlap / (2 - overlap)) * (1 - lambda_value) + squared[:queries, queries:] * lambda_value


@pytest.mark.parametrize(("k1", "k2", "share"), [(5, 3, 0.3), (7, 1, 0.0), (3, 6, 0.5), (80, 4, 0.2)])
def test_reranking_against_a_loop(k1, k2, share):
    generator = torch.Generator().manual_seed(k1)
    centres = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    features = centres.repeat(8, 1) + 0.7 * torch.randn(48, 8, generator=generator, dtype=torch.float64)
    everything = FeatureDistances(features, features, "euclidean").matrix()
    ours = Reranked(features[:12], features[12:], "euclidean", k1=k1, k2=k2, lambda_value=share).matrix()
    np.testing.assert_allclose(ours, naive_reranking(everything, 12, k1, k2, share), rtol=0, atol=1e-5)


def test_reranking_with_many_equal_distances_takes_neighbours_in_order():
    features = torch.randint(0, 3, (60, 3), generator=torch.Generator().manual_seed(0)).double()
    everything = FeatureDistances(features, features, "euclidean").matrix()
    assert len(np.unique(everything)) < 15
    ours = Reranked(features[:12], features[12:], "euclidean", k1=9, k2=4).matrix()
    np.testing.assert_allclose(ours, naive_reranking(everything, 12, 9, 4, 0.3), rtol=0, atol=1e-5)


def test_fastreids_mix_takes_the_distance_as_it_is():
    data, _ = read_case("rerank_cosine")
    features = features_of(data)
    jaccard = Reranked(*features, lambda_value=0.0).matrix()
    mixed = Reranked(*features, lambda_value=0.3, mix="fastreid").matrix()
    np.testing.assert_allclose(mixed, 0.7 * jaccard + 0.3 * data["q_g"], rtol=0, atol=1e-6)


def test_equal_pictures_can_be_reranked():
    numbers = Reranked(torch.ones(2, 3), torch.ones(4, 3)).matrix()
    assert numbers.shape == (2, 4)
    assert np.isfinite(numbers).all()


# --- the metric -------------------------------------------------------------------------------------------------------


def scene():
    """Two queries on a line: the first finds its match behind one distractor, the second at once; one finds nothing."""
    queries, query = line(0.0, 10.0, 20.0), labels((1, 0), (2, 0), (3, 0))
    gallery, known = line(1, 2, 10.5, 0.1, 0.0), labels((0, 1), (1, 1), (2, 1), (1, 0), (-1, 1))
    return queries, gallery, query, known


def test_the_numbers_the_order_and_the_values_kept():
    metric = ReIDMetric("euclidean", ranks=(1, 5))
    numbers = evaluated(metric, *scene())
    assert numbers == {"mAP": 75.0, "Rank-1": 50.0, "Rank-5": 100.0, "mINP": 75.0}
    assert list(numbers) == ["mAP", "Rank-1", "Rank-5", "mINP"]
    assert metric.scores.ap[:2].tolist() == [0.5, 1.0]
    assert np.isnan(metric.scores.ap[2])
    assert len(metric.scores.cmc) == 50
    assert list(evaluated(ReIDMetric(), *scene())) == ["mAP", "Rank-1", "Rank-5", "Rank-10", "Rank-20", "mINP"]


def test_the_matlab_rule_counts_queries_without_a_match():
    numbers = evaluated(ReIDMetric("euclidean", ap="matlab", ranks=[1]), *scene())
    assert numbers == pytest.approx({"mAP": 100 * (0.25 + 1) / 3, "Rank-1": 100 / 3, "mINP": 50.0})


def test_batches_and_the_order_of_query_and_gallery_change_nothing():
    data, _ = read_case("features", "features.inputs.npz")
    given = *features_of(data), *labels_of(data)
    wanted = evaluated(ReIDMetric(), *given)
    assert evaluated(ReIDMetric(), *given, batch=7, gallery_first=True) == wanted


def test_options_for_other_rules_give_more_numbers():
    data, expected = read_case("features", "features.inputs.npz")
    metric = ReIDMetric(mean_with_rank1=True, false_rates=(1e-2, 0.5), single_gallery_shot=True, ranks=[1])
    numbers = evaluated(metric, *features_of(data), *labels_of(data))
    assert list(numbers) == ["mAP", "Rank-1", "mINP", "metric", "TPR@FPR=1e-02", "TPR@FPR=5e-01"]
    distances = FeatureDistances(*features_of(data)).matrix()
    curve = single_shot_cmc(distances, *labels_of(data))
    assert numbers["Rank-1"] == pytest.approx(100 * curve[0])
    assert numbers["mAP"] == pytest.approx(100 * expected["cosine_norm0"]["fastreid_py"]["mAP"])
    assert numbers["TPR@FPR=1e-02"] == pytest.approx(100 * rates_at(distances, *labels_of(data), [1e-2])[0])


def test_query_expansion_comes_before_the_ranking():
    data, _ = read_case("features", "features.inputs.npz")
    expanded = expand(*features_of(data), times=1, k=4, alpha=2)
    wanted = evaluated(ReIDMetric(), *expanded, *labels_of(data))
    numbers = evaluated(ReIDMetric(query_expansion={"k": 4, "alpha": 2}), *features_of(data), *labels_of(data))
    assert numbers == pytest.approx(wanted)
    assert numbers != pytest.approx(evaluated(ReIDMetric(), *features_of(data), *labels_of(data)))


@pytest.fixture
def logged(monkeypatch):
    """What is logged: pairs of level and text."""
    lines = []
    monkeypatch.setattr(metrics, "log_once", lambda text, level=logging.INFO: lines.append((level, text)))
    return lines


def test_the_log_names_the_rule_and_who_is_left_out(logged):
    evaluated(ReIDMetric("euclidean", rerank=True, query_expansion={"k": 2}), *scene())
    (level, rule), (warning, missing) = logged
    assert (level, warning) == (logging.INFO, logging.WARNING)
    for words in ("squared Euclidean distance", "torchreid", "k 2, alpha 3.0", "k1 20, k2 6, lambda_value 0.3"):
        assert words in rule
    assert "1 of 3 queries have no match: 1 whose identity is missing from the gallery (3)" in missing
    assert "left out of the means" in missing
    evaluated(ReIDMetric("euclidean", ap="matlab"), *scene())
    assert "trapezoid" in logged[2][1]
    assert "count 0" in logged[3][1]


def test_metrics_are_built_from_configs():
    metric = METRICS.build({"type": "ReIDMetric", "rerank": {"k1": 10}, "ranks": [1]})
    assert metric.rerank == {"k1": 10, "k2": 6, "lambda_value": 0.3, "mix": "torchreid"}


def test_repeated_samples_of_a_distributed_sampler_are_cut_off():
    queries, gallery, query, known = scene()
    metric = ReIDMetric("euclidean", ranks=[1])
    for features, who, role in ((queries, query, "query"), (gallery, known, "gallery"), (queries, query, "query")):
        metric.process(*batch_of([(features[i], *who_at(who, i), role) for i in range(len(who))]))
    assert metric.evaluate(len(query) + len(known)) == {"mAP": 75.0, "Rank-1": 50.0, "mINP": 75.0}


def who_at(who, number):
    return int(who.identity[number]), int(who.camera[number])


def on_rank(rank, size, port, results):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    data, _ = read_case("features", "features.inputs.npz")
    metric = ReIDMetric()
    parts = zip(("query", "gallery"), features_of(data), labels_of(data), strict=True)
    samples = [(f[i], *who_at(who, i), role) for role, f, who in parts for i in range(len(who))]
    padded = samples + samples[: -len(samples) % size]
    metric.process(*batch_of(padded[rank::size]))
    results.put((rank, metric.evaluate(len(samples))))
    torch.distributed.destroy_process_group()


def test_three_processes_give_the_numbers_of_one():
    data, _ = read_case("features", "features.inputs.npz")
    wanted = evaluated(ReIDMetric(), *features_of(data), *labels_of(data))
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=on_rank, args=(rank, 3, port, results)) for rank in range(3)]
    for process in processes:
        process.start()
    numbers = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    assert numbers == dict.fromkeys(range(3), wanted)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distance": "cosin"}, "no distance 'cosin'. Did you mean 'cosine'"),
        ({"ap": "matlap"}, "no rule of AP 'matlap'. Did you mean 'matlab'"),
        ({"ranks": (1, 60)}, r"from 1 to max_rank \(50\)"),
        ({"ranks": ()}, "at least one"),
        ({"ranks": (0,)}, "from 1"),
        ({"rerank": {"k_1": 20}}, "rerank has no 'k_1'. Did you mean 'k1'"),
        ({"rerank": {"distance": "cosine"}}, "rerank has no 'distance'"),
        ({"rerank": {"k1": 0}}, "k1 is 0"),
        ({"rerank": {"lambda_value": 3}}, "lambda_value from 0 to 1"),
        ({"rerank": {"mix": "fast"}}, "no mix 'fast'. Did you mean 'fastreid'"),
        ({"rerank": 20}, "rerank is 20; give a dict"),
        ({"query_expansion": {"qe_k": 5}}, "query_expansion has no 'qe_k'.*times, k, alpha"),
        ({"query_expansion": {"k": 0}}, "k must be at least 1"),
    ],
)
def test_impossible_arguments_are_refused_at_once(options, message):
    with pytest.raises(UserError, match=message):
        ReIDMetric(**options)


def test_data_without_queries_or_gallery_is_refused():
    queries, gallery, query, known = scene()
    with pytest.raises(UserError, match="no query among 5 pictures"):
        evaluated(ReIDMetric(), queries[:0], gallery, query.at(np.arange(0)), known)
    with pytest.raises(UserError, match="no picture of the gallery among 3 pictures"):
        evaluated(ReIDMetric(), queries, gallery[:0], query, known.at(np.arange(0)))


def test_queries_that_all_lack_a_match_are_an_error_that_names_them():
    queries, gallery, _, known = scene()
    with pytest.raises(
        UserError, match=r"3 of 3 queries have no match: 2 whose identity is missing .*\(7, 8\).*own"
    ) as e:
        evaluated(ReIDMetric(), queries, gallery, labels((7, 0), (8, 0), (2, 1)), known)
    assert "one split" in str(e.value)


def test_missing_keys_are_named():
    batch, samples = batch_of([(torch.ones(2), 1, 0, "query")])
    with pytest.raises(UserError, match="no 'camera', but identity"):
        ReIDMetric().process({**batch, "targets": {"identity": batch["targets"]["identity"]}}, samples)
    with pytest.raises(UserError, match="no 'embedding', but label"):
        ReIDMetric().process(batch, [{"label": 1}])
    with pytest.raises(UserError, match=r"0\.jpg has the role 'train'.*split"):
        ReIDMetric().process({**batch, "meta": [{"path": "0.jpg", "role": "train"}]}, samples)
    with pytest.raises(UserError, match="role None"):
        ReIDMetric().process({**batch, "meta": [{}]}, samples)


def test_an_embedding_that_is_no_number_is_refused():
    batch, _ = batch_of([(torch.ones(2), 1, 0, "query")])
    with pytest.raises(UserError, match=r"0\.jpg: its embedding has values that are not finite"):
        ReIDMetric().process(batch, [{"embedding": torch.tensor([1.0, float("nan")])}])


# --- speed ------------------------------------------------------------------------------------------------------------


def test_the_benchmark_compares_the_same_numbers():
    query, gallery = benchmark.random_labels(0, 90), benchmark.random_labels(1, 700, 0.1)
    distances = [benchmark.random_features(2, 50, 700), benchmark.random_features(3, 40, 700)]
    wanted = benchmark.by_hand(distances, query, gallery)()
    assert benchmark.ours(distances, query, gallery)() == pytest.approx(wanted, rel=1e-12)
    rows = benchmark.run(queries=20, gallery=300, width=32, rounds=1)
    assert len(rows) == 3 and all(row.ratio > 0 for row in rows)
