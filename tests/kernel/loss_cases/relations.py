"""Reference values and settings of the losses on relations."""

from kd_tasks.losses import PairWise
from loss_cases import Case

PAPER_PAIRS = {"pool": 2, "pooling": "avg", "detach_norm": False}

CASES = [
    # The authors' code computes these two in float32, whatever it is given.
    Case("skd_pairwise_even", lambda x: PairWise()(x["student"], x["teacher"]), rtol=1e-5, gradient_rtol=1e-4),
    Case("skd_pairwise_odd", lambda x: PairWise()(x["student"], x["teacher"]), rtol=1e-5, gradient_rtol=1e-4),
    Case("skd_pairwise_paper_full", lambda x: PairWise(neighbours=16, **PAPER_PAIRS)(x["student"], x["teacher"])),
    Case("skd_pairwise_paper_range9", lambda x: PairWise(neighbours=9, **PAPER_PAIRS)(x["student"], x["teacher"])),
]

SETTINGS = {
    "PairWise-avg": lambda: PairWise(pooling="avg", detach_norm=False),
    "PairWise-paper": lambda: PairWise(pool=2, pooling="avg", neighbours=3, detach_norm=False),
    "PairWise-pixels": lambda: PairWise(pool=1),
}

UNDEFINED = {("PairWise-paper", "tiny"): "only one node"}
