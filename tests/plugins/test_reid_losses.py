"""Losses, criterion and decoder of re-identification against fast-reid's and torchreid's values and plain loops."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kd_reid.criterion import ReIDLoss
from kd_reid.decoder import EmbeddingDecoder
from kd_reid.losses import BatchHardTriplet, JSDivergence
from torch import Tensor

from kd_tasks.errors import UserError
from kd_tasks.registry import CRITERIA, DECODERS, LOSSES

FIXTURES = Path(__file__).parents[1] / "fixtures" / "losses"


def read(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def close(actual: Tensor, expected: np.ndarray, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(actual.detach(), torch.from_numpy(expected), rtol=rtol, atol=rtol)


def naive_triplet(features: Tensor, label: Tensor, margin: float | None) -> Tensor:
    """The triplet by loops over anchors and partners."""
    terms = []
    for a in range(len(label)):
        if label[a] < 0:
            continue
        distances = [(features[a] - features[b]).norm() for b in range(len(label))]
        positives = [d for b, d in enumerate(distances) if b != a and label[b] == label[a]]
        negatives = [d for b, d in enumerate(distances) if label[b] >= 0 and label[b] != label[a]]
        if positives and negatives:
            gap = torch.stack(positives).max() - torch.stack(negatives).min()
            terms.append(F.softplus(gap) if margin is None else F.relu(gap + margin))
    return torch.stack(terms).mean() if terms else features.sum() * 0


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- Reference values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", ["torchreid", "fastreid"])
def test_triplet_and_smoothed_cross_entropy_have_the_toolboxes_values(smoothing):
    data = read("reid_triplet_ce")
    settings = json.loads(str(data["hp"]))
    embedding, logit = (torch.from_numpy(data[f"in_{name}"]).requires_grad_() for name in ("embedding", "logit"))
    label = torch.from_numpy(data["in_pid"])
    criterion = ReIDLoss(settings["epsilon"], smoothing, margin=settings["margin"])
    terms = criterion({"features": embedding, "logits": logit}, {"label": label})
    assert list(terms) == ["id", "triplet"]
    close(terms["triplet"], data["out_triplet"])
    close(terms["id"], data[f"out_ce_{smoothing}"])
    sum(terms.values()).backward()
    close(embedding.grad, data["grad_embedding"], 1e-8)
    if smoothing == "fastreid":
        close(terms["id"] + terms["triplet"], data["out"])
        close(logit.grad, data["grad_logit"])


def test_js_divergence_has_the_value_of_fastreid():
    data = read("reid_jsdiv")
    student = torch.from_numpy(data["in_student"]).requires_grad_()
    loss = JSDivergence(temperature=json.loads(str(data["hp"]))["T"])
    value = loss(student, torch.from_numpy(data["in_teacher"]))
    value.backward()
    close(value, data["out"])
    close(student.grad, data["grad_student"])
    assert JSDivergence().temperature == 16


def test_js_divergence_is_symmetric_and_the_mean_of_both_directions():
    student, teacher = draw(3, 5), draw(3, 5, seed=1)
    value = JSDivergence(2.0)(student, teacher)
    p, q = (F.softmax(x / 2.0, 1) for x in (student, teacher))
    by_hand = 4 * 0.5 * ((q * (q / p).log()).sum() + (p * (p / q).log()).sum()) / 3
    torch.testing.assert_close(value, by_hand)
    torch.testing.assert_close(value, JSDivergence(2.0)(teacher, student))


# --- Triplet ---------------------------------------------------------------------------------------------------------

LABELS = {
    "pairs": [0, 0, 1, 1, 2, 2],
    "odd": [3, 1, 3, 3, 0, 1, 7],
    "some_unlabelled": [0, -1, 0, 1, -1, 1, -1],
    "one_alone": [0, 0, 1],
}


@pytest.mark.parametrize("margin", [0.3, 2.0, None])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_triplet_is_that_of_plain_loops(labels, margin):
    label = torch.tensor(labels)
    ours, theirs = (draw(len(labels), 4, seed=3).requires_grad_() for _ in range(2))
    value, expected = BatchHardTriplet(margin)(ours, label=label), naive_triplet(theirs, label, margin)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-9, rtol=1e-7)
    assert value > 0 or labels == LABELS["one_alone"]


def test_normalised_features_are_compared_at_length_one():
    features, label = 7 * draw(6, 3), torch.tensor(LABELS["pairs"])
    expected = naive_triplet(F.normalize(features), label, 0.3)
    torch.testing.assert_close(BatchHardTriplet(normalise=True)(features, label=label), expected)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [-1, -1, -1, -1], [0, -1, -1, -1]])
def test_a_batch_without_a_complete_anchor_gives_zero_with_a_zero_gradient(labels):
    features = draw(4, 3).requires_grad_()
    value = BatchHardTriplet(None)(features, label=torch.tensor(labels))
    value.backward()
    assert value == 0
    assert torch.equal(features.grad, torch.zeros(4, 3, dtype=torch.float64))


def test_features_far_from_the_origin_keep_their_distances():
    label = torch.tensor(LABELS["pairs"])
    features = draw(6, 8).float()
    far = BatchHardTriplet()(features + 1000, label=label)
    torch.testing.assert_close(far, BatchHardTriplet()(features, label=label), rtol=1e-3, atol=1e-4)


def test_identical_pictures_have_a_finite_gradient():
    features = torch.ones(4, 3).requires_grad_()
    value = BatchHardTriplet()(features, label=torch.tensor([0, 0, 1, 1]))
    value.backward()
    torch.testing.assert_close(value, torch.tensor(0.3))
    assert torch.equal(features.grad, torch.zeros(4, 3))


def test_wrong_settings_and_shapes_are_refused():
    with pytest.raises(ValueError, match=r"BatchHardTriplet: margin"):
        BatchHardTriplet(0.0)
    with pytest.raises(ValueError, match=r"JSDivergence: temperature"):
        JSDivergence(-1.0)
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(3,\)"):
        BatchHardTriplet()(draw(4, 3), label=torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(4, 5\)"):
        JSDivergence()(draw(4, 3), draw(4, 5))


# --- Criterion -------------------------------------------------------------------------------------------------------


def outputs_of(samples: int, classes: int = 5) -> dict[str, Tensor]:
    return {
        "features": draw(samples, 4).requires_grad_(),
        "logits": draw(samples, classes, seed=1).requires_grad_(),
    }


@pytest.mark.parametrize("smoothing", ["torchreid", "fastreid"])
def test_unlabelled_samples_take_no_part(smoothing):
    outputs, label = outputs_of(7), torch.tensor(LABELS["some_unlabelled"])
    known = label >= 0
    criterion = ReIDLoss(smoothing=smoothing)
    terms = criterion(outputs, {"label": label})
    alone = criterion({name: value[known] for name, value in outputs.items()}, {"label": label[known]})
    for name in ("id", "triplet"):
        torch.testing.assert_close(terms[name], alone[name])
    sum(terms.values()).backward()
    for value in outputs.values():
        assert torch.equal(value.grad[~known], torch.zeros_like(value.grad[~known]))
        assert value.grad[known].abs().sum() > 0


def test_a_batch_without_labels_gives_zeros_that_can_be_differentiated():
    outputs = outputs_of(4)
    terms = ReIDLoss()(outputs, {"label": torch.full((4,), -1)})
    sum(terms.values()).backward()
    assert [value.item() for value in terms.values()] == [0.0, 0.0]
    assert all(torch.equal(value.grad, torch.zeros_like(value)) for value in outputs.values())


def test_weights_multiply_and_zero_leaves_a_term_out():
    outputs, targets = outputs_of(6), {"label": torch.tensor([0, 0, 1, 1, 4, 4])}
    plain, weighted = ReIDLoss()(outputs, targets), ReIDLoss(id_weight=0.5, triplet_weight=3.0)(outputs, targets)
    torch.testing.assert_close(weighted["id"], 0.5 * plain["id"])
    torch.testing.assert_close(weighted["triplet"], 3 * plain["triplet"])
    assert list(ReIDLoss(triplet_weight=0)(outputs, targets)) == ["id"]
    without = ReIDLoss(id_weight=0)
    assert list(without({"features": outputs["features"]}, targets)) == ["triplet"]
    assert without.skips_outputs
    assert not ReIDLoss().skips_outputs


def test_half_precision_is_lifted():
    outputs, label = outputs_of(6), torch.tensor([0, 0, 1, 1, 4, 4])
    halves = {name: value.detach().bfloat16() for name, value in outputs.items()}
    exact = ReIDLoss()({name: value.float() for name, value in halves.items()}, {"label": label})
    with torch.autocast("cpu", torch.bfloat16):
        found = ReIDLoss()(halves, {"label": label})
    for name, value in found.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[name])


def test_faults_that_a_person_can_mend_are_named():
    with pytest.raises(UserError, match=r"label 9.*5 classes"):
        ReIDLoss()(outputs_of(2), {"label": torch.tensor([0, 9])})
    with pytest.raises(UserError, match="num_classes"):
        ReIDLoss()({"features": draw(2, 4)}, {"label": torch.tensor([0, 1])})
    for arguments, words in (
        ({"smoothing": "torchride"}, "torchreid"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"id_weight": 0, "triplet_weight": 0}, "triplet_weight"),
        ({"margin": -0.1}, "margin"),
    ):
        with pytest.raises(UserError, match=words):
            CRITERIA.build({"type": "ReIDLoss", **arguments}, "model.criterion")


def test_all_are_registered_by_name():
    assert LOSSES.get("BatchHardTriplet") is BatchHardTriplet
    assert LOSSES.get("JSDivergence") is JSDivergence
    assert CRITERIA.get("ReIDLoss") is ReIDLoss
    assert DECODERS.get("EmbeddingDecoder") is EmbeddingDecoder


# --- Decoder ---------------------------------------------------------------------------------------------------------


def test_the_decoder_gives_one_float32_embedding_a_picture():
    embedding = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    found = EmbeddingDecoder()({"embedding": embedding}, [{}, {}])
    assert [p["embedding"].tolist() for p in found] == [pytest.approx([0.6, 0.8]), [0.0, 0.0]]
    plain = EmbeddingDecoder(normalise=False)({"embedding": embedding}, [{}, {}])
    assert plain[0]["embedding"].tolist() == [3.0, 4.0]
    assert all(p["embedding"].dtype == torch.float32 and not p["embedding"].requires_grad for p in found + plain)
