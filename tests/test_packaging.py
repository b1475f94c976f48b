"""The mapping of folders to packages, what may import what, and how fast the console script answers."""

import ast
import re
import subprocess
import sys
import sysconfig
import time
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

import lockstitch
from lockstitch.cli import COMMANDS, Command, main

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
FOLDERS = {package: ROOT / folder for package, folder in SETUPTOOLS["package-dir"].items()}
MAY_IMPORT = {
    "rewards": set(),
    "sampling": set(),
    "stitching": {"sampling", "rewards"},
    "rl": {"sampling", "rewards"},
    "recipes": {"sampling", "rewards", "stitching", "rl"},
}
WINGS = {
    "rewards": {
        "sandbox": set(),
        "programs": {"sandbox"},
        "mathematics": set(),
        "puzzles": set(),
        "tasks": {"sandbox", "programs", "mathematics", "puzzles"},
    },
}
# Modules in the room itself that stand above wings; all others there are below them.
FACES = {
    "code_rewards": {"programs", "sandbox"},
    "math_rewards": {"mathematics"},
    "puzzle_rewards": {"puzzles", "mathematics"},
}
PACKAGES = [*MAY_IMPORT, *(f"{room}.{wing}" for room, wings in WINGS.items() for wing in wings)]
# The umbrella's own modules, for every room.
SHARED = {"contents", "cores", "engine", "errors", "files", "options", "pages", "prompts", "server", "terminal"}
SCRIPT = Path(sysconfig.get_path("scripts")) / "lockstitch"


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def imports(path: Path) -> Iterator[str]:
    """The dotted names that a module imports anywhere in it; a relative import keeps its leading dots."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            ours = module.partition(".")[0] == "lockstitch"
            yield from (f"{module}.{alias.name}" for alias in node.names) if ours else (module,)


def test_every_package_on_disk_is_declared() -> None:
    assert sorted(SETUPTOOLS["packages"]) == sorted(FOLDERS)
    assert set(FOLDERS) == {"lockstitch", *(f"lockstitch.{package}" for package in PACKAGES)}
    on_disk = {path.parent for folder in FOLDERS.values() for path in sources(folder)}
    on_disk |= {path.parent for path in ROOT.glob("*/__init__.py")}
    assert on_disk == set(FOLDERS.values()), "declare the sub-package in pyproject.toml, or keep the room flat"
    assert all(path == ROOT.joinpath(*name.split(".")[1:]) for name, path in FOLDERS.items() if name != "lockstitch")


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_refuse_to_be_imported_from_the_checkout(package: str) -> None:
    folder = FOLDERS[f"lockstitch.{package}"]
    ran = python(f"import sys; sys.path[0] = {str(folder.parent)!r}; import {folder.name}")
    assert ran.returncode == 1
    assert f"ImportError: import lockstitch.{package}:" in ran.stderr
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or package in MAY_IMPORT


def test_recipes_shadow_no_library() -> None:
    libraries = sys.stdlib_module_names | set(packages_distributions())
    libraries |= {"torch", "transformers", "trl", "datasets", "peft", "accelerate", "tokenizers", "vllm", "ray"}
    assert not {path.stem for path in sources(ROOT / "recipes")} & libraries


@pytest.mark.parametrize("package", FOLDERS)
def test_data_files_are_shipped(package: str) -> None:
    folder = FOLDERS[package]
    shipped = {path for pattern in SETUPTOOLS["package-data"].get(package, []) for path in folder.glob(pattern)}
    files = {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    left_out = files - shipped - set(sources(folder)) - {folder / "README.md"}
    assert not left_out, "name them in [tool.setuptools.package-data]"


def test_types_are_marked() -> None:
    assert (FOLDERS["lockstitch"] / "py.typed").is_file()
    assert "py.typed" in SETUPTOOLS["package-data"]["lockstitch"]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_what_they_may(room: str) -> None:
    umbrella = {"__version__", "EMBEDDED", "adapter_and_base", "embedded_model", "embedded_scorer", "model_name"}
    umbrella |= {"model_path"}
    allowed = {*umbrella, *SHARED, room, *MAY_IMPORT[room]}
    for path in sources(ROOT / room):
        for name in imports(path):
            where = f"{path.relative_to(ROOT)} imports {name}"
            top, *rest = name.split(".")
            assert top not in {"", *MAY_IMPORT}, f"{where}: write it as lockstitch.…"
            assert top != "lockstitch" or (rest and rest[0] in allowed), f"{where}, and may {sorted(allowed)}"


@pytest.mark.parametrize("room", WINGS)
def test_wings_import_downwards(room: str) -> None:
    wings = WINGS[room]
    for path in sources(ROOT / room):
        wing = path.parent.name if path.parent != ROOT / room else None
        allowed = {wing, *wings[wing]} if wing else FACES.get(path.stem, set())
        for name in imports(path):
            met = set(name.split(".")[2:3]) & set(wings) if name.startswith(f"lockstitch.{room}.") else set()
            assert met <= allowed, f"{path.relative_to(ROOT)} imports {name}, and may {sorted(allowed)}"


@pytest.mark.parametrize("room", WINGS)
def test_no_modules_import_each_other(room: str) -> None:
    relative = {
        path: path.relative_to(ROOT).with_suffix("") for path in sources(ROOT / room) if path.stem != "__init__"
    }
    modules = {".".join(("lockstitch", *place.parts)): path for path, place in relative.items()}
    graph = {
        module: {name if name in modules else name.rpartition(".")[0] for name in imports(path)} & set(modules)
        for module, path in modules.items()
    }
    TopologicalSorter(graph).prepare()  # raises `CycleError` with the circle


def test_importing_the_console_script_is_light() -> None:
    ran = python("import sys, lockstitch.cli; print(*sys.modules)")
    loaded = {name.split(".")[0] for name in ran.stdout.split()}
    assert "lockstitch" in loaded
    assert not loaded & {"torch", "transformers", "trl", "datasets", "numpy", "tokenizers"}


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_console_script_answers_within_a_second(option: str) -> None:
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        answer = subprocess.run([SCRIPT, option], capture_output=True, text=True, check=True).stdout
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 1.0
    assert "stitch" in answer


@pytest.mark.parametrize("argv", [[], ["stich", "--task", "sudoku"], ["--tasks"]])
def test_unknown_command_exits_2_with_the_known_ones(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    complaint = capsys.readouterr().err
    assert f"known: {', '.join(COMMANDS)}" in complaint
    assert not argv or repr(argv[0]) in complaint


def test_a_command_gets_the_rest_of_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "counting_room.py").write_text("def main(argv: list[str]) -> int:\n    return len(argv)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(COMMANDS, "count", Command("counting_room", "counts its arguments"))
    assert main(["count", "--help", "--version", "-x"]) == 3


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_exist(name: str) -> None:
    spec = find_spec(COMMANDS[name].module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    functions = {node.name: node.args.args for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert [argument.arg for argument in functions[COMMANDS[name].function]] == ["argv"]


def test_versions_agree() -> None:
    assert lockstitch.__version__ == PYPROJECT["project"]["version"]


def test_constraints_pin_what_we_ask_for() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", pin) for pin in pins)
    assert pins == sorted(pins, key=lambda pin: pin.lower())
    extras = PYPROJECT["project"]["optional-dependencies"]
    asked = [*PYPROJECT["project"]["dependencies"], *extras["dev"], *extras["docs"]]
    assert {re.split(r"[\[<>=]", text)[0] for text in asked} <= {pin.split("==")[0].lower() for pin in pins}


def test_the_umbrella_loads_no_room_before_it_is_asked() -> None:
    code = (
        "import sys, time; began = time.perf_counter(); import lockstitch; took = time.perf_counter() - began\n"
        "assert took < 0.2, took\n"
        "assert {'Denoiser', 'DiffusionGRPOTrainer'} <= set(dir(lockstitch)) and not hasattr(lockstitch, 'nothing')\n"
        "assert not {'torch', 'transformers', 'lockstitch.sampling', 'lockstitch.rl'} & set(sys.modules)\n"
    )
    ran = python(code)
    assert ran.returncode == 0, ran.stderr


def test_the_umbrella_hands_out_its_names() -> None:
    assert lockstitch.Denoiser.__module__ == "lockstitch.sampling.denoiser"
    assert all(getattr(lockstitch, name) is not None and name in dir(lockstitch) for name in lockstitch.__all__)
