"""Re-identification: whatever a person gets wrong is one message, exit code 2, and nothing half-written."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from kd_reid.networks import SmallReIDNet
from kd_reid.synthetic import TARGET, write_market1501
from test_bad_input import checked, half_written

from kd_tasks.cli import main
from kd_tasks.engine.checkpoints import save_student

CONFIG = """
model = dict(
    type='AdaptiveDistiller',
    student=dict(type='SmallReIDNet', num_classes=4, width=16, width_multiplier=0.5),
    teachers=dict(
        north=dict(type='SmallReIDNet', num_classes=4, width=16),
        south=dict(type='SmallReIDNet', num_classes=9, width=24),
    ),
    aggregate='similarity',
    interval=1,
    transfers=dict(
        similarity=dict(
            student='embedding',
            teacher=['north.embedding', 'south.embedding'],
            loss=dict(type='LogEuclidean'),
            weight=0.1,
        ),
    ),
    criterion=dict(type='ReIDLoss'),
    decoder=dict(type='EmbeddingDecoder'),
)
train_dataloader = dict(
    batch_size=12,
    num_workers=0,
    sampler=dict(type='MixedIdentitySampler', unlabelled=8, identities=2, pictures=2),
    dataset=dict(type='Market1501', data_root='{data}', split='train', labelled=4),
)
test_dataloader = dict(
    batch_size=32, num_workers=0, dataset=dict(type='Market1501', data_root='{data}', split='test', test_mode=True)
)
test_evaluator = dict(type='ReIDMetric')
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.001))
work_dir = '{root}/run'
"""
IDENTITIES = 6
SOFT = "soft=dict(student='logits', teacher='north.logits', loss=dict(type='SoftTargets')),\n        similarity=dict("


class Workplace:
    """A folder with pictures of people, a config, and a command line that is watched."""

    def __init__(self, root: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.root, self.capfd = root, capfd
        self.config, self.run, self.data = root / "config.py", root / "run", root / "data"
        self.text = CONFIG.format(root=root, data=self.data)
        self.config.write_text(self.text)

    def replace(self, old: str, new: str) -> None:
        assert old in self.text
        self.text = self.text.replace(old, new)
        self.config.write_text(self.text)

    def pictures(self, folder: str) -> list[Path]:
        return sorted((self.data / folder).glob("*.jpg"))

    def identities(self) -> list[str]:
        """Names of the identities of the training data, in label order."""
        return [str(int(n)) for n in sorted({p.name.split("_")[0] for p in self.pictures("bounding_box_train")})]

    def call(self, *arguments: str | Path) -> tuple[int, str]:
        """Exit code of `kd-tasks`, and everything that it prints."""
        self.capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in arguments])
        return int(left.value.code or 0), "\n".join(self.capfd.readouterr())

    def complaint(self, *arguments: str | Path) -> str:
        """The one message of a training, or of another command, that cannot be; no weights are left behind."""
        self.capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in arguments or ("train", self.config)])
        message = checked(int(left.value.code or 0), self.capfd.readouterr().err)
        assert not list(self.run.rglob("*.pth")) and not half_written(self.root)
        return message


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny twin of Market-1501, its target alone."""
    root = tmp_path_factory.mktemp("twin")
    write_market1501(root, 0, 0, IDENTITIES, 0, 2, size=(32, 16))
    return root / TARGET


