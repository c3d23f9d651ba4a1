"""Comparison of runs: arithmetic, roles, freshness of numbers, and real measurements of small networks."""

import io
import json
import math
import os
from pathlib import Path

import pytest
import torch
from rich.console import Console
from run_folders import measured, write_run
from sklearn.datasets import load_digits

from kd_tasks.deploy.artefact import manifest_path, read_manifest
from kd_tasks.engine.build import build_loader, build_task_model
from kd_tasks.engine.config import load_config, read_config
from kd_tasks.engine.files import sha256_of
from kd_tasks.engine.train import test as measure_run
from kd_tasks.errors import UserError
from kd_tasks.evaluation.compare import compare, rows_of
from kd_tasks.evaluation.comparison import (
    ALONE,
    DISTILLED,
    EXPORTED,
    TEACHER,
    Comparison,
    Spread,
    bytes_in_words,
    counted,
    gap_closed,
)
from kd_tasks.evaluation.deployed import evaluate_artefact, export_checkpoint
from kd_tasks.evaluation.measure import _labelled, measure_artefact, measure_likeness
from kd_tasks.evaluation.runs import Run, assign_roles, read_metrics, read_run, same_data, trained_unlike


def comparison(*runs, lower_is_better=False):
    return Comparison("segmentation", "CamVid test", rows_of(runs), lower_is_better)


@pytest.fixture
def folders(tmp_path):
    """Teacher, and two seeds of the student alone and distilled, with chosen numbers."""
    write_run(tmp_path / "teacher", TEACHER, {"top1": 90.0, "top5": 99.0})
    for seed, (alone, distilled) in enumerate([(70.0, 76.0), (72.0, 80.0)]):
        write_run(tmp_path / f"alone_{seed}", ALONE, {"top1": alone, "top5": 95.0}, seed)
        write_run(tmp_path / f"distilled_{seed}", DISTILLED, {"top1": distilled, "top5": 96.0}, seed)
    return tmp_path


def names(folder):
    return sorted(path for path in folder.iterdir() if path.is_dir())


# --- Arithmetic ---


@pytest.mark.parametrize(
    ("teacher", "alone", "distilled", "share"),
    [(80, 60, 70, 0.5), (80, 60, 60, 0.0), (80, 60, 80, 1.0), (80, 60, 85, 1.25), (80, 60, 55, -0.25)],
)
def test_the_gap_is_the_way_from_alone_to_the_teacher(teacher, alone, distilled, share):
    assert gap_closed(teacher, alone, distilled).share == pytest.approx(share)


def test_the_gap_of_an_error_is_closed_downwards():
    assert gap_closed(2.0, 4.0, 3.0, lower_is_better=True).share == pytest.approx(0.5)
    assert gap_closed(4.0, 2.0, 3.0, lower_is_better=True).share is None


@pytest.mark.parametrize(
    ("teacher", "alone", "said"),
    [(60, 60, "not better"), (59, 60, "not better"), (math.nan, 60, "teacher"), (80, math.nan, "student alone")],
)
def test_an_undefined_gap_says_why(teacher, alone, said):
    gap = gap_closed(teacher, alone, 70)
    assert gap.share is None
    assert said in gap.reason
    assert gap.shown() == "undefined"


def test_spread_is_mean_and_sample_deviation_and_leaves_out_what_is_no_number():
    spread = Spread((70.0, 74.0, math.nan))
    assert (spread.mean, spread.std) == (72.0, pytest.approx(math.sqrt(8)))
    assert spread.shown() == "72.00 ± 2.83"
    assert Spread((70.0,)).shown() == "70.00"
    assert Spread((math.nan,)).shown() == "-"
    assert Spread(()).shown() == ""


def test_gain_is_taken_seed_by_seed():
    found = comparison(
        measured(ALONE, 70, 0), measured(ALONE, 80, 1), measured(DISTILLED, 83, 1), measured(DISTILLED, 72, 0)
    )
    gain = found.gain(found.row(DISTILLED))
    assert sorted(gain.values) == [2, 3]


def test_gain_of_unlike_seeds_is_the_difference_of_means():
    found = comparison(measured(ALONE, 70, 0), measured(DISTILLED, 72, 1), measured(DISTILLED, 76, 2))
    assert found.gain(found.row(DISTILLED)).values == (4.0,)


def test_gain_is_positive_where_a_smaller_error_is_better():
    found = comparison(measured(ALONE, 4.0), measured(DISTILLED, 3.0), lower_is_better=True)
    assert found.gain(found.row(DISTILLED)).mean == 1.0


@pytest.mark.parametrize(
    ("distilled", "said"),
    [(76, "6.00 better than trained alone (70.00)"), (64, "6.00 worse than"), (70.001, "no better than trained alone")],
)
def test_the_headline_says_what_came_out(distilled, said):
    found = comparison(measured(TEACHER, 80), measured(ALONE, 70), measured(DISTILLED, distilled))
    assert said in found.headline()


