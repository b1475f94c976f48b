"""The report page and the terminal view: data intact, nothing fetched, nothing injected, widths kept."""

import json
import re
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from lockstitch.sampling.trajectory import Ledger
from lockstitch.stitching.calibration import judge_scores
from lockstitch.stitching.method_names import METHODS as ALL_METHODS
from lockstitch.stitching.report import write_report
from lockstitch.stitching.terminal import render_problem, render_summary

from lockstitch.pages import embed, without_places

HOSTILE = "</script><script>alert(1)</script> <!-- \u2028 \x1b[31m \U0001f9f5 漢字"
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
METHODS = ("greedy", "majority_vote", "solver_alone", "stitched")


def trajectory(steps: list[tuple[str, float]], answer: str | None, correct: bool | None) -> dict[str, Any]:
    records, lines, start = [], [], 0
    for text, score in steps:
        records.append({"text": text, "characters": [start, start + len(text)], "score": score})
        lines.append(text)
        start += len(text) + 1
    mean = sum(score for _, score in steps) / len(steps) if steps else 0.0
    text = "\n".join([*lines, f"#### {answer}"])
    return {"text": text, "answer": answer, "correct": correct, "mean_score": mean, "steps": records}


def clue(text: str, score: float, *sources: tuple[int, int]) -> dict[str, Any]:
    return {"text": text, "score": score, "sources": [list(source) for source in sources]}


def methods(answers: dict[str, tuple[str | None, bool | None]]) -> dict[str, Any]:
    ledger = {
        "nfe": 64,
        "tokens_forwarded": 4096,
        "scorer_tokens": 0,
        "solver_tokens": 210,
        "sequential_steps": 32,
        "seconds": 0.4,
    }
    return {
        name: {"answer": answer, "correct": correct, "text": f"#### {answer}", "ledger": ledger}
        for name, (answer, correct) in answers.items()
    }


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    arithmetic_trajectories = [
        trajectory([("12+27=39", 0.97), ("39-15=34", 0.03), ("34*2=68", 0.12)], "68", False),
        trajectory([("12+27=49", 0.05), ("39-15=24", 0.91), ("24*2=48", 0.93)], "48", True),
        trajectory([("12+27=39", 0.88), ("39-15=34", 0.04)], None, None),
    ]
    arithmetic_chain = [
        clue("12+27=39", 0.97, (0, 0), (2, 0)),
        clue("39-15=24", 0.91, (1, 1)),
        clue("24*2=48", 0.93, (1, 2)),
    ]
    grid = [("3142", 1.0), ("2413", 0.99), ("1234", 0.0), ("4321", 0.5)]
    hostile_steps = [(HOSTILE, 0.81), ("She has 94-11=83 & <b>more</b> than that, which is a long sentence.", 0.62)]
    return [
        {
            "index": 0,
            "question": "12, +27, -15, *2",
            "answer": "48",
            "trajectories": arithmetic_trajectories,
            "evidence": {"anchor": 1, "clues": arithmetic_chain, "chain": arithmetic_chain},
            "methods": methods(
                {
                    "greedy": ("68", False),
                    "majority_vote": ("68", False),
                    "solver_alone": (None, None),
                    "stitched": ("48", True),
                }
            ),
        },
        {
            "index": 1,
            "question": "3102200002100320",
            "answer": None,
            "trajectories": [trajectory(grid, "3142241312344321", None) for _ in range(8)],
            "evidence": {"anchor": None, "clues": [clue("3142", 1.0, *((k, 0) for k in range(8)))], "chain": []},
            "methods": methods(dict.fromkeys(METHODS, ("3142241312344321", None))),
        },
        {
            "index": 2,
            "question": HOSTILE,
            "answer": HOSTILE,
            "trajectories": [trajectory(hostile_steps, HOSTILE, True), trajectory([], None, None)],
            "evidence": {"anchor": 0, "clues": [clue(HOSTILE, 0.81, (0, 0))], "chain": []},
            "methods": methods(dict.fromkeys(METHODS, (HOSTILE, True))),
        },
    ]


@pytest.fixture
def summary() -> dict[str, Any]:
    costs = {
        "nfe": 64.0,
        "tokens_forwarded": 14096.5,
        "scorer_tokens": 0.0,
        "solver_tokens": 210.25,
        "sequential_steps": 32.0,
        "passes": 78.0,
        "seconds": 0.41,
    }
    return {
        "task": "arithmetic",
        "n": 3,
        "num_trajectories": 8,
        "config": {"policy": "threshold", "note": HOSTILE},
        "methods": {name: {"accuracy": 0.5, "ci95": [0.25, 0.75], "n": 3, **costs} for name in METHODS},
        "absent": {"remask_loop": f"no correction {HOSTILE}"},
        "paired": {"stitched - majority_vote": {"difference": 0.125, "ci95": [0.03, 0.22]}},
    }


