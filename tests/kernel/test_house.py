"""Who may import whom, read off the source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import kd_tasks

KERNEL = Path(kd_tasks.__file__).parent
PLUGINS = KERNEL.parent / "plugins"


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def of_project(file: Path) -> set[str]:
    return {name for name in imports(file) if name.split(".")[0].startswith("kd_")}


@pytest.mark.parametrize("file", sorted((KERNEL / "losses").glob("*.py")), ids=lambda f: f.name)
def test_losses_import_only_losses(file):
    assert all(name.startswith("kd_tasks.losses") for name in of_project(file))


@pytest.mark.parametrize("file", sorted(KERNEL.rglob("*.py")), ids=lambda f: str(f.relative_to(KERNEL)))
def test_the_kernel_imports_no_plugin_and_nothing_imports_the_top(file):
    names = of_project(file)
    assert {name.split(".")[0] for name in names} <= {"kd_tasks"}
    room = file.relative_to(KERNEL).parts[0]
    if room != "cli":
        assert not any(name.startswith("kd_tasks.cli") for name in names)
    if room not in ("cli", "report", "demo.py"):
        assert not any(name.startswith("kd_tasks.report") for name in names)


@pytest.mark.skipif(not PLUGINS.is_dir(), reason="an installed wheel has no folder of plugins")
@pytest.mark.parametrize("file", sorted(PLUGINS.rglob("*.py")), ids=lambda f: str(f.relative_to(PLUGINS)))
def test_a_plugin_imports_no_other(file):
    own = file.relative_to(PLUGINS).parts[0]
    assert {name.split(".")[0] for name in of_project(file)} <= {"kd_tasks", own}
