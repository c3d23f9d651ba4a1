"""Every registered loss in a recipe, from its config to the gradient in the student."""

from typing import Any

import pytest
import torch
import toys
from loss_inputs import shipped
from torch import Tensor, nn

from kd_tasks.registry import LOSSES, NETWORKS


@NETWORKS.register
class ToyTokens(nn.Module):
    """A transformer of one layer over 2x2 patches of 8 pixels; hidden states, attention scores, and a map of them."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, stride=8)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.scores, self.hidden = nn.Identity(), nn.Identity()
        self.head = nn.Linear(width, toys.CLASSES)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        tokens = self.patches(images).flatten(2).mT
        query, key = (layer(tokens).unflatten(2, (2, -1)).transpose(1, 2) for layer in (self.query, self.key))
        scores = self.scores(query @ key.mT)
        hidden = self.hidden(tokens + scores.softmax(-1).mean(1) @ tokens)
        return {"logits": self.head(hidden[:, 0])}


@NETWORKS.register
class ToyHeads(nn.Module):
    """Three heads on one map."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, width, 3, padding=1)
        self.heads = nn.ModuleList(nn.Linear(width, toys.CLASSES) for _ in range(3))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.trunk(images).relu().mean((2, 3))
        return {f"logits{n}": head(features) for n, head in enumerate(self.heads)} | {
            "logits": self.heads[0](features),
            "features": features,
        }


LOGITS = {"on": "logits"}
MAP = {"on": "stage2", "connector": "conv1x1"}
MAPS = {"on": ["stage1", "stage2"], "connector": "conv1x1"}
RAW = {"on": "stage2"}
RAWS = {"on": ["stage1", "stage2"]}
ALONE = {"student": "logits"}
HEADS = {"student": {"type": "ToyHeads"}, "teacher": None, "teachers": None}
TOKENS = {"student": {"type": "ToyTokens"}, "teacher": {"type": "ToyTokens", "width": 12}}
SEVERAL = {"teacher": None, "teachers": {"a": {"type": "ToyNet", "width": 6}, "b": {"type": "ToyNet"}}}

RECIPES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        [
            "SoftTargets",
            "LogitRegression",
            "GeneralisedDistillation",
            "NoisyTeacher",
            "CWTM",
            "DKPP",
            "Consistency",
            "PatientPrediction",
            "DKD",
            "DIST",
            "LogitStandardisation",
            "TinyBERTPrediction",
            "ConditionalAdversarial",
            "KDGAN",
            "IRGVertex",
            "GradientAttention",
        ],
        LOGITS,
    ),
    **dict.fromkeys(["LabelSmoothing", "DAFLOneHot", "DAFLEntropy"], ALONE),
    **dict.fromkeys(["Hint", "ChannelWise", "PixelWise", "AttentionTransfer", "HeatmapMimicry"], MAP),
    **dict.fromkeys(["ActivationBoundaries", "FSP", "ReviewKD"], MAPS),
    **dict.fromkeys(["NeuronSelectivity", "PairWise", "FactorTransfer", "VID", "MGD", "SimilarityPreserving"], RAW),
    **dict.fromkeys(["PKT", "RKDAngle", "RKDDistance", "CCKD", "HardDarkRank", "RelativeTeacher", "IRGEdge"], RAW),
    **dict.fromkeys(["IRGTransformation", "MEAL"], RAWS),
    "AbsoluteTeacher": MAP,
    "MutualLearning": {"student": "logits", "teacher": ["a.logits", "b.logits"], "model": SEVERAL},
    "LogEuclidean": {"student": "stage2", "teacher": ["a.stage2", "b.stage2"], "model": SEVERAL},
    "RelativeDissimilarity": {"student": "stage2", "teacher": ["a.stage2", "b.stage2"], "model": SEVERAL},
    "CRD": {**RAW, "loss": {"samples": 16, "negatives": 6, "width": 8}},
    "Overhaul": {"on": "stage2.1", "connector": "conv1x1"},
    "SAD": {"student": "stage1", "target": "stage2"},
    "DAFLActivation": {"student": "stage2"},
    "BatchNormStatistics": {"student": "stage2.1:in"},
    "AttentiveHint": {**MAP, "model": {"targets": "teacher_error"}},
    "AttentiveImitation": {**LOGITS, "model": {"targets": "target"}},
    "DataImpression": {**ALONE, "model": {"targets": "soft_label"}},
    "Hinge": {**LOGITS, "loss": {"critic": {"type": "ToyCritic"}}},
    "WGANGP": {**LOGITS, "loss": {"critic": {"type": "ToyCritic"}}},
    "LogitDistance": {"student": "logits0", "target": "logits1", "model": HEADS},
    "ONE": {"student": ["logits0", "logits1", "logits2"], "target": "features", "model": HEADS},
    "BYOT": {
        "student": ["logits0", "logits1", "features", "features"],
        "target": ["logits2", "features"],
        "model": HEADS,
    },
    "PatientHidden": {"on": "hidden", "connector": None, "model": {**TOKENS, "teacher": {"type": "ToyTokens"}}},
    "TinyBERTHidden": {"on": "hidden", "model": TOKENS},
    "TinyBERTEmbedding": {"on": "hidden", "model": TOKENS},
    "TinyBERTAttention": {"on": "scores", "model": TOKENS},
    "JSDivergence": LOGITS,
    "BatchHardTriplet": ALONE,
    "LabelAttention": {"student": "stage2", "model": {"targets": "mask"}},
}

# It compares two views of a picture, and a student is tapped in one: it is called by hand.
BY_HAND = {"GradientSymmetry"}

TARGETS = {
    "teacher_error": lambda: torch.rand(8, generator=torch.Generator().manual_seed(3)),
    "target": lambda: torch.randn(8, toys.CLASSES, generator=torch.Generator().manual_seed(3)),
    "mask": lambda: torch.arange(8 * 16 * 16).view(8, 16, 16) % 3,
    "soft_label": lambda: torch.softmax(torch.randn(8, toys.CLASSES, generator=torch.Generator().manual_seed(3)), 1),
}


def test_no_loss_is_without_a_recipe() -> None:
    assert set(shipped(LOSSES)) - BY_HAND <= set(RECIPES)


@pytest.mark.parametrize("name", [name for name in shipped(LOSSES) if name not in BY_HAND])
def test_a_loss_in_a_recipe_teaches_the_student(name: str) -> None:
    recipe = dict(RECIPES[name])
    changes = dict(recipe.pop("model", {}))
    target = changes.pop("targets", None)
    cfg = {**recipe, "loss": {"type": name, **recipe.pop("loss", {})}}
    torch.manual_seed(0)
    model = toys.distiller(transfers={"some": cfg}, criterion=None, **without_unread_teacher(cfg, changes))
    model.train()
    batch = toys.batch(samples=8)
    for place, meta in enumerate(batch["meta"]):
        meta["index"] = place
    if target is not None:
        batch["targets"][target] = TARGETS[target]()
    terms = model(**model.data_preprocessor(batch, True), mode="loss")
    assert list(terms) == ["kd.some"]
    assert terms["kd.some"].isfinite()
    terms["kd.some"].backward()
    gradients = [p.grad for p in model.network.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients)
    assert max(g.abs().max() for g in gradients) > 0


def without_unread_teacher(cfg: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes`, with no teacher where the recipe reads none."""
    reads_teacher = "on" in cfg or "teacher" in cfg
    return changes if reads_teacher else {**changes, "teacher": None}
