"""Pictures of re-identification: single samples, and queries beside the gallery pictures that are ranked first."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch

from kd_reid.ranking import JUNK, FeatureDistances, Labels, match_ranks, scores
from kd_tasks.vision.drawing import Entry, Image, Panel, Row, fitted, put_text

QUERY = (20, 20, 20)
RIGHT = (40, 160, 70)
WRONG = (215, 40, 40)
WHITE = (255, 255, 255)
TILE = (128, 64)
FRAME, GAP, LINE = 4, 6, 18
CAPTION_WIDTH = 160
TOP = 10

Sample = Mapping[str, Any]
Pictures = Callable[[int], Image]


class ReIDDrawing:
    """Draws single samples with identity and camera, and the predictions of a whole test set as ranked strips.

    Args:
        metainfo: of the data set; not read.
    """

    explanation = (
        "The queries of the test data on which the first of these models does worst, by average precision (AP): not "
        "typical ones, and not picked by hand. Each stands to the left of the ten gallery pictures nearest to it by "
        "the cosine of the embeddings. Pictures of the query's own person by its own camera and junk are left out, as "
        "in the metric; so are queries without a match."
    )

    def __init__(self, metainfo: Mapping[str, Any]) -> None:
        pass

    def panels(self, image: Image, targets: Mapping[str, Any], prediction: Mapping[str, Any] | None) -> list[Panel]:
        """`label`, with identity, camera and label below the picture; or `image`. An embedding alone is no picture."""
        if "identity" not in targets:
            return [("image", image)]
        words = [f"person {int(targets['identity'])}", f"camera {camera_name(int(targets['camera']))}"]
        if int(targets.get("label", -1)) >= 0:
            words.append(f"label {int(targets['label'])}")
        return [("label", captioned(image, ", ".join(words)))]

    def legend(self) -> list[Entry]:
        """What the frames of a strip mean."""
        return [("query", QUERY), ("same person", RIGHT), ("another person", WRONG)]

    def gallery(
        self,
        picture: Pictures,
        samples: Sequence[Sample],
        predictions: Mapping[str, Sequence[Mapping[str, Any]]],
        count: int,
    ) -> list[Row]:
        """The worst queries of the first model, as every model ranks the gallery for them."""
        return ranked_strips(picture, samples, predictions, count)


def ranked_strips(
    picture: Pictures,
    samples: Sequence[Sample],
    predictions: Mapping[str, Sequence[Mapping[str, Any]]],
    count: int,
    top: int = TOP,
) -> list[Row]:
    """The queries with the lowest average precision, each beside the gallery pictures that are ranked first.

    Queries without a match in the gallery are left out. Equal precisions stand in the order of the data set.

    Args:
        picture: the image uint8 RGB of a sample, by its place in `samples`.
        samples: of each, `targets` with `identity` and `camera`, and `meta` with `role` and `path`.
        predictions: by model, one `dict(embedding=(D,))` a sample; the first model chooses the queries.
        count: queries at most.
        top: gallery pictures beside each.

    Returns:
        One row a query, titled with its rank among the worst, its camera and its path; one panel a model, titled with
        the model and the average precision in percent.

    Raises:
        UserError: if no query has a match.
    """
    rankings = {name: Ranking(samples, found) for name, found in predictions.items()}
    first = next(iter(rankings.values()))
    valid = int(np.count_nonzero(~np.isnan(first.ap)))
    rows = []
    for number, query in enumerate(np.argsort(first.ap, kind="stable")[: min(count, valid)].tolist(), start=1):
        place = int(first.queries[query])
        camera = camera_name(int(samples[place]["targets"]["camera"]))
        path = samples[place]["meta"].get("path", place)
        title = f"Worst {number} of {valid} queries, camera {camera} ({path})"
        panels = [
            (f"{name or title}: AP {100 * ranking.ap[query]:.1f} %", strip(picture, ranking, query, top))
            for name, ranking in rankings.items()
        ]
        rows.append(Row(title, panels))
    return rows


class Ranking:
    """The gallery ranked for every query by one model's embeddings, by cosine.

    Args:
        samples: of each, `targets` and `meta`, see `ranked_strips`.
        predictions: one `dict(embedding=(D,))` a sample.

    Attributes:
        queries: (Q,) the queries' places among the samples.
        ap: (Q,) their average precisions, 0 to 1; nan without a match.
    """

    def __init__(self, samples: Sequence[Sample], predictions: Sequence[Mapping[str, Any]]) -> None:
        roles = np.array([sample["meta"]["role"] for sample in samples])
        numbers = (np.array([int(s["targets"][key]) for s in samples], np.int64) for key in ("identity", "camera"))
        self.labels = Labels(*numbers)
        self.queries, self.gallery = np.flatnonzero(roles == "query"), np.flatnonzero(roles == "gallery")
        embeddings = torch.stack([prediction["embedding"].detach().cpu().float() for prediction in predictions])
        self.distances = FeatureDistances(embeddings[self.queries], embeddings[self.gallery])
        of_queries, of_gallery = self.labels.at(self.queries), self.labels.at(self.gallery)
        self.ap = scores(match_ranks(self.distances, of_queries, of_gallery)).ap

    def nearest(self, query: int, count: int) -> list[int]:
        """Places of the gallery pictures that are ranked first for a query, without junk and its own camera's own."""
        own, others = self.labels.at(self.queries[query : query + 1]), self.labels.at(self.gallery)
        same_camera = (others.identity == own.identity) & (others.camera == own.camera)
        row = self.distances.block(slice(query, query + 1)).numpy()[0]
        order = np.argsort(row, kind="stable")
        kept = order[~(same_camera | (others.identity == JUNK))[order]]
        return [int(place) for place in self.gallery[kept[:count]]]