class Page(HTMLParser):
    """Collects the elements of a page, the text of its scripts, and every attribute."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.scripts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        self._inside = tag == "script"
        if self._inside:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[-1] += data


def test_page_embeds_data_exactly(tmp_path: Path, rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    path = tmp_path / "report.html"
    path.write_text("an older page")
    write_report(path, iter(rows), summary)
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    data, code = page.scripts  # the hostile text opened no third one
    assert json.loads(data) == {"summary": summary, "rows": rows}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", code)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_page_refers_to_nothing_outside(tmp_path: Path, rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    path = tmp_path / "report.html"
    write_report(path, rows, summary)
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"https?:|src=|url\(|@import", text)
    assert not re.search("alert\\(1\\)</script>|<script>alert|\u2028", text)
    page = Page()
    page.feed(text)
    assert not {name for name, _ in page.attributes} & {"src", "href", "srcset", "onclick", "onerror", "onload"}
    assert any(value and value.startswith("default-src 'none'") for _, value in page.attributes)


def test_page_without_problems(tmp_path: Path, summary: dict[str, Any]) -> None:
    path = tmp_path / "report.html"
    write_report(path, [], {**summary, "n": 0})
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert json.loads(page.scripts[0])["rows"] == []


def test_number_that_json_cannot_say_leaves_the_old_page(
    tmp_path: Path, rows: list[dict[str, Any]], summary: dict[str, Any]
) -> None:
    path = tmp_path / "report.html"
    path.write_text("an older page")
    rows[2]["trajectories"][1]["mean_score"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(path, rows, summary)
    assert path.read_text() == "an older page"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_embedded_json_holds_no_markup() -> None:
    text = embed({"a": HOSTILE + "&amp;"})
    assert text.isascii()
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"a": HOSTILE + "&amp;"}


def cells(line: str) -> int:
    """Terminal cells of a line of these tests: wide are the emoji and the two ideographs alone."""
    return len(line) + sum(line.count(wide) for wide in "\U0001f9f5漢字")


@pytest.mark.parametrize("width", [20, 37, 60, 80, 120, 200])
def test_problem_keeps_width_and_shows_every_score(rows: list[dict[str, Any]], width: int) -> None:
    for row in rows:
        plain = render_problem(row, width=width, color=False)
        assert "\x1b" not in plain
        assert max(cells(line) for line in plain.split("\n")) <= width
        colored = render_problem(row, width=width, color=True)
        assert "\x1b[31m" not in colored  # a model's own escape code does not reach the terminal
        assert ESCAPES.sub("", colored).split() == plain.split()
        scores = sorted(re.findall(r"(?<![\d.T])[01]\.\d\d(?!\d)", plain))
        steps = [f"{step['score']:.2f}" for t in row["trajectories"] for step in t["steps"]]
        means = [f"{t['mean_score']:.2f}" for t in row["trajectories"]]
        assert scores == sorted([*steps, *means, *(f"{c['score']:.2f}" for c in row["evidence"]["clues"])])


def test_problem_marks_the_thread_and_the_answers(rows: list[dict[str, Any]]) -> None:
    text = render_problem(rows[0], width=100, color=False)
    assert re.search(r"^● 12\+27=39 +0\.97 +12\+27=49 +0\.05 +○ 12\+27=39 +0\.88$", text, re.MULTILINE)
    assert re.search(r"^  39-15=34 +0\.03 +● 39-15=24 +0\.91 +39-15=34 +0\.04$", text, re.MULTILINE)
    assert re.search(r"^✓ stitched +48  right$", text, re.MULTILINE)
    assert re.search(r"^✗ majority vote +68  wrong$", text, re.MULTILINE)
    assert re.search(r"^\? solver alone +no answer  unknown$", text, re.MULTILINE)


def test_columns_give_way_to_stacks(rows: list[dict[str, Any]]) -> None:
    wide = render_problem(rows[1], width=200, color=False).split("\n")
    narrow = render_problem(rows[1], width=30, color=False).split("\n")
    assert sum(line.count("3142") for line in wide if line.startswith("● 3142  ")) == 8
    assert sum(line[2:].startswith("3142  ") for line in narrow) == 8


def test_too_narrow_is_refused(rows: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="width 19"):
        render_problem(rows[0], width=19, color=False)


def test_summary_is_aligned(summary: dict[str, Any]) -> None:
    text = render_summary(summary, color=False)
    assert "\x1b" not in text
    table = [line for line in text.split("\n") if line.startswith(("method", "greedy", "stitched  ", "solver alone"))]
    assert len(table) == 4
    assert len({len(line) for line in table}) == 1
    assert re.search(r"^stitched +50\.0 +\[25\.0, 75\.0\] +64 +14,096 +0 +210 +32 +78 +0\.41$", text, re.MULTILINE)
    assert "remask loop: not run, no correction" in text
    assert re.search(r"^stitched - majority vote +\+12\.5 +\[\+3\.0, \+22\.0\]$", text, re.MULTILINE)
    assert ESCAPES.sub("", render_summary(summary, color=True)) == text


def test_the_page_says_what_every_method_and_cost_is(tmp_path: Path, summary: dict[str, Any]) -> None:
    path = tmp_path / "report.html"
    write_report(path, [], summary)
    text = path.read_text(encoding="utf-8")
    for name, expected in (
        ("METHODS", set(ALL_METHODS)),
        ("WORDS", {one.name for one in fields(Ledger)} | {"passes"}),
    ):
        (body,) = re.findall(rf"const {name} = \{{\n(.*?)\n\}};", text, re.DOTALL)
        assert set(re.findall(r"^  (\w+): \"", body, re.MULTILINE)) == expected


def test_the_page_draws_of_a_scorer_what_its_judgement_holds(tmp_path: Path, summary: dict[str, Any]) -> None:
    """The diagram's code reads names that `judge_scores` writes: one that it lacks would be drawn as nothing."""
    judged = judge_scores([0.05, 0.3, 0.72, 0.78, 0.99], [0, 0, 1, 0.5, 1])
    summary["scorer"] = {"steps": judged, "trajectories": judge_scores([], [])}
    path = tmp_path / "report.html"
    write_report(path, [], summary)
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert json.loads(page.scripts[0])["summary"]["scorer"] == summary["scorer"]
    (code,) = re.findall(r"^function diagram.*?^}", page.scripts[1], re.DOTALL | re.MULTILINE)
    of_bins = re.findall(r"(?:const |\()\{ ([a-z, ]+) \}(?: of|[,)])", code)
    bins = {name for names in of_bins for name in names.split(", ")}
    assert bins == set(judged["bins"][0])
    assert set(re.findall(r"\bone\.(\w+)", code)) == {"bins", "n", "auc", "ece"} <= set(judged)