@pytest.fixture
def place(
    pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Workplace:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KD_TASKS_DATA", raising=False)
    shutil.copytree(pictures, tmp_path / "data")
    return Workplace(tmp_path, capfd)


def test_without_a_fault_it_trains(place: Workplace) -> None:
    code, errors = place.call("train", place.config)
    assert code == 0, errors
    assert {"student.pth", "metrics.json", "epoch_1.pth"} <= {f.name for f in place.run.iterdir()}
    assert "cannot be read" not in errors and "not in the gallery" not in errors


# --- Names and folders -----------------------------------------------------------------------------------------------


def test_names_that_cannot_be_read_are_counted_and_listed_and_the_run_goes_on(place: Workplace) -> None:
    for folder, name in (("bounding_box_train", "portrait.jpg"), ("query", "0001_1.jpg"), ("query", "x_c1.jpg")):
        shutil.copy(place.pictures(folder)[0], place.data / folder / name)
    code, errors = place.call("train", place.config)
    assert code == 0, errors
    assert "left out 1 that cannot be read" in errors and "bounding_box_train/portrait.jpg" in errors
    assert "left out 2 that cannot be read" in errors and "query/0001_1.jpg, query/x_c1.jpg" in errors
    assert (place.run / "metrics.json").is_file()


def test_no_name_that_can_be_read(place: Workplace) -> None:
    for number, picture in enumerate(place.pictures("bounding_box_train")):
        picture.rename(picture.with_name(f"{number}.jpg"))
    message = place.complaint()
    assert "no picture for training" in message and "bounding_box_train/0.jpg" in message and "more" in message


@pytest.mark.parametrize("gone", ["pictures", "folder"])
def test_a_folder_without_query_pictures(place: Workplace, gone: str) -> None:
    code, errors = place.call("train", place.config, "--cfg-options", "test_dataloader=None", "test_evaluator=None")
    assert code == 0, errors
    weights = (place.run / "student.pth").rename(place.root / "student.pth")
    shutil.rmtree(place.run)
    shutil.rmtree(place.data / "query")
    if gone == "pictures":
        (place.data / "query").mkdir()
    message = place.complaint("test", place.config, weights)
    assert str(place.data) in message and "query" in message


def test_a_query_whose_person_is_not_in_the_gallery_is_left_out_and_counted(place: Workplace) -> None:
    stranger = place.data / "query" / "0999_c1s1_000001_00.jpg"
    shutil.copy(place.pictures("query")[0], stranger)
    code, errors = place.call("train", place.config)
    assert code == 0, errors
    assert "1 queries show somebody who is not in the gallery: query/0999_c1s1_000001_00.jpg" in errors
    before = (place.run / "metrics.json").read_text()
    stranger.unlink()
    place.call("test", place.config, place.run / "student.pth", "--out", place.root / "out")
    without = (place.root / "out" / "metrics.json").read_text()
    assert '"mAP"' in before
    assert re.findall(r'"mAP": (\S+),', before) == re.findall(r'"mAP": (\S+),', without)


def test_no_query_has_its_person_in_the_gallery(place: Workplace) -> None:
    for picture in place.pictures("query"):
        picture.rename(picture.with_name(picture.name.replace("0", "9", 1)))
    code, errors = place.call("train", place.config)
    assert code == 2 and errors.count("Error:") == 1 and "Traceback" not in errors
    assert "match" in errors and "one split" in errors
    assert not (place.run / "metrics.json").exists() and not half_written(place.run)


def test_a_folder_of_several_data_sets_names_them(place: Workplace) -> None:
    (place.root / "all").mkdir()
    place.data.rename(place.root / "all" / "target")
    place.replace(str(place.data), str(place.root / "all"))
    message = place.complaint()
    assert "target" in message and "name one" in message


# --- Teachers --------------------------------------------------------------------------------------------------------


def teacher_file(place: Workplace, classes: Sequence[str]) -> Path:
    """A teacher's checkpoint that records the order of its classes."""
    file = place.root / "teacher.pth"
    save_student(SmallReIDNet(num_classes=4, width=16), file, {"classes": list(classes)})
    return file


def test_a_teacher_with_another_label_order_gives_no_soft_targets(place: Workplace) -> None:
    place.replace("similarity=dict(", SOFT)
    place.replace("split='train', labelled=4", "split='train'")
    place.replace("num_classes=4, width=16),", "num_classes=6, width=16, checkpoint='{}'),")
    place.replace("num_classes=4, width=16, w", "num_classes=6, width=16, w")
    place.replace("sampler=dict(type='MixedIdentitySampler', unlabelled=8, identities=2, pictures=2)",
                  "sampler=dict(type='IdentitySampler', identities=3, pictures=4)")  # fmt: skip
    place.replace("aggregate='similarity'", "adaptive=False, aggregate='similarity'")
    names = place.identities()
    assert len(names) == IDENTITIES
    file = place.root / "teacher.pth"
    place.replace("{}", str(file))
    as_text = sorted(names)  # as fast-reid numbers them
    assert as_text != names
    save_student(SmallReIDNet(num_classes=6, width=16), file, {"classes": as_text})
    message = place.complaint()
    first = next(i for i, (theirs, ours) in enumerate(zip(as_text, names, strict=True)) if theirs != ours)
    assert "model.transfers.soft" in message and "model.teachers.north" in message
    assert f"the label {first} means '{as_text[first]}'" in message and f"'{names[first]}'" in message
    save_student(SmallReIDNet(num_classes=6, width=16), file, {"classes": names})
    assert place.call("train", place.config)[0] == 0


def test_embeddings_are_compared_whatever_the_label_order(place: Workplace) -> None:
    file = teacher_file(place, ["7", "5", "3", "1"])
    place.replace("num_classes=4, width=16),", f"num_classes=4, width=16, checkpoint='{file}'),")
    assert place.call("train", place.config)[0] == 0


def test_a_missing_checkpoint_of_one_teacher(place: Workplace) -> None:
    place.replace("num_classes=9, width=24", "num_classes=9, width=24, checkpoint='work_dirs/south/student.pth'")
    message = place.complaint()
    assert "model.teachers.south.checkpoint" in message and "work_dirs/south/student.pth" in message


def test_a_teacher_of_another_number_of_identities(place: Workplace) -> None:
    file = teacher_file(place, ["1", "2", "3", "4"])
    place.replace("num_classes=9, width=24", f"num_classes=9, width=16, checkpoint='{file}'")
    message = place.complaint()
    assert "model.teachers.south.checkpoint" in message and "classifier.weight" in message


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("'south.embedding'", "'sout.embedding'", ["model.transfers.similarity.teacher", "'sout", "'south'"]),
        ("'north.embedding', 'south", "'south", ["model.transfers.similarity.teacher", "at least two"]),
        ("north.embedding", "south.features", ["model.transfers.similarity.teacher", "one weight"]),
        ("aggregate='similarity'", "aggregate='similarities'", ["model.aggregate", "'similarity'"]),
        ("    aggregate='similarity',\n", "", ["AdaptiveDistiller needs 'aggregate'"]),
        ("interval=1", "intervall=1", ["model.intervall", "'interval'"]),
        ("interval=1", "interval=1, risk='triplets'", ["model.risk", "'triplet'"]),
    ],
)  # fmt: skip
def test_a_fault_of_the_aggregation(place: Workplace, old: str, new: str, expected: list[str]) -> None:
    place.replace(old, new)
    message = place.complaint()
    for part in expected:
        assert part in message
    assert "has 1 fault" in message, "it is found before anything is read"