def strip(picture: Pictures, ranking: Ranking, query: int, top: int = TOP) -> Image:
    """A query in a black frame, then its nearest gallery pictures, framed green if right and red if wrong."""
    place = int(ranking.queries[query])
    identity, camera = ranking.labels.identity, ranking.labels.camera
    tiles = [tile(picture(place), QUERY, f"query c{camera_name(int(camera[place]))}")]
    for found in ranking.nearest(query, top):
        colour = RIGHT if identity[found] == identity[place] else WRONG
        tiles.append(tile(picture(found), colour, f"c{camera_name(int(camera[found]))}"))
    blank = np.full((tiles[0].shape[0], GAP, 3), 255, np.uint8)
    wider = np.full((tiles[0].shape[0], 2 * GAP, 3), 255, np.uint8)
    parts = [tiles[0], wider, *(part for found in tiles[1:] for part in (found, blank))]
    return np.concatenate(parts[:-1], axis=1)


def tile(image: Image, colour: tuple[int, int, int], words: str) -> Image:
    """A picture of one size in a frame, with a few words below it."""
    framed = cv2.copyMakeBorder(
        fitted(image, *TILE), FRAME, FRAME + LINE, FRAME, FRAME, cv2.BORDER_CONSTANT, value=colour
    )
    picture = np.asarray(framed, np.uint8)
    picture[-LINE:] = WHITE
    put_text(picture, words, (FRAME, picture.shape[0] - 5), TILE[1])
    return picture


def captioned(image: Image, words: str) -> Image:
    """`image`, enlarged until a line of words fits below it."""
    scale = max(1, -(-CAPTION_WIDTH // image.shape[1]))
    large = image.repeat(scale, axis=0).repeat(scale, axis=1)
    below = np.full((LINE, large.shape[1], 3), 255, np.uint8)
    put_text(below, words, (2, LINE - 5), large.shape[1] - 4)
    return np.concatenate([large, below])


def camera_name(camera: int) -> str:
    """How the benchmarks call a camera: counted from 1; `?` where it is unknown."""
    return str(camera + 1) if camera >= 0 else "?"
