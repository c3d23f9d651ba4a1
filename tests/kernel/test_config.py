"""Loading, changing and writing configs."""

import os
from pathlib import Path

import pytest
from mmengine.config import Config

from kd_tasks import paths
from kd_tasks.engine.config import dump_config, load_config, parse_options, with_options
from kd_tasks.errors import UserError


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def message(path: Path, **arguments) -> str:
    with pytest.raises(UserError) as fault:
        load_config(path, **arguments)
    return str(fault.value)


def keys(config: Config) -> dict:
    return {key: value for key, value in config.to_dict().items() if key != "work_dir"}


# --- Loading ---------------------------------------------------------------------------------------------------------


def test_relative_bases_are_merged_and_the_heir_wins(tmp_path):
    write(tmp_path, "_base_/data.py", "data = dict(root='d', size=1)")
    write(tmp_path, "_base_/optim.py", "optim = dict(type='SGD', lr=0.1, momentum=0.9)")
    heir = write(
        tmp_path,
        "task/run.py",
        "_base_ = ['../_base_/data.py', '../_base_/optim.py']\n"
        "data = dict(size=2)\noptim = dict(_delete_=True, type='Adam', lr=0.01)\n",
    )
    assert keys(load_config(heir)) == {"data": {"root": "d", "size": 2}, "optim": {"type": "Adam", "lr": 0.01}}


def test_the_same_keys_as_mmengine_reads_where_mmengine_can(tmp_path):
    write(tmp_path, "base.py", "a = dict(x=1, y=[dict(z=2)])\nb = (1, 2)\nlr = 0.1\n")
    heir = write(
        tmp_path,
        "run.py",
        "_base_ = './base.py'\na = dict(x=3, w='{{ fileBasenameNoExtension }}', lr={{_base_.lr}}, y0=_base_.a.y[0])\n"
        "c = '{{$KD_TASKS_NO_SUCH_VARIABLE:fallback}}'\nd = [i * 2 for i in range(3)]\ndef helper(): pass\n",
    )
    ours, theirs = load_config(heir), Config.fromfile(heir, lazy_import=False)
    assert keys(ours) == theirs.to_dict()
    assert ours.a.w == "run" and ours.a.lr == 0.1 and ours.c == "fallback"


def test_environment_variables_are_filled_in(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_TASKS_TEST_ROOT", "/data")
    assert load_config(write(tmp_path, "run.py", "root = '{{$KD_TASKS_TEST_ROOT:here}}/x'")).root == "/data/x"


def test_base_of_another_package(tmp_path, monkeypatch):
    write(tmp_path, "kd_config_package/__init__.py", "")
    write(tmp_path, "kd_config_package/configs/inner/base.py", "_base_ = 'deeper.py'\na = 1")
    write(tmp_path, "kd_config_package/configs/inner/deeper.py", "b = 2")
    monkeypatch.syspath_prepend(tmp_path)
    heir = write(tmp_path, "elsewhere/run.py", "_base_ = 'kd_config_package::inner/base.py'\nc = 3")
    assert keys(load_config(heir)) == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize("layout", ["checkout", "wheel"])
def test_base_of_the_kernel_in_checkout_and_wheel(tmp_path, monkeypatch, layout):
    folder = tmp_path / ("kd_tasks/configs" if layout == "wheel" else "configs")
    write(folder, "_base_/some.py", "a = 1")
    write(folder, "task/run.py", "_base_ = 'kd_tasks::_base_/some.py'\nb = 2")
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "kd_tasks")
    assert keys(load_config("task/run")) == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    "line", ["import os", "from pathlib import Path", "from functools import partial", "import torch"]
)
def test_imports_inside_configs_work_in_a_virtual_environment(tmp_path, line):
    loaded = load_config(write(tmp_path, "run.py", f"{line}\nimport os.path as osp\nroot = osp.join('a', 'b')"))
    assert keys(loaded) == {"root": str(Path("a", "b"))}


def test_names_with_an_underscore_stay_with_the_files(tmp_path):
    write(tmp_path, "base.py", "_size = 8\ndata = dict(size=_size)")
    heir = write(tmp_path, "run.py", "_base_ = 'base.py'\n_half = _base_._size // 2\nmodel = dict(size=_half)")
    assert keys(load_config(heir)) == {"data": {"size": 8}, "model": {"size": 4}}


