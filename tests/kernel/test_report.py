"""The report card and the pictures to browse."""

import base64
import json
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from run_folders import measured, write_run

from kd_tasks.engine.config import load_config
from kd_tasks.errors import UserError
from kd_tasks.evaluation.compare import compare, rows_of
from kd_tasks.evaluation.comparison import ALONE, DISTILLED, EXPORTED, TEACHER, Comparison
from kd_tasks.report import pictures
from kd_tasks.report.card import card, loss_terms, write_card
from kd_tasks.report.charts import smoothed
from kd_tasks.report.pictures import Gallery, Picture, Sample, browse, data_uri, gallery_of, spread

VOID = {"img", "meta", "br", "link", "hr", "use", "path", "rect", "circle", "line"}
NASTY = "<script>alert('x')</script>&\""


class Page(HTMLParser):
    """What a browser would see: the tags with their attributes, the text, and whether all tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def comparison(*more, **rest):
    classes = {"road": {"IoU": 80.0}, NASTY: {"IoU": 40.0}}
    parts = [measured(role, score, per_class=classes) for role, score in ((TEACHER, 80), (ALONE, 70), (DISTILLED, 76))]
    return Comparison("segmentation", "CamVid test", rows_of([*parts, *more]), **rest)


@pytest.fixture
def gallery():
    uri = data_uri(np.zeros((4, 6, 3), np.uint8))
    shown = Picture("label", uri, f"label of {NASTY}.png")
    return Gallery((Sample(f"Worst: 3.0 ({NASTY})", (shown,)),), (("road", (1, 2, 3)),), "Some images.")


@pytest.fixture
def runs(tmp_path):
    """Three runs with logs, whose numbers are made up and whose networks are real."""
    for role, score in ((TEACHER, 90.0), (ALONE, 70.0), (DISTILLED, 80.0)):
        folder = write_run(tmp_path / role, role, {"top1": score, "top5": 99.0})
        losses = [{"iter": i, "epoch": 0, "loss": 3.0 / i, "task.ce": 1.0 / i, "kd.soft": 2.0 / i} for i in (1, 2, 3)]
        scalars = [*losses, {"iter": 3, "epoch": 1, "val/top1": score - 1}]
        (folder / "scalars.json").write_text("".join(json.dumps(row) + "\n" for row in scalars) + '{"iter": 4, "lo')
    return [tmp_path / role for role in (TEACHER, ALONE, DISTILLED)]


def test_the_card_stands_alone(gallery):
    page = Page(card(comparison(measured(EXPORTED, 75.9, cost={"file_bytes": 1e6})), gallery))
    assert page.open == []
    assert page.of("script") == page.of("link") == []
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "url(http" not in card(comparison(), gallery)
    assert not re.search(r"@import|https?://", card(comparison(), gallery))


def test_what_comes_from_outside_is_escaped(gallery):
    text = card(comparison(notes=(NASTY,)), gallery)
    assert "<script" not in text
    assert Page(text).text.count("alert('x')") >= 3


def test_pictures_and_charts_say_what_they_show(gallery):
    page = Page(card(comparison(), gallery))
    images, charts = page.of("img"), page.of("svg")
    assert len(images) == 1
    assert all(image["alt"] for image in images)
    assert len(charts) == 2
    assert "teacher 80.00, alone 70.00, distilled 76.00" in charts[0]["aria-label"]
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))


def test_the_card_says_what_came_out(gallery):
    exported = measured(EXPORTED, 75.9, cost={"file_bytes": 3 * 2**20, "latency_ms": 8.0})
    page = Page(card(comparison(exported, notes=("Only one seed.",)), gallery))
    for words in (
        "6.00 better than trained alone",
        "60 %",
        "3.0 MiB",
        "8.0 ms",
        "Only one seed.",
        "road",
        "Environment",
    ):
        assert words in page.text


def test_a_comparison_of_little_still_has_a_card():
    page = Page(card(Comparison("segmentation", "CamVid test", rows_of([measured(ALONE, 70)]))))
    assert page.open == []
    assert "alone 70.00" in page.text


def test_commands_can_be_pasted_whatever_the_folder_is_called():
    found = Comparison("segmentation", "CamVid test", rows_of([measured(ALONE, 70, path="my runs/a")]))
    assert "kd-tasks train 'my runs/a/config.py' --work-dir 'my runs/a'" in Page(card(found)).text


def test_hundreds_of_classes_are_no_chart():
    classes = {f"class {i}": {"IoU": 1.0} for i in range(150)}
    found = Comparison("segmentation", "ADE20K val", rows_of([measured(ALONE, 70, per_class=classes)]))
    assert "There are 150 classes" in Page(card(found)).text


def test_curves_and_configs_come_from_the_run_folders(runs, tmp_path):
    found = compare(runs, cost=False, likeness=False)
    page = Page(write_card(found, tmp_path / "report.html", Gallery()).read_text())
    labels = " ".join(svg["aria-label"] for svg in page.of("svg"))
    assert "Training losses over the iterations: task.ce, kd.soft" in labels
    assert "teacher ends at 89.00, alone ends at 69.00, distilled ends at 79.00" in labels
    assert "SoftTargets" in page.text
    assert f"kd-tasks train {runs[2] / 'config.py'}" in page.text


def test_loss_terms_leave_out_the_sum_and_the_learning_rate():
    rows = [{"iter": 5, "loss": 3.0, "task.ce": 1.0, "kd.soft": 2.0, "lr": 0.1}, {"iter": 5, "val/top1": 50.0}]
    assert loss_terms(rows) == {"task.ce": [(5.0, 1.0)], "kd.soft": [(5.0, 2.0)]}


def test_smoothing_keeps_constants_and_length():
    assert smoothed([2.0] * 50) == [2.0] * 50
    assert smoothed([1.0, 3.0]) == [1.0, 3.0]
    assert smoothed([0.0, 0.0, 3.0, 0.0, 0.0], share=0.5) == [0, 1, 1, 1, 0]


def test_the_gallery_shows_worst_and_typical_images_of_every_model(runs):
    shown = gallery_of(compare(runs, cost=False, likeness=False), each=2, candidates=12)
    assert [sample.title.split(":")[0] for sample in shown.samples] == ["Worst", "Worst", "Typical", "Typical"]
    titles = [picture.title for picture in shown.samples[0].pictures]
    assert titles == ["label", "prediction, teacher", "prediction, alone", "prediction, distilled"]
    assert ("right class", (0, 114, 178)) in shown.legend


@pytest.mark.parametrize(("lower_is_better", "expected"), [(False, [3, 0, 1]), (True, [2, 1, 0])])
def test_the_worst_are_the_lowest_scores_or_the_largest_errors(lower_is_better, expected):
    scores = {0: 50.0, 1: 60.0, 2: 90.0, 3: 10.0}
    chosen = pictures._worst_and_typical(scores, 1, lower_is_better)
    worst, typical = (index for index, _ in chosen)
    assert [worst, typical][0] == expected[0]
    assert typical in expected[1:]


def test_a_picture_survives_its_data_uri():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    kind, _, encoded = data_uri(image).partition(",")
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_COLOR)
    assert kind == "data:image/png;base64"
    assert np.array_equal(decoded[..., ::-1], image)


def test_large_pictures_are_made_smaller():
    uri = data_uri(np.zeros((100, 1000, 3), np.uint8), width=200)
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (20, 200, 3)


def test_indices_are_spread_over_all():
    assert spread(10, 3) == [0, 4, 9]
    assert spread(3, 10) == [0, 1, 2]
    assert spread(1, 5) == [0]


def test_browse_writes_sheets_of_the_training_data(tmp_path):
    files = browse(load_config("classification/alone_digits"), tmp_path, count=5, rows=3)
    assert [file.name for file in files] == ["data_1.png", "data_2.png"]
    heights = [cv2.imread(str(file)).shape[0] for file in files]
    assert heights[0] > heights[1] > 100


def test_browse_writes_predictions_of_a_checkpoint(runs, tmp_path):
    cfg = load_config(runs[1] / "config.py")
    (file,) = browse(cfg, tmp_path / "out", count=2, checkpoint=runs[1] / "student.pth")
    alone = cv2.imread(str(browse(cfg, tmp_path / "out", count=2)[0]))
    assert file.name == "predictions_1.png"
    assert cv2.imread(str(file)).shape[1] >= alone.shape[1]


def test_browse_needs_the_data(tmp_path):
    cfg = load_config("classification/alone_digits")
    cfg.train_dataloader = None
    with pytest.raises(UserError, match="train_dataloader"):
        browse(cfg, tmp_path)