def test_the_headline_tells_gap_and_file():
    exported = measured(EXPORTED, 74.9, cost={"file_bytes": 3 * 2**20, "latency_ms": 12.34})
    found = comparison(measured(TEACHER, 80), measured(ALONE, 70), measured(DISTILLED, 75), exported)
    assert "closes 50 % of the gap to the teacher (80.00)" in found.headline()
    assert "student.onnx has 74.90 mIoU, 3.0 MiB, 12.3 ms an image" in found.headline()


def test_an_undefined_gap_is_said_in_the_headline():
    found = comparison(measured(TEACHER, 60), measured(ALONE, 70), measured(DISTILLED, 75))
    assert "undefined: the teacher (60.00) is not better than the student alone (70.00)" in found.headline()


@pytest.mark.parametrize(("value", "said"), [(999, "999"), (11_200_000, "11.20 M"), (2.5e9, "2.50 G")])
def test_counts_are_short(value, said):
    assert counted(value) == said


@pytest.mark.parametrize(("value", "said"), [(12, "12 B"), (2048, "2.0 KiB"), (5 * 2**20, "5.0 MiB")])
def test_sizes_are_short(value, said):
    assert bytes_in_words(value) == said


def test_two_recipes_are_two_rows():
    rows = rows_of([measured(DISTILLED, 70, variant="pixel"), measured(DISTILLED, 71, variant="pixel + pair")])
    assert [row.label for row in rows] == ["distilled (pixel)", "distilled (pixel + pair)"]


def test_runs_of_one_recipe_with_other_options_are_two_rows(tmp_path):
    for name, options in (("plain", {}), ("half", {"model.task_weight": 0.5}), ("again", {"randomness.seed": 1})):
        write_run(tmp_path / name, DISTILLED, {"top1": 50.0}, options=options)
    found = compare([tmp_path / name for name in ("plain", "half", "again")], cost=False, likeness=False)
    assert [(row.label, len(row.members)) for row in found.rows] == [
        ("distilled (soft + hint)", 2),
        ("distilled (soft + hint, task_weight 0.5)", 1),
    ]


def test_json_holds_no_number_that_json_does_not_know(tmp_path):
    found = comparison(measured(TEACHER, math.nan), measured(ALONE, 70), measured(DISTILLED, 75, path="runs/d"))
    file = found.save(tmp_path / "comparison.json")
    content = json.loads(file.read_text(), parse_constant=pytest.fail)
    assert content["rows"][0]["metrics"]["mIoU"]["mean"] is None
    assert content["rows"][2]["gap_closed"]["share"] is None


# --- Roles ---


def test_roles_follow_from_the_configs(folders):
    roles = assign_roles([Run(path) for path in names(folders)])
    expected = {"alone_0": ALONE, "alone_1": ALONE, "distilled_0": DISTILLED, "distilled_1": DISTILLED}
    assert {path.name: role for path, role in roles.items()} == {**expected, "teacher": TEACHER}


def test_a_teacher_of_the_students_own_network_is_known_by_its_path(tmp_path):
    write_run(tmp_path / "first", ALONE)
    write_run(tmp_path / "second", ALONE, seed=1)
    options = {"model.teacher.width": 6}
    write_run(tmp_path / "reborn", DISTILLED, teacher=tmp_path / "first", options=options)
    roles = assign_roles([Run(path) for path in names(tmp_path)])
    assert {path.name: role for path, role in roles.items()} == {
        "first": TEACHER,
        "reborn": DISTILLED,
        "second": ALONE,
    }


def test_a_moved_teacher_is_known_by_its_network(folders):
    (folders / "teacher").rename(folders / "moved")
    assert assign_roles([Run(path) for path in names(folders)])[folders / "moved"] == TEACHER


def test_a_stranger_is_refused(folders):
    write_run(folders / "stranger", ALONE, options={"model.network.width": 7})
    with pytest.raises(UserError, match=r"stranger.*width 7.*neither"):
        assign_roles([Run(path) for path in names(folders)])


def test_without_a_distilled_run_all_are_alone(tmp_path):
    write_run(tmp_path / "alone", ALONE, {"top1": 50.0})
    found = compare([tmp_path / "alone"], cost=False)
    assert [row.label for row in found.rows] == ["alone"]
    assert found.headline() == "top1 on Digits test: alone 50.00."


@pytest.mark.parametrize("name", ["nowhere", "empty", "file.txt"])
def test_what_is_no_run_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").touch()
    with pytest.raises(UserError, match=name):
        compare([tmp_path / name])


def test_an_unfinished_run_is_refused(folders):
    (folders / "alone_0" / "student.pth").unlink()
    with pytest.raises(UserError, match=r"student\.pth"):
        read_run(folders / "alone_0")


