"""Reference values and settings of the losses on relations."""

from collections.abc import Mapping

from torch import Tensor

from kd_tasks.losses import (
    CCKD,
    PKT,
    AbsoluteTeacher,
    HardDarkRank,
    LogEuclidean,
    PairWise,
    RelativeTeacher,
    RKDAngle,
    RKDDistance,
    SimilarityPreserving,
)
from loss_cases import Case

PAPER_PAIRS = {"pool": 2, "pooling": "avg", "detach_norm": False}


def three_teachers(x: Mapping[str, Tensor]) -> Tensor:
    teachers = [x[f"teacher{k}"] for k in range(3)]
    return LogEuclidean(x["alpha"].tolist())(x["student"], teachers)


CASES = [
    # The authors' code computes these two in float32, whatever it is given.
    Case("skd_pairwise_even", lambda x: PairWise()(x["student"], x["teacher"]), rtol=1e-5, gradient_rtol=1e-4),
    Case("skd_pairwise_odd", lambda x: PairWise()(x["student"], x["teacher"]), rtol=1e-5, gradient_rtol=1e-4),
    Case("skd_pairwise_paper_full", lambda x: PairWise(neighbours=16, **PAPER_PAIRS)(x["student"], x["teacher"])),
    Case("skd_pairwise_paper_range9", lambda x: PairWise(neighbours=9, **PAPER_PAIRS)(x["student"], x["teacher"])),
    Case(
        "rkd",
        lambda x: 25 * RKDDistance()(x["emb_s"], x["emb_t"]) + 50 * RKDAngle()(x["emb_s"], x["emb_t"]),
    ),
    Case("rkd", lambda x: RKDDistance()(x["emb_s"], x["emb_t"]), "distance"),
    Case("rkd", lambda x: RKDAngle()(x["emb_s"], x["emb_t"]), "angle"),
    Case("rkd", lambda x: HardDarkRank(normalise=False)(x["emb_s"] / 4, x["emb_t"] / 4), "hard_darkrank_on_emb_div4"),
    Case("cckd", lambda x: CCKD()(x["emb_s"], x["emb_t"])),
    Case("cckd", lambda x: CCKD("bilinear")(x["emb_s"], x["emb_t"]), "bilinear"),
    Case("cckd", lambda x: CCKD("gaussian_exact")(x["emb_s"], x["emb_t"]), "rbf_exact"),
    Case("cckd", lambda x: CCKD("author")(x["proj_s"], x["proj_t"]), "repdistiller_author_code"),
    Case("sp", lambda x: SimilarityPreserving()(x["fs"], x["ft"])),
    Case("pkt", lambda x: PKT()(x["emb_s"], x["emb_t"])),
    Case("metric_teachers", lambda x: RelativeTeacher()(x["emb_s"], x["emb_t"])),
    # The code adds 1e-6 to each difference.
    Case(
        "metric_teachers",
        lambda x: AbsoluteTeacher()(x["emb_s"], x["emb_t"]),
        "absolute",
        rtol=1e-5,
        gradient_rtol=1e-5,
    ),
    Case(
        "metric_teachers",
        lambda x: RelativeTeacher("pairs")(x["emb_s_raw"], x["emb_t_raw"]),
        "relative_l1_pairs",
    ),
    Case("reid_log_euclidean", three_teachers),
]

SETTINGS = {
    "PairWise-avg": lambda: PairWise(pooling="avg", detach_norm=False),
    "PairWise-paper": lambda: PairWise(pool=2, pooling="avg", neighbours=3, detach_norm=False),
    "PairWise-pixels": lambda: PairWise(pool=1),
    "CCKD-bilinear": lambda: CCKD("bilinear"),
    "CCKD-author": lambda: CCKD("author"),
    "HardDarkRank-raw": lambda: HardDarkRank(normalise=False),
    "HardDarkRank-short": lambda: HardDarkRank(alpha=10.0, beta=1.0, permute_len=2),
    "CCKD-exact": lambda: CCKD("gaussian_exact"),
    "CCKD-order5": lambda: CCKD(order=5),
    "CCKD-width": lambda: CCKD(width=6),
    "CCKD-author-width": lambda: CCKD("author", width=6),
    "RelativeTeacher-pairs": lambda: RelativeTeacher("pairs"),
    "LogEuclidean-weights": lambda: LogEuclidean(weights=[0.5, 0.0, 0.3]),
}

# Three teachers, each of its own width.
SHAPES = {
    "LogEuclidean": lambda batch, size: ((batch, 16), [(batch, 16), (batch, 5), (batch, 20)]),
}

BEYOND_HALF = {
    ("CCKD-bilinear", "large_float16"): "fourth degree",
    ("CCKD-author", "large_float16"): "second degree, summed over the width",
    ("HardDarkRank-raw", "large_float16"): "third power of the distances",
}

UNDEFINED = {("PairWise-paper", "tiny"): "only one node"}

# Several teachers that disagree: the floor is their weighted square distance to their mean.
TRAINING = {"LogEuclidean": {"floor": 30.3}, "LogEuclidean-weights": {"floor": 2.2}}
