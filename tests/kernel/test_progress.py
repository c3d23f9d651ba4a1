"""Progress where the output is no terminal: a line now and then, with the time left."""

import re

from kd_tasks.engine import progress


def test_lines_with_the_time_left(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    assert list(progress.track(iter(range(4)), "Testing", total=4)) == [0, 1, 2, 3]
    lines = capsys.readouterr().err.splitlines()
    assert [re.match(r"Testing (\d)/4, 0:00:0\d left", line)[1] for line in lines] == ["1", "2", "3", "4"]


def test_no_line_for_what_is_quick(capsys):
    assert sum(progress.track(range(4), "Testing")) == 6
    assert capsys.readouterr().err == ""


def test_bars_of_several_counts(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with progress.counting() as report:
        report("train", 1, 2)
        report("val", 3, 3)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["train 1/2", "val 3/3"]
