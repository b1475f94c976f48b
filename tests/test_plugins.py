"""Plug-ins: listed without being imported, found by name or place, and refused with help; the worked example of the docs."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from lockstitch.rewards import rewards_cli
from lockstitch.rewards.plugins import GROUP, available_rewards, load_reward
from test_docs import blocks_of

from lockstitch.cli import main
from lockstitch.errors import OthersCodeError

ROOT = Path(__file__).resolve().parent.parent
OURS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"][GROUP]

MODULE = '''
"""Rewards of a plug-in."""
raise RuntimeError("a listing must not run this")
from lockstitch.rewards.contract import per_sample

def plain(prompts, completions, answer, weight=1.0, *, hint, extra=None, log_metric=None, **columns):
    """Pays for plain things.

    More of it.
    """

def documented(prompts, completions, **columns):
    """Pays by the book.

    Columns: this, or that if there is none.
    """

@per_sample
def decorated(completion, answer, prompt=None): "One line."

def _hidden(completion, gold):
    """Hidden."""

wrapped = per_sample(_hidden, "wrapped")
made = make_reward(3)
silent = lambda prompts, completions: []
'''


def make_package(folder, name="acme-rewards", version="1.2", modules=None, points=None):
    """An installed distribution, as pip leaves it: modules and a metadata folder."""
    for path, text in (modules or {}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(
        f"[{GROUP}]\n" + "".join(f"{key} = {value}\n" for key, value in (points or {}).items())
    )


@pytest.fixture
def acme(tmp_path, monkeypatch):
    """A plug-in whose module cannot be imported, and whose package must not be."""
    names = ("plain", "documented", "decorated", "wrapped", "made", "silent", "absent")
    points = {f"acme_{name}": f"acme.kit.rewards:{name}" for name in names}
    points |= {
        "acme_gone": "acme.nowhere:plain", "acme_nowhere": "no_such_package.rewards:plain", "acme_bad": "acme.bad:plain",
        "acme_odd": "acme.kit.rewards", "acme_worse": "not a place!", "acme_binary": "math:sqrt",
    }  # fmt: skip
    bomb = "raise RuntimeError('a listing must not run this')\n"
    modules = {"acme/__init__.py": bomb, "acme/kit/__init__.py": bomb, "acme/kit/rewards.py": MODULE}
    modules["acme/bad.py"] = "def plain(:"
    make_package(tmp_path, modules=modules, points=points)
    monkeypatch.syspath_prepend(tmp_path)
    return {info.name: info for info in available_rewards()}


@pytest.mark.parametrize(
    ("name", "columns", "summary"),
    [
        ("plain", "answer, [weight], hint, [extra]", "Pays for plain things."),
        ("documented", "this, or that if there is none", "Pays by the book."),
        ("decorated", "answer, [prompt]", "One line."),
        ("wrapped", "gold", "Hidden."),
        ("made", "?", "?"),
        ("silent", "?", "?"),
        ("absent", "?", "?"),
        ("gone", "?", "?"),
        ("nowhere", "?", "?"),
        ("bad", "?", "?"),
        ("odd", "?", "?"),
        ("worse", "?", "?"),
        ("binary", "?", "?"),
    ],
)
def test_a_plug_in_is_described_without_being_run(acme, name, columns, summary):
    info = acme[f"acme_{name}"]
    assert (info.columns, info.summary, info.source) == (columns, summary, "acme-rewards 1.2")
    assert not [module for module in sys.modules if module.partition(".")[0] == "acme"]


def test_our_rewards_are_listed_with_what_they_need():
    listed = {info.name: info for info in available_rewards() if info.source.startswith("lockstitch ")}
    if listed.keys() != OURS.keys():
        pytest.fail("lockstitch's metadata is older than pyproject.toml; pip install --no-deps -e . renews it")
    for name, target in OURS.items():
        info = listed[name]
        assert info.target == target
        assert info.summary not in ("", "?"), name
        assert info.columns != "?", name


@pytest.mark.parametrize("name", OURS)
def test_our_rewards_load_by_name_and_by_place(name):
    reward = load_reward(OURS[name])
    assert reward.__name__ == OURS[name].partition(":")[2]
    assert load_reward(OURS[name].replace(":", ".")) is reward
    assert load_reward(name) is reward


def test_a_local_file_is_found_first_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "import my_helper\ndef fixed(prompts, completions): return my_helper.ONES\n"
    )
    (tmp_path / "my_helper.py").write_text("ONES = [1.0]\n")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    for spec in ("my_rewards:fixed", "my_rewards.fixed"):
        assert load_reward(spec)(["p"], ["c"]) == [1.0]
    assert sys.path == path


def test_modules_that_import_on_access_and_methods_of_classes(tmp_path, monkeypatch):
    lazy = "def __getattr__(name):\n    if name == 'late': return len\n    raise AttributeError\n"
    (tmp_path / "lazy.py").write_text(lazy)
    (tmp_path / "kit.py").write_text("class Kit:\n    @staticmethod\n    def reward(): return 1\n")
    monkeypatch.chdir(tmp_path)
    assert load_reward("lazy:late") is load_reward("lazy.late") is len
    assert load_reward("kit:Kit.reward")() == 1
    with pytest.raises(ValueError, match="lazy has no 'early'"):
        load_reward("lazy:early")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("maths", r"'maths' is neither package.module:function nor one of .*countdown.*math.*; did you mean 'math'\?"),
        ("", "'' is neither"),
        ("zzz", r"one of .*xml_count$"),
        (":f", "is neither"),
        ("no_such_module:f", "there is no module 'no_such_module'"),
        ("json.no_such:f", "no module 'json.no_such'"),
        ("json:dump5", r"json has no 'dump5'; did you mean 'dump.*\?"),
        ("json.nothing_like_it", "json has no"),
        ("json:__name__", "is 'json', which cannot be called"),
    ],
)
def test_an_unknown_reward_is_refused_with_the_known_and_the_nearest(spec, says):
    with pytest.raises(ValueError, match=says):
        load_reward(spec)


def test_an_import_that_fails_inside_a_plug_in_is_not_hidden(tmp_path, monkeypatch, acme):
    with pytest.raises(OthersCodeError, match=r"RuntimeError: a listing must not run this .*__init__.py, line 1"):
        load_reward("acme_plain")
    (tmp_path / "needy.py").write_text("import not_installed_anywhere\ndef f(): pass\n")
    with pytest.raises(OthersCodeError, match="not_installed_anywhere"):
        load_reward("needy:f")


def test_two_packages_with_one_name(tmp_path, monkeypatch):
    make_package(tmp_path, "one", points={"clash": "json:dumps"})
    make_package(tmp_path, "two", points={"clash": "json:loads", "lone": "json:loads"})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"offered by one 1.2 \(json:dumps\) and two 1.2 \(json:loads\)"):
        load_reward("clash")
    assert load_reward("lone") is json.loads
    assert [info.source for info in available_rewards() if info.name == "clash"] == ["one 1.2", "two 1.2"]


def test_without_metadata_the_cure_is_named(monkeypatch, capsys):
    monkeypatch.setattr("importlib.metadata.MetadataPathFinder.find_distributions", lambda *_: iter([]))
    monkeypatch.setattr(
        "sys.meta_path", [finder for finder in sys.meta_path if not hasattr(finder, "find_distributions")]
    )
    assert not entry_points(group=GROUP)
    with pytest.raises(ValueError, match="install it again"):
        load_reward("math")
    assert main(["rewards"]) == 0
    assert "no package offers" in capsys.readouterr().out


@pytest.mark.parametrize("width", [60, 120, 400])
def test_the_table_and_the_list_say_the_same(acme, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["rewards"]) == 0
    table = capsys.readouterr().out
    assert main(["rewards", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in listed} >= {*OURS, *acme}
    assert max(map(len, table.split("\n"))) <= max(width, 120)
    words = set(table.split())
    for row in listed:
        assert words >= {
            *row["name"].split(),
            *row["source"].split(),
            *row["summary"].split(),
            *row["columns"].split(),
        }


def test_help_and_bad_options(capsys):
    for argv, code in ((["--help"], 0), (["--jsno"], 2)):
        assert rewards_cli.main(argv) == code
    assert "package.module:function" in capsys.readouterr().out


def test_listing_imports_neither_rewards_nor_libraries():
    code = "import sys; from lockstitch.cli import main; main(['rewards']); print('LOADED', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.partition("LOADED")[2].split())
    assert not loaded & {"torch", "trl", "sympy", "math_verify", "datasets", "lockstitch.rewards.math_rewards"}


@pytest.mark.slow
def test_the_worked_example_of_the_docs(tmp_path):
    """The page's plug-in is built and installed with pip, listed, loaded by name, and scores."""
    (block,) = [b for b in blocks_of(ROOT / "docs/rewards.md") if b.kind == "bash" and "pip install" in b.body]
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.body],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "COLUMNS": "120"},
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^brevity +brevity-rewards 0\.1 +\[budget\] +1\.0 for", done.stdout, re.MULTILINE)
    assert done.stdout.rstrip().endswith("[1.0, 0.5, None]")
