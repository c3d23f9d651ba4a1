"""Losses on relations: between the positions of a map."""

import functools
import math
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_tasks.losses.base import Loss, check_maps, check_option

EPS = 1e-8


class PairWise(Loss):
    """Pair-wise distillation of structured knowledge distillation: how alike the regions of a map are.

    Both maps are pooled to a grid of nodes; `a_ij` is the cosine between nodes i and j. With E connected pairs:
    `1 / (N E) * sum over samples and pairs of (a_ij of the student - a_ij of the teacher)^2`.

    Liu et al. 2019, the pair-wise term (arXiv 1903.04197), and the connection range of the journal version.

    Args:
        scale: height and width of a node as a share of the map's, above 0 and below 1, rounded down to whole pixels.
            The last nodes of a row or column take what is left: half of 65 gives 3 x 3 nodes, as in the authors' code.
        pool: height and width of a node in pixels instead, the paper's beta.
        pooling: `max` as in the authors' code, `avg` as in the paper.
        neighbours: connect each node with this many nearest ones, itself among them, the paper's alpha. Nearest by the
            Chebyshev distance on the grid, and the first in row-major order of equal ones. None: all with all.
        detach_norm: treat the length of a node's feature as a constant, as the authors' code does; the gradient then
            also has a part along the feature. False: the gradient of the cosine, as in the paper.

    Shapes: maps (N, C, H, W) whose grids of nodes agree; channels are free, sizes need not be even or square. Invariant
    to the batch size.

    The defaults are the authors' code. The paper: `PairWise(pool=2, pooling='avg', neighbours=..., detach_norm=False)`.

    *Deviations*: a node whose feature is all zero has no direction and gets no gradient; the authors' code gives it one
    of the order of 1e8. The paper's factor beta / (W' H' alpha) is read as the mean over connected pairs.
    """

    Pooling = Literal["max", "avg"]

    paper: ClassVar[str] = "Liu et al., Structured Knowledge Distillation for Semantic Segmentation, CVPR 2019"
    year: ClassVar[int] = 2019
    taps: ClassVar[str] = "maps"
    usual_weight: ClassVar[float] = 0.5
    usual_tap: ClassVar[str] = "backbone.layer4"

    def __init__(
        self,
        scale: float = 0.5,
        pool: int | None = None,
        pooling: Pooling = "max",
        neighbours: int | None = None,
        detach_norm: bool = True,
    ) -> None:
        super().__init__()
        check_option(pooling, get_args(self.Pooling), "pooling", self)
        if not 0 < scale < 1:
            raise ValueError(f"PairWise: scale is a share of the map, above 0 and below 1, not {scale!r}.")
        if pool is not None and pool < 1:
            raise ValueError(f"PairWise: pool is a number of pixels, at least 1, not {pool!r}.")
        if neighbours is not None and neighbours < 1:
            raise ValueError(f"PairWise: neighbours must be at least 1, not {neighbours!r}.")
        self.scale = scale
        self.pool = pool
        self.pooling = pooling
        self.neighbours = neighbours
        self.detach_norm = detach_norm

    def compute(self, student: Tensor, teacher: Tensor) -> Tensor:
        check_maps(student, teacher, self)
        nodes_s, nodes_t = self.nodes(student), self.nodes(teacher)
        grid = nodes_s.shape[2:]
        if grid != nodes_t.shape[2:]:
            raise ValueError(
                f"PairWise compares grids of nodes, but the student's shape {tuple(student.shape)} gives "
                f"{tuple(grid)} nodes and the teacher's {tuple(teacher.shape)} gives {tuple(nodes_t.shape[2:])}. "
                f"A connector can bring the student's map to the teacher's size."
            )
        count = math.prod(grid)
        if count == 1:
            raise ValueError(
                f"PairWise compares nodes with each other, but maps of shape {tuple(student.shape)} give only one node."
            )
        squares = (self.affinity(nodes_s) - self.affinity(nodes_t)).square()
        if self.neighbours is None or self.neighbours >= count:
            return squares.mean()
        connected = connections(*grid, self.neighbours, squares.device)
        return (squares * connected).mean() * (count / self.neighbours)

    def nodes(self, features: Tensor) -> Tensor:
        """Features (N, C, H, W) pooled to nodes (N, C, h, w)."""
        height, width = features.shape[2:]
        kernel = [min(self.pool or max(1, int(self.scale * size)), size) for size in (height, width)]
        if self.pooling == "max":
            return F.max_pool2d(features, kernel, kernel, ceil_mode=True)
        return F.avg_pool2d(features, kernel, kernel, ceil_mode=True)

    def affinity(self, nodes: Tensor) -> Tensor:
        """Cosines between all nodes, (N, h * w, h * w)."""
        features = nodes.flatten(2)
        lengths = features.norm(dim=1, keepdim=True)
        directions = features / ((lengths.detach() if self.detach_norm else lengths) + EPS)
        directions = directions.where(lengths > EPS, 0.0)
        return directions.transpose(1, 2) @ directions


@functools.lru_cache(maxsize=16)
def connections(height: int, width: int, neighbours: int, device: torch.device) -> Tensor:
    """Which nodes of a grid are connected, (h * w, h * w) of bool: row i holds the `neighbours` nearest of node i."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    distances = (places[:, None] - places[None]).abs().amax(dim=2)
    nearest = distances.argsort(dim=1, stable=True)[:, :neighbours]
    return torch.zeros_like(distances, dtype=torch.bool).scatter_(1, nearest, True).to(device)
