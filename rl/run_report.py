"""The page on which people look at a training run: rewards, held-out accuracy, health, and completions as they change.

    lockstitch report runs/tiny/sudoku

One HTML file that needs nothing else, like the other pages; what it draws is `run_report.html` beside this module. A run's
output directory has everything: `trainer_state.json` (or that of the last checkpoint, or what a running trainer hands over),
`health.jsonl`, `run.json`, and the completions that TRL keeps under `completions/` when `log_completions` is on.

Left out: comparing runs, which trackers do.
"""

import argparse
import json
import math
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from lockstitch.errors import reported
from lockstitch.pages import embed, without_places, write_page

PAGE = "report.html"
SHOWN_STEPS = 12
SHOWN_PROMPTS = 2
SHOWN_CHARACTERS = 4000


def write_run_report(
    path: Path,
    history: Iterable[Mapping[str, Any]],
    facts: Mapping[str, Any],
    settings: Mapping[str, Any],
    health: Sequence[Mapping[str, Any]] = (),
    events: Sequence[Mapping[str, Any]] = (),
    samples: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Writes the page whole or not at all.

    Args:
        path: where the page goes; an older one is replaced.
        history: the trainer's log, one mapping per logged step.
        facts: what stands at the top, `title` as the heading; `held_out` is the number of held-out problems.
        settings: every option, for the record; of the paths in it the last part is shown.
        health: the watched numbers: `metric`, `words`, `limit` (or None), `relative`, `patience`, and `complement` where the
            limit is on 1 less the number.
        events: lines of `health.jsonl`.
        samples: what `read_samples` gives.
    """
    drawn = {name: thinned(points) for name, points in series_of(history).items()}
    data = {
        "facts": without_places(facts), "settings": without_places(settings), "series": drawn,
        "health": health, "events": events, "samples": samples,
    }  # fmt: skip
    template = resources.files("lockstitch.rl").joinpath("run_report.html").read_text(encoding="utf-8")
    write_page(path, template, [embed(_finite(data))])


def series_of(history: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Every logged number as (step, value) in the order of steps; of two logs of one step the later counts."""
    series: dict[str, dict[int, float]] = {}
    for entry in history:
        for name, value in entry.items():
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if number and name not in ("step", "epoch"):
                series.setdefault(name, {})[entry["step"]] = float(value)
    return {name: sorted(points.items()) for name, points in series.items()}


def thinned(points: list[tuple[int, float]], most: int = 2000) -> list[tuple[int, float]]:
    """At most so many of the points, evenly spread and with the last one: a browser draws no more of a run of days."""
    apart = -(-len(points) // most)
    return points if apart <= 1 else points[(len(points) - 1) % apart :: apart]


def _finite(value: Any) -> Any:
    """The same data with None for numbers that JSON cannot say, and texts for what it does not know."""
    if isinstance(value, Mapping):
        return {str(name): _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)


# --- what a run leaves behind ----------------------------------------------------------------------------------------


def read_history(run: Path) -> list[dict[str, Any]]:
    """The log of a run: of its end, or else of its last checkpoint; `ValueError` if there is neither."""
    states = [run / "trainer_state.json"]
    states += sorted(
        run.glob("checkpoint-*/trainer_state.json"), key=lambda path: -int(path.parent.name.split("-")[1])
    )
    for state in states:
        if state.is_file():
            try:
                history: list[dict[str, Any]] = json.loads(state.read_text(encoding="utf-8"))["log_history"]
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{state} is not the state of a trainer: {error}") from error
            return history
    raise ValueError(
        f"{str(run)!r} holds neither trainer_state.json nor a checkpoint: is it a run's output directory?"
    )


def read_samples(run: Path, rewards: Collection[str]) -> list[dict[str, Any]]:
    """Some of the kept completions: at most 12 steps spread over the run; of each the first prompts, with all completions of
    their groups, best first.

    `rewards` names the columns that are rewards; the others are shown as what else is known of a completion.
    """
    files = sorted((run / "completions").glob("completions_*.parquet"), key=lambda path: int(path.stem.split("_")[1]))
    last = len(files) - 1
    chosen = sorted({round(i * last / (SHOWN_STEPS - 1)) for i in range(SHOWN_STEPS)}) if files else []
    return [_step_of(files[i], rewards) for i in chosen]


def _step_of(path: Path, rewards: Collection[str]) -> dict[str, Any]:
    from pyarrow import parquet

    rows = parquet.read_table(path).to_pylist()
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(_text(row["prompt"]), []).append(_completion(row, rewards))
    shown = dict(list(groups.items())[:SHOWN_PROMPTS])
    for group in shown.values():
        group.sort(key=lambda row: -(row["advantage"] or 0.0))
    groups_shown = [{"prompt": prompt, "completions": group} for prompt, group in shown.items()]
    return {"step": int(path.stem.split("_")[1]), "groups": groups_shown}


def _completion(row: Mapping[str, Any], rewards: Collection[str]) -> dict[str, Any]:
    """TRL's row: `step`, `prompt`, `completion`, then rewards, extra columns, and `advantage`."""
    known = ("step", "prompt", "completion", "advantage", *rewards)
    extra = {
        name: value if isinstance(value, int | float) else str(value)[:80]
        for name, value in row.items()
        if name not in known
    }
    return {
        "text": _text(row["completion"]),
        "rewards": {name: row.get(name) for name in rewards},
        "extra": extra,
        "advantage": row.get("advantage"),
    }


def _text(value: Any) -> str:
    """A plain text, or the messages of a conversation one below the other."""
    text = value if isinstance(value, str) else "\n\n".join(str(message["content"]) for message in value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " …"


def report_run(run: Path, page: Path, history: Sequence[Mapping[str, Any]] | None = None) -> None:
    """Writes the page of a run from its output directory.

    Args:
        run: the output directory.
        page: where the page goes.
        history: the log, if a running trainer has it; read from the directory by default.

    Raises:
        ValueError: the directory holds no log, or an event that was cut off.
    """
    from lockstitch.rl.health import read_events

    history = read_history(run) if history is None else history
    described = run / "run.json"
    known = json.loads(described.read_text(encoding="utf-8")) if described.is_file() else {}
    settings = known.get("config", {})
    steps = max((entry["step"] for entry in history), default=0)
    kind = known.get("preset") or known.get("stage") or "run"
    of = ", ".join(str(without_places(known[name])) for name in ("task", "data") if known.get(name))
    facts = {
        "title": f"{kind} on {of or run.resolve().name}",
        "model": known.get("base"),
        "revision": known.get("revision"),
        "device": known.get("device"),
        "dtype": known.get("dtype"),
        "steps": steps,
        "held_out": settings.get("held_out_problems") or None,
    }
    rewards = sorted(
        name[len("rewards/") : -len("/mean")]
        for name in series_of(history)
        if name.startswith("rewards/") and name.endswith("/mean")
    )
    write_run_report(page, history, facts, settings, watched(settings), read_events(run), read_samples(run, rewards))


def watched(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The numbers that the health callback watches, with the limits that these settings, or else its defaults, give them."""
    from lockstitch.rl.health_rules import RULES, HealthConfig

    limits = {**asdict(HealthConfig()), **settings}
    return [
        {
            "metric": rule.metric,
            "words": rule.words,
            "limit": limits[rule.option],
            "relative": rule.relative,
            "patience": limits["health_patience"],
            "complement": rule.complement,
        }
        for rule in RULES
    ]


@reported("lockstitch report")
def main(argv: list[str] | None = None) -> int:
    """`lockstitch report RUN [--html FILE]`."""
    parser = argparse.ArgumentParser(
        prog="lockstitch report",
        description="Write the page of a training run: curves, health, completions.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="output directory of the run")
    parser.add_argument("--html", type=Path, help="where the page goes (default: report.html in that directory)")
    options = parser.parse_args(argv)
    if not options.run.is_dir():
        raise ValueError(f"run={str(options.run)!r} is not a directory")
    page = options.html or options.run / PAGE
    if page.is_dir() or not page.parent.is_dir():
        raise ValueError(f"html={str(page)!r} must be a file in a directory that exists")
    report_run(options.run, page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