# --- Batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("pictures=2", "picture=2", ["train_dataloader.sampler.picture", "'pictures'"]),
        ("MixedIdentitySampler", "MixedIdentitySamplers", ["train_dataloader.sampler", "'MixedIdentitySampler'"]),
        ("pictures=2", "pictures=1", ["MixedIdentitySampler", "at least two pictures"]),
        ("identities=2", "identities=5", ["takes 5 identities", "has 4"]),
        ("unlabelled=8", "unlabelled=800", ["800 unlabelled", "Lower 'unlabelled'"]),
        ("labelled=4", "labelled=4, unlabelled=False", ["has 0", "unlabelled=True"]),
        ("labelled=4", "labelled=40", ["labelled=40", "0 to 6"]),
        ("labelled=4", "labeled=4", ["train_dataloader.dataset.labeled", "'labelled'"]),
        ("batch_size=12", "batch_size=16", ["batch_size is 16", "batch_size=12"]),
        ("num_classes=4, width=16, w", "num_classes=3, width=16, w", ["model.student.num_classes", "3", "4"]),
        ("num_classes=4, width=16, w", "num_classes=0, width=16, w", ["num_classes", "logits"]),
    ],
)  # fmt: skip
def test_a_fault_of_batches_and_labels(place: Workplace, old: str, new: str, expected: list[str]) -> None:
    place.replace(old, new)
    message = place.complaint()
    for part in expected:
        assert part in message


def test_nobody_has_two_pictures(place: Workplace) -> None:
    for person in {p.name.split("_")[0] for p in place.pictures("bounding_box_train")}:
        for spare in sorted((place.data / "bounding_box_train").glob(f"{person}_*"))[1:]:
            spare.unlink()
    place.replace("unlabelled=8", "unlabelled=2")
    place.replace("batch_size=12", "batch_size=6")
    message = place.complaint()
    assert "none of the 4 identities has two pictures" in message


def test_some_have_one_picture_and_the_run_goes_on(place: Workplace) -> None:
    place.replace(", labelled=4", "")
    place.replace("sampler=dict(type='MixedIdentitySampler', unlabelled=8, identities=2, pictures=2)",
                  "sampler=dict(type='IdentitySampler', identities=3, pictures=4)")  # fmt: skip
    place.replace("num_classes=4, width=16, w", "num_classes=6, width=16, w")
    place.replace("aggregate='similarity'", "adaptive=False, aggregate='similarity'")
    person = place.pictures("bounding_box_train")[0].name.split("_")[0]
    for spare in sorted((place.data / "bounding_box_train").glob(f"{person}_*"))[1:]:
        spare.unlink()
    code, errors = place.call("train", place.config)
    assert code == 0, errors
    assert "IdentitySampler: 1 of 6 identities have a single picture" in errors


def test_a_broken_picture_names_itself(place: Workplace) -> None:
    picture = place.pictures("bounding_box_train")[0]
    picture.write_bytes(picture.read_bytes()[:200])
    assert picture.name in place.complaint()


# --- Weights for an export -------------------------------------------------------------------------------------------


def test_weights_of_another_width(place: Workplace) -> None:
    file = place.root / "other.pth"
    torch.save({"state_dict": SmallReIDNet(num_classes=4, width=32).state_dict()}, file)
    message = place.complaint("export", place.config, file)
    assert "another architecture" in message and "other.pth" in message


def test_the_check_finds_the_wrong_batch_size_too(place: Workplace) -> None:
    place.replace("batch_size=12", "batch_size=16")
    assert "batch_size=12" in place.complaint("check", place.config)
