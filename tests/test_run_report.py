"""The page of a training run: data intact, nothing fetched, nothing injected; what is read from a run's directory."""

import itertools
import json
import re
from html.parser import HTMLParser

import pyarrow as pa
import pytest
from lockstitch.rl.health_rules import RULES, HealthConfig
from lockstitch.rl.run_report import (
    main,
    read_history,
    read_samples,
    report_run,
    series_of,
    thinned,
    watched,
    write_run_report,
)
from pyarrow import parquet

HOSTILE = "</script><script>alert(1)</script> <!-- \u2028 漢字"
HISTORY = [
    {"step": 0, "held_out/accuracy@1": 0.25, "epoch": 0.0},
    {"step": 1, "loss": float("nan"), "reward": 0.5, "rewards/math/mean": 0.5, "note": "words"},
    {"step": 2, "loss": 0.1, "reward": 0.75, "rollout/unique": None},
    {"step": 2, "loss": 0.2},
]


class Scripts(HTMLParser):
    """Collects the text of a page's scripts."""

    def __init__(self):
        super().__init__(convert_charrefs=False)
        self.scripts, self.inside = [], False

    def handle_starttag(self, tag, attrs):
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.scripts[-1] += data


def data_of(path):
    page = Scripts()
    page.feed(path.read_text(encoding="utf-8"))
    data, code = page.scripts  # hostile text opened no third one
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", code)
    return json.loads(data)


def test_series_are_the_finite_numbers_by_step():
    assert series_of(HISTORY) == {
        "held_out/accuracy@1": [(0, 0.25)],
        "reward": [(1, 0.5), (2, 0.75)],
        "rewards/math/mean": [(1, 0.5)],
        "loss": [(2, 0.2)],
    }


def test_a_run_of_days_is_drawn_by_some_of_its_points(tmp_path):
    history = [{"step": step, "loss": 1 / step} for step in range(1, 100_001)]
    write_run_report(tmp_path / "report.html", history, {"title": "x"}, {})
    points = data_of(tmp_path / "report.html")["series"]["loss"]
    assert points[-1] == [100_000, 1e-5]
    steps = [step for step, _ in points]
    assert 1900 < len(points) <= 2000
    assert {b - a for a, b in itertools.pairwise(steps)} == {50}
    assert thinned([(1, 0.5), (2, 0.25)]) == [(1, 0.5), (2, 0.25)]


def test_the_page_holds_the_data_and_refers_to_nothing_outside(tmp_path):
    path = tmp_path / "report.html"
    samples = [
        {
            "step": 2,
            "groups": [
                {
                    "prompt": HOSTILE,
                    "completions": [
                        {"text": HOSTILE, "rewards": {"math": float("nan")}, "extra": {"nfe": 3}, "advantage": -0.5}
                    ],
                }
            ],
        }
    ]
    write_run_report(
        path,
        HISTORY,
        {"title": HOSTILE, "held_out": 64},
        {"note": HOSTILE, "lr": 1e-6, "paths": [tmp_path]},
        watched({"health_repetition": 0.7}),
        [{"step": 2, "wrong": HOSTILE, "action": "stop", "weights": None}],
        samples,
    )
    data = data_of(path)
    assert data["facts"]["title"] == HOSTILE
    assert data["series"]["reward"] == [[1, 0.5], [2, 0.75]]
    assert data["settings"]["paths"] == [tmp_path.name]
    assert data["samples"][0]["groups"][0]["completions"][0] == {
        "text": HOSTILE,
        "rewards": {"math": None},
        "extra": {"nfe": 3},
        "advantage": -0.5,
    }
    text = path.read_text(encoding="utf-8")
    outside = re.sub(r"http://www\.w3\.org/2000/svg", "", text)  # a name, not a place
    assert not re.search(r"https?:|src=|url\(|@import|<script>alert", outside)
    assert "default-src 'none'" in text


def test_limits_are_the_runs_own():
    limits = {entry["metric"]: entry["limit"] for entry in watched({"health_repetition": 0.7})}
    assert limits["rollout/repetition"] == 0.7
    assert limits["ratio/spread"] == HealthConfig().health_ratio_spread
    assert set(limits) == {rule.metric for rule in RULES}
    turned = [entry["words"] for entry in watched({}) if entry["complement"]]
    assert turned == ["groups that teach nothing"]  # whose number is the share of those that teach


def write_state(folder, steps):
    folder.mkdir(parents=True, exist_ok=True)
    history = [
        {"step": step, "reward": step / 10, "rewards/math/mean": 0.5, "loss": 0.0} for step in range(1, steps + 1)
    ]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))