def test_the_page_shows_no_folder_of_the_machine(tmp_path: Path, summary: dict[str, Any]) -> None:
    path = tmp_path / "report.html"
    summary["config"] |= {"input": str(tmp_path / "problems.jsonl"), "scorer": "prm:/home/somebody/prm", "delta": 0.9}
    write_report(path, [], summary)
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    config = json.loads(page.scripts[0])["summary"]["config"]
    assert (config["input"], config["scorer"], config["delta"]) == ("problems.jsonl", "prm:prm", 0.9)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/somebody/run", "run"),
        ("/home/somebody/run/", "run"),
        ("~/run", "run"),
        ("C:\\Users\\me\\run", "run"),
        ("prm:/models/a/b", "prm:b"),
        ("/root/my.py:score", "my.py:score"),
        (["/a/b", {"x": Path("/a/c")}], ["b", {"x": "c"}]),
        ("/no_think", "/no_think"),
        ("/no_think Answer A/B.", "/no_think Answer A/B."),
        ("runs/mine", "runs/mine"),
        ("openai:MODEL@http://127.0.0.1:8000/v1", "openai:MODEL@http://127.0.0.1:8000/v1"),
        ("GSAI-ML/LLaDA-8B", "GSAI-ML/LLaDA-8B"),
        ("embedded:sudoku", "embedded:sudoku"),
        (3, 3),
        (None, None),
        ("", ""),
    ],
)
def test_of_paths_the_last_part_is_shown(value: Any, shown: Any) -> None:
    assert without_places(value) == shown


def test_a_path_with_spaces_is_known_by_being_there(tmp_path: Path) -> None:
    folder = tmp_path / "two words"
    assert without_places(str(folder)) == str(folder)
    folder.mkdir()
    assert without_places(str(folder)) == "two words"