def test_different_tasks_are_refused(folders):
    write_run(folders / "other", ALONE, options={"task": "segmentation"})
    with pytest.raises(UserError, match="different tasks"):
        compare(names(folders))


# --- Numbers of runs ---


def test_seeds_become_mean_deviation_gain_and_gap(folders):
    found = compare(names(folders), cost=False, likeness=False)
    distilled = found.row(DISTILLED)
    assert found.score(distilled).shown() == "78.00 ± 2.83"
    assert found.gain(distilled).shown() == "7.00 ± 1.41"
    assert found.gap(distilled).share == pytest.approx((78 - 71) / (90 - 71))
    assert found.notes == ()


def test_the_table_shows_every_part_and_number(folders):
    found = compare(names(folders), cost=False, likeness=False)
    terminal = Console(width=120, file=io.StringIO())
    terminal.print(found.table())
    text = terminal.file.getvalue()
    for word in ("teacher", "alone", "distilled", "top1", "78.00 ± 2.83", "90.00", "37 %", "+7.00"):
        assert word in text


def test_runs_that_were_not_trained_alike_are_named(folders):
    options = {"train_cfg.max_epochs": 77}
    write_run(folders / "alone_longer", ALONE, {"top1": 75.0}, options=options)
    runs = [folders / "alone_longer", folders / "distilled_0"]
    notes = " ".join(compare(runs, cost=False, likeness=False).notes)
    assert "train_cfg.max_epochs: 77 and " in notes


def test_one_seed_and_a_missing_teacher_are_noted(folders):
    notes = " ".join(compare([folders / "alone_0", folders / "distilled_0"], cost=False, likeness=False).notes)
    assert "one seed" in notes
    assert "teacher's run is not among" in notes


def test_transforms_do_not_make_other_data():
    first = {"type": "Digits", "split": "test", "data_root": "a/../b", "transforms": [1]}
    assert same_data(first, {"type": "Digits", "split": "test", "data_root": "b"})
    assert not same_data(first, {**first, "split": "val"})


def test_alike_trainings_have_no_differences(folders):
    assert trained_unlike(Run(folders / "alone_0"), Run(folders / "distilled_0")) == []


def test_metrics_count_only_for_the_checkpoint_they_were_measured_on(folders):
    run = folders / "alone_0"
    file, weights = run / "metrics.json", run / "student.pth"
    assert read_metrics(run, weights).metrics["top1"] == 70.0
    file.write_text(json.dumps({**json.loads(file.read_text()), "checkpoint_sha256": sha256_of(weights)}))
    assert read_metrics(run, weights).metrics["top1"] == 70.0
    torch.save({"state_dict": {}}, weights)
    assert read_metrics(run, weights).metrics == {}


def test_metrics_without_a_hash_are_stale_if_the_checkpoint_is_newer(folders):
    run = folders / "alone_0"
    os.utime(run / "metrics.json", (0, 0))
    assert read_metrics(run, run / "student.pth").metrics == {}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"metrics": 3}', '{"metrics": {"top1": null}}'])
def test_damaged_metrics_are_no_numbers(folders, content):
    run = folders / "alone_0"
    (run / "metrics.json").write_text(content)
    found = read_metrics(run, run / "student.pth").metrics
    assert found == {} or math.isnan(found["top1"])


# --- Real measurements ---


def top1_by_hand(run: Path) -> float:
    """Top-1 accuracy on a fifth of the digits, with nothing of the project but the network and the images."""
    cfg = read_config(run / "config.py")
    network = build_task_model(cfg, str(run / "student.pth")).network
    dataset = build_loader(cfg.test_dataloader).dataset
    labels = load_digits().target
    right = 0
    with torch.no_grad():
        for item in (dataset[i] for i in range(len(dataset))):
            image = (item["inputs"][None].float() - 78.0) / 96.0
            place = int(item["meta"]["path"].split("/")[1])
            right += int(network(image)["logits"].argmax()) == labels[place]
    return 100.0 * right / len(dataset)


def test_missing_metrics_are_measured_and_kept(tmp_path):
    run = write_run(tmp_path / "alone", ALONE)
    found = compare([run], cost=False).rows[0].members[0]
    assert found.metrics["top1"] == pytest.approx(top1_by_hand(run))
    kept = json.loads((run / "metrics.json").read_text())
    assert kept["checkpoint_sha256"] == sha256_of(run / "student.pth")
    assert kept["metrics"]["top1"] == pytest.approx(found.metrics["top1"])