def write_completions(run, step, prompts):
    (run / "completions").mkdir(exist_ok=True)
    rows = [
        {
            "step": step,
            "prompt": prompt,
            "completion": [{"role": "assistant", "content": f"{step}.{k}"}],
            "math": [1.0, 0.0][k % 2],
            "nfe": 7,
            "confidence": 0.5,
            "finished": True,
            "advantage": float(k),
        }
        for prompt in prompts
        for k in range(8)
    ]
    parquet.write_table(pa.Table.from_pylist(rows), run / f"completions/completions_{step:05d}.parquet")


def test_the_last_checkpoint_stands_in_for_the_end(tmp_path):
    write_state(tmp_path / "checkpoint-5", 5)
    write_state(tmp_path / "checkpoint-10", 10)
    assert read_history(tmp_path)[-1]["step"] == 10
    write_state(tmp_path, 12)
    assert read_history(tmp_path)[-1]["step"] == 12


def test_completions_are_chosen_over_the_whole_run(tmp_path):
    for step in range(10, 410, 10):
        write_completions(tmp_path, step, ["p", "q", "r"])
    samples = read_samples(tmp_path, ["math"])
    steps = [sample["step"] for sample in samples]
    assert len(steps) == 12
    assert (steps[0], steps[-1]) == (10, 400)
    prompts = [group["prompt"] for group in samples[0]["groups"]]
    assert prompts == ["p", "q"]
    first = samples[0]["groups"][0]["completions"]
    assert [c["advantage"] for c in first] == [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]  # the whole group
    assert first[0] == {
        "text": "10.7",
        "rewards": {"math": 0.0},
        "advantage": 7.0,
        "extra": {"nfe": 7, "confidence": 0.5, "finished": True},
    }


def test_the_command_writes_the_page_or_says_what_is_missing(tmp_path, capsys):
    run = tmp_path / "run"
    write_state(run, 3)
    write_completions(run, 3, ["p"])
    (run / "run.json").write_text(json.dumps({"task": "sudoku", "preset": "d2", "base": "m", "config": {"seed": 1}}))
    (run / "health.jsonl").write_text(json.dumps({"step": 2, "wrong": "w", "action": "stop", "weights": 1}) + "\n")
    assert main([str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    data = data_of(run / "report.html")
    assert data["facts"]["title"] == "d2 on sudoku"
    assert data["events"][0]["step"] == 2
    assert data["settings"] == {"seed": 1}
    assert data["samples"][0]["groups"][0]["completions"][0]["rewards"] == {"math": 0.0}
    assert main([str(tmp_path)]) == 2
    assert "holds neither trainer_state.json nor a checkpoint" in capsys.readouterr().err


def test_a_running_trainer_hands_its_log_over(tmp_path):
    report_run(tmp_path, tmp_path / "page.html", [{"step": 7, "reward": 1.0}])
    assert data_of(tmp_path / "page.html")["series"] == {"reward": [[7, 1.0]]}


@pytest.mark.parametrize(
    ("known", "title"),
    [
        ({"stage": "sft", "data": "/home/somebody/data/mine.jsonl"}, "sft on mine.jsonl"),
        ({"stage": "grpo", "preset": "espo", "task": "gsm8k", "data": "openai/gsm8k"}, "espo on gsm8k, openai/gsm8k"),
        ({"stage": "grpo"}, "grpo on my run"),
        ({"stage": "grpo", "task": "/home/somebody/a.yaml (0123456789abcdef)"}, "grpo on a.yaml (0123456789abcdef)"),
    ],
)
def test_the_title_names_the_data_and_no_folder_of_the_machine_is_shown(known, title, tmp_path):
    run = tmp_path / "my run"
    write_state(run, 2)
    settings = {
        "output_dir": str(run),
        "reward_funcs": ["/home/somebody/rewards.py:score", "/home/somebody/own.py:f (0123456789abcdef)"],
        "dataset_name": known.get("data"),
    }
    base = "/home/somebody/models/mine"
    (run / "run.json").write_text(json.dumps({"base": base, "config": settings, **known}))
    report_run(run, tmp_path / "page.html")
    data = data_of(tmp_path / "page.html")
    assert data["facts"]["title"] == title
    assert data["facts"]["model"] == "mine"
    assert data["settings"]["reward_funcs"] == ["rewards.py:score", "own.py:f (0123456789abcdef)"]
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "somebody" not in text
    assert str(tmp_path) not in text
