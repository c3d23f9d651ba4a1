"""What the README shows is what the project takes."""

import re
import textwrap
from pathlib import Path

import pytest

from kd_tasks.engine.config import load_config
from kd_tasks.engine.config_check import find_faults

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def readme():
    if not README.is_file():
        pytest.skip("the README lies in a checkout only")
    return README.read_text(encoding="utf-8")


def test_the_config_of_the_readme_has_no_fault(readme, tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    file = tmp_path / "my_config.py"
    file.write_text(textwrap.dedent(block), encoding="utf-8")
    assert find_faults(load_config(file), files=False) == []


def test_every_command_of_the_readme_exists(readme):
    from kd_tasks.cli import _COMMANDS

    named = set(re.findall(r"kd-tasks ([a-z]+)", readme)) - {"data"}
    assert named <= set(_COMMANDS)


def test_every_file_of_the_readme_exists(readme):
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", readme):
        assert (README.parent / target).exists(), target
