"""Options from YAML files and command lines: what a field takes, wherever the value comes from."""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from trl import TrlParser

from lockstitch.options import fitted, parse_options


@dataclass
class Settings:
    name: str = "none"
    rate: float = 0.1
    steps: int | None = None
    seed: int = 0
    funcs: list[str] | None = None
    tokens: list[int] = field(default_factory=lambda: [1])
    html: bool = True
    form: Literal["tags", "plain"] = "tags"
    more_kwargs: dict[str, Any] | str | None = None
    where: Path | None = None
    place: None | str | list[str] = None  # noqa: RUF036  (in the order that the parser takes)


def parse(text, *words, tmp_path: Path):
    (tmp_path / "settings.yaml").write_text(text)
    return parse_options(TrlParser((Settings,)), ["--config", str(tmp_path / "settings.yaml"), *words])[0]


@pytest.mark.parametrize(
    ("name", "yaml", "word"),
    [
        ("rate", "1e-5", "1e-5"),
        ("rate", "2", "2"),
        ("steps", "'7'", "7"),
        ("funcs", "sudoku", "sudoku"),
        ("html", "no", "no"),
        ("tokens", "4", "4"),
        ("more_kwargs", "{a: 1}", '{"a": 1}'),
        ("form", "plain", "plain"),
        ("name", "x y", "x y"),
        ("place", "here", "here"),
    ],
)
def test_files_and_command_lines_are_read_alike(name, yaml, word, tmp_path):
    first = parse(f"{name}: {yaml}\n", tmp_path=tmp_path)
    second = parse("seed: 0\n", f"--{name}", word, tmp_path=tmp_path)
    assert first == second
    assert type(getattr(first, name)) is type(getattr(second, name))
    assert first != Settings()


def test_null_is_what_a_field_takes_by_default(tmp_path):
    assert parse("steps: null\nfuncs: null\n", tmp_path=tmp_path) == Settings()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rate: true", "rate=True must be a finite number"),
        ("rate: -.inf", "rate=-inf must be a finite number"),
        ("rate: .nan", "rate=nan must be a finite number"),
        ("rate: [1, 2]", r"rate=\[1, 2\] must be a finite number"),
        ("rate: null", "rate=None must be a finite number"),
        ("steps: 12.5", "steps=12.5 must be a whole number"),
        ("steps: true", "steps=True must be a whole number"),
        ("seed: 1" + "0" * 30, "seed=1000.* must be a whole number of at most 64 bits"),
        ("steps: 1.0e+30", "steps=1e.30 must be a whole number"),
        ("name: 7", r"name=7 must be text \(in quotes"),
        ("name: no", "name=False must be text"),
        ("name: [a]", r"name=\['a'\] must be text"),
        ('name: "a\\0b"', "must be text without null bytes"),
        ('name: "\\uD800"', "must be text without null bytes and halves of characters"),
        ("name: {a: 1}", "name={'a': 1} must be text"),
        ("html: 7", "html=7 must be true or false"),
        ("html: perhaps", "html='perhaps' must be true or false"),
        ("tokens: [1, x]", r"tokens=\[1, 'x'\] must be a whole number"),
        ("form: boxed", "form='boxed' must be one of tags, plain"),
        ("more_kwargs: some/path", "more_kwargs='some/path' must be a mapping, in JSON"),
        ("place: 7", "place=7 must be text"),
        ("where: here", "where='here' must be an object of Path, which Python alone makes"),
        ("nam: x", "unknown options: 'nam'; did you mean 'name'"),
        ("env: {A: b}", "unknown options: 'env'"),
        ("- a", "must hold a mapping of options, not list"),
        ("a: [", "is not YAML"),
        ("name: !!python/object:os.system {}", "is not YAML: could not determine a constructor for the tag"),
        ("name: 2026-99-99", "is not YAML"),
        ("a: " * 5000, "is not YAML"),
    ],
)
def test_what_does_not_fit_is_named(text, says, tmp_path):
    with pytest.raises(ValueError, match=says) as refused:
        parse(text, tmp_path=tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["--seed", "1" * 30], "must be a whole number of at most 64 bits"),
        (["--rate", "nan"], "rate=nan must be a finite number"),
        (["--name", "\udc80"], "halves of characters"),
        (["--sed", "1"], r"unknown words on the command line: '--sed'; did you mean 'seed' or 'steps'\?$"),
        (["1"], "unknown words on the command line: '1'"),
        (["--config", "x.yaml"], "--config takes the path of one YAML file"),
        (["--config="], "--config takes the path of one YAML file"),
        (["--config"], "--config takes the path of one YAML file"),
    ],
)
def test_words_that_do_not_fit_are_named(words, says, tmp_path, capsys):
    with pytest.raises(ValueError, match=says):
        parse("seed: 0", *words, tmp_path=tmp_path)
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match=r"config 'nowhere\.yaml' is not a file"):
        parse_options(TrlParser((Settings,)), ["--config", "nowhere.yaml"])


def test_what_fits_comes_back_as_it_is_and_of_its_type():
    numbers = random.Random(0)
    for _ in range(200):
        whole, number = numbers.randrange(-(2**63), 2**63), numbers.uniform(-1e9, 1e9)
        assert fitted(int, whole) == fitted(int | None, str(whole)) == whole
        assert fitted(float, number) == fitted(float | None, repr(number)) == number
        assert fitted(str | int, str(whole)) == str(whole)
        assert type(fitted(float, whole)) is float
    for past in (2**63, -(2**63) - 1):
        with pytest.raises(ValueError, match="64 bits"):
            fitted(int, past)


@dataclass
class Old(dict):
    """A record of a library's that knows its types by accident."""

    size: int = 1

    def __post_init__(self) -> None:
        {1: "one"}[self.size]


Old.__module__ = "library"


def test_what_a_librarys_record_raises_is_a_refusal(tmp_path):
    with pytest.raises(ValueError, match=r"^Old: KeyError: 2$"):
        parse_options(TrlParser((Old,)), ["--size", "2"])