def test_work_dir_follows_the_name_of_the_config(tmp_path):
    assert load_config(write(tmp_path, "my_run.py", "a = 1")).work_dir == "work_dirs/my_run"
    assert load_config(write(tmp_path, "own.py", "work_dir = 'elsewhere'")).work_dir == "elsewhere"


def test_custom_imports(tmp_path, monkeypatch):
    write(tmp_path, "kd_custom_module.py", "import os\nos.environ['KD_CUSTOM'] = 'imported'")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("KD_CUSTOM", "no")
    load_config(write(tmp_path, "run.py", "custom_imports = dict(imports=['kd_custom_module'])"))
    assert os.environ["KD_CUSTOM"] == "imported"


# --- Faults of files -------------------------------------------------------------------------------------------------


def test_missing_base_names_heir_and_nearest(tmp_path):
    write(tmp_path, "runtime.py", "a = 1")
    text = message(write(tmp_path, "run.py", "_base_ = 'runtme.py'"))
    assert str(tmp_path / "run.py") in text and "'runtme.py'" in text and "Did you mean 'runtime.py'?" in text


def test_missing_package_of_a_base(tmp_path):
    text = message(write(tmp_path, "run.py", "_base_ = 'no_such_package::runtime.py'"))
    assert "run.py" in text and "no_such_package" in text and "installed" in text


def test_syntax_error_names_file_and_line(tmp_path):
    write(tmp_path, "base.py", "a = 1\nb = dict(\nc = [1,\n")
    text = message(write(tmp_path, "run.py", "_base_ = 'base.py'\n"))
    assert f"{tmp_path / 'base.py'}, line " in text and "not valid Python" in text


def test_exception_inside_a_config_names_the_innermost_line_of_that_config(tmp_path):
    write(tmp_path, "base.py", "a = 1\n\ndef size(n):\n    return 8 // n\n\nb = size(0)\n")
    text = message(write(tmp_path, "run.py", "_base_ = 'base.py'\n"))
    assert f"{tmp_path / 'base.py'}, line 4: ZeroDivisionError" in text


def test_unknown_name_inside_a_config(tmp_path):
    text = message(write(tmp_path, "run.py", "a = 1\nb = sze\n"))
    assert "run.py, line 2: NameError: name 'sze' is not defined" in text


def test_dict_over_number_names_file_and_key(tmp_path):
    write(tmp_path, "base.py", "a = dict(b=1)")
    text = message(write(tmp_path, "run.py", "_base_ = 'base.py'\na = dict(b=dict(c=2))"))
    assert "run.py" in text and "_delete_=True" in text


def test_two_bases_with_one_key(tmp_path):
    write(tmp_path, "one.py", "a = 1\n_helper = 1")
    write(tmp_path, "two.py", "a = 2\n_helper = 2")
    text = message(write(tmp_path, "run.py", "_base_ = ['one.py', 'two.py']"))
    assert "run.py" in text and "'two.py'" in text and "'a'" in text


def test_circle_of_bases(tmp_path):
    write(tmp_path, "one.py", "_base_ = 'two.py'")
    text = message(write(tmp_path, "two.py", "_base_ = 'one.py'"))
    assert "two.py -> " in text and "Take one of them out" in text


def test_custom_import_that_fails(tmp_path):
    text = message(write(tmp_path, "run.py", "custom_imports = dict(imports=['no_such_module_here'])"))
    assert "run.py" in text and "'no_such_module_here'" in text and "PYTHONPATH" in text
    allowed = "custom_imports = dict(imports=['no_such_module_here'], allow_failed_imports=True)"
    load_config(write(tmp_path, "allowed.py", allowed))


def test_other_suffix_and_reserved_key(tmp_path):
    assert "'.py'" in message(write(tmp_path, "run.yaml", "a: 1"))
    assert "'filename' is reserved" in message(write(tmp_path, "run.py", "filename = 'x'"))