def test_a_run_tested_on_other_data_is_measured_on_those_of_the_distilled_one(folders):
    config = folders / "teacher" / "config.py"
    config.write_text(config.read_text().replace("split='test'", "split='val'"))
    found = compare(names(folders), cost=False, likeness=False)
    assert found.score(found.row(TEACHER)).mean != 90.0
    assert any("not on their own: teacher" in note for note in found.notes)
    assert json.loads((folders / "teacher" / "metrics.json").read_text())["metrics"]["top1"] == 90.0


def test_a_student_that_is_its_teacher_is_wholly_like_it(tmp_path):
    teacher = write_run(tmp_path / "teacher", ALONE, {"top1": 1.0})
    pupil = write_run(
        tmp_path / "pupil", DISTILLED, {"top1": 1.0}, seed=1, teacher=teacher, options={"model.teacher.width": 6}
    )
    same = measure_likeness(Run(teacher), Run(pupil), teacher / "student.pth")
    assert same == {"agreement": 100.0, "kl": pytest.approx(0, abs=1e-6), "cka": pytest.approx(1)}
    other = measure_likeness(Run(pupil), Run(pupil), teacher / "student.pth")
    assert other["kl"] > 1e-4
    assert (tmp_path / "pupil" / "fidelity.json").is_file()


def test_an_exported_file_has_the_checkpoints_metrics(tmp_path):
    run = write_run(tmp_path / "alone", ALONE)
    cfg = load_config(run / "config.py")
    (artefact,) = export_checkpoint(cfg, run)
    evaluation = evaluate_artefact(artefact)
    assert evaluation.result.metrics["top1"] == pytest.approx(top1_by_hand(run))
    assert 0 < evaluation.differences["logits"] < 1e-3 or evaluation.differences["logits"] == 0
    assert evaluation.cost["file_bytes"] == artefact.stat().st_size
    assert evaluation.cost["parameters"] == sum(p.numel() for p in build_task_model(cfg).network.parameters())
    assert measure_artefact(artefact)[1]
    assert not measure_artefact(artefact)[1]
    found = compare([run, artefact], likeness=False)
    assert [row.label for row in found.rows] == ["alone", "student.onnx"]
    assert found.row(EXPORTED).members[0].seed == 0


def test_a_file_for_other_test_data_is_measured_anew_and_not_beside_the_checkpoint(tmp_path):
    run = write_run(tmp_path / "alone", ALONE)
    measure_run(load_config(run / "config.py"), str(run / "student.pth"), run)
    measured = []
    for split in ("test", "val"):
        cfg = load_config(run / "config.py", {"test_dataloader.dataset.split": split})
        (artefact,) = export_checkpoint(cfg, run)
        measured.append(measure_artefact(artefact)[1])
        assert bool(read_manifest(artefact).about.checkpoint_metrics) == (split == "test")
    assert measured == [True, True]


def test_test_data_that_are_elsewhere_are_asked_for(tmp_path):
    run = write_run(tmp_path / "alone", ALONE)
    (artefact,) = export_checkpoint(load_config(run / "config.py"), run)
    manifest = json.loads(manifest_path(artefact).read_text())
    manifest["about"]["test_dataloader"]["dataset"] = {"type": "ImageFolder", "data_root": "gone", "split": "test"}
    manifest_path(artefact).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"gone.*--data-root"):
        evaluate_artefact(artefact)


def test_a_changed_artefact_is_refused(tmp_path):
    run = write_run(tmp_path / "alone", ALONE)
    (artefact,) = export_checkpoint(load_config(run / "config.py"), run)
    artefact.write_bytes(artefact.read_bytes() + b"x")
    with pytest.raises(UserError, match="changed after export"):
        evaluate_artefact(artefact)


def test_int8_is_asked_of_onnx_only(tmp_path):
    run = write_run(tmp_path / "alone", ALONE)
    with pytest.raises(UserError, match="--format onnx"):
        export_checkpoint(load_config(run / "config.py"), run, "pt2", int8=True)


def test_ignored_pixels_count_for_no_likeness():
    masks = [torch.tensor([[0, 255], [1, 1]]), torch.tensor([[255] * 4, [0] * 4, [0] * 4, [0] * 4])]
    labelled = _labelled({"targets": {"mask": masks}})
    assert labelled.tolist() == [[[True, False], [True, True]], [[True, True], [True, True]]]


def test_deviations_have_no_sign():
    assert Spread((1.0, 3.0)).shown("{:+.2f}".format) == "+2.00 ± 1.41"


def test_synthetic_data_are_called_so(tmp_path):
    root = tmp_path / "twin"
    root.mkdir()
    (root / "synthetic.yaml").touch()
    options = {"test_dataloader.dataset.data_root": str(root)}
    run = write_run(tmp_path / "alone", ALONE, {"top1": 50.0}, options=options)
    assert compare([run], cost=False, likeness=False).data.endswith("(synthetic twin)")
    (root / "synthetic.yaml").unlink()
    assert "twin" not in compare([run], cost=False, likeness=False).data
