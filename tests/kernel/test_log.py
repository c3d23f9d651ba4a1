"""Lines that are said once in the log of each run."""

import logging
import uuid

from mmengine.logging import MMLogger

from kd_tasks.engine.log import log_once


def test_a_line_is_said_once_in_the_log_of_each_run(tmp_path):
    files = [tmp_path / "first.log", tmp_path / "second.log"]
    for file in files:
        MMLogger.get_instance(uuid.uuid4().hex, log_file=str(file))  # as each run makes its own
        for _ in range(3):
            log_once("the rule")
            log_once("left out", logging.WARNING)
    for file in files:
        lines = file.read_text().splitlines()
        assert [line.rpartition(" - ")[2] for line in lines] == ["the rule", "left out"]
        assert "WARNING" in lines[1] and "WARNING" not in lines[0]