# --- Options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-2", -2),
        ("1e-3", 0.001),
        ("True", True),
        ("false", False),
        ("None", None),
        ("[1,2]", [1, 2]),
        ("(1, 2)", (1, 2)),
        ("1,2", [1, 2]),
        ("a,b", ["a", "b"]),
        ("[a, 'b c', 3]", ["a", "b c", 3]),
        ("{'a': 1, 'b': [2]}", {"a": 1, "b": [2]}),
        ("dict(type='Poly', power=0.9)", {"type": "Poly", "power": 0.9}),
        ("dict(start=0, until='epoch 5')", {"start": 0, "until": "epoch 5"}),
        ("x y", "x y"),
        ("epoch 5", "epoch 5"),
        ("resnet18", "resnet18"),
        ("'12'", "12"),
        ("backbone.layer4:in", "backbone.layer4:in"),
        ("work_dirs/a-b/student.pth", "work_dirs/a-b/student.pth"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_values_of_options(text, value):
    parsed = parse_options([f"a.b={text}"])
    assert parsed == {"a.b": value} and type(parsed["a.b"]) is type(value)


@pytest.mark.parametrize("text", ["lr", "=3", "train_cfg.max_epochs 3"])
def test_option_without_equals_sign_or_key(text):
    with pytest.raises(UserError, match="key=value"):
        parse_options([text])


def test_options_reach_dicts_lists_and_new_keys(tmp_path):
    run = write(tmp_path, "run.py", "optim = dict(lr=1, clip=None)\nsteps = [dict(power=1), dict(power=2)]")
    texts = ["optim.lr=0.5", "optim.clip.max_norm=1", "steps.1.power=3", "optim.new=x"]
    loaded = load_config(run, texts)
    assert loaded.optim.to_dict() == {"lr": 0.5, "clip": {"max_norm": 1}, "new": "x"}
    assert [step.power for step in loaded.steps] == [1, 3]


def test_dict_options_are_merged_like_inherited_dicts(tmp_path):
    run = write(tmp_path, "run.py", "optim = dict(type='SGD', lr=1)")
    assert load_config(run, ["optim=dict(lr=2)"]).optim.to_dict() == {"type": "SGD", "lr": 2}
    assert load_config(run, ["optim=dict(_delete_=True, lr=2)"]).optim.to_dict() == {"lr": 2}


def test_options_leave_the_config_that_they_change(tmp_path):
    before = load_config(write(tmp_path, "run.py", "a = dict(b=[1])"))
    assert with_options(before, {"a.b.0": 2}).a.b == [2] and before.a.b == [1]


@pytest.mark.parametrize("option", ["a.b.c=1", "a.c.0=1", "steps.2.power=1", "steps.x=1"])
def test_options_through_what_has_no_keys(tmp_path, option):
    run = write(tmp_path, "run.py", "a = dict(b=1, c=(1, 2))\nsteps = [dict(power=1)]")
    assert f"--cfg-options {option.partition('=')[0]}" in message(run, options=[option])


# --- Writing ---------------------------------------------------------------------------------------------------------


def test_dump_reads_back_to_the_same_values(tmp_path):
    values = {
        "model": {
            "type": "A",
            "sizes": [1, (2, 3), (4,)],
            "none": None,
            "text": 'it\'s "so"\n',
            "deep": {"a": {"b": []}},
        },
        "table": {"layer.0": 1, 3: "three", "class": 2},
        "infinite": float("inf"),
        "steps": [{"type": f"Step{i}", "long": "x" * 40, "values": list(range(20))} for i in range(3)],
        "empty": {},
        "unit": "µm",
    }
    path = dump_config(Config(values), tmp_path / "new" / "config.py")
    assert keys(load_config(path)) == values
    assert max(map(len, path.read_text(encoding="utf-8").splitlines())) <= 120


def test_dump_names_classes_and_functions(tmp_path):
    path = dump_config(Config({"a": {"type": Path, "root": Path("x/y"), "join": os.path.join}}), tmp_path / "config.py")
    loaded = load_config(path)
    assert loaded.a.type.endswith(".Path") and loaded.a.root == str(Path("x/y")) and loaded.a.join == "posixpath.join"


def test_dump_that_fails_leaves_the_old_file(tmp_path):
    path = write(tmp_path, "config.py", "a = 1")
    with pytest.raises(UserError, match=r"a\.0\.b"):
        dump_config(Config({"a": [{"b": object()}]}), path)
    assert path.read_text() == "a = 1" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", paths.config_names())
def test_shipped_configs_load_and_survive_a_dump(tmp_path, name):
    loaded = load_config(name)
    again = load_config(dump_config(loaded, tmp_path / "config.py"))
    assert again.to_dict() == loaded.to_dict()
