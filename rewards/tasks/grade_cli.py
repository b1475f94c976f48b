"""`lockstitch grade`: how many completions of a task are right, and what each of them earns.

    lockstitch grade --task gsm8k --completions completions.jsonl --output runs/gsm8k
    lockstitch grade --task countdown --completions c.jsonl --form tags --reward my_rewards:brevity=0.1 --output runs/c

The rows of the file are those of the benchmark in its own notation, or are joined with them by their ids; `completions.py`
lists what their completions may be called. A run that was interrupted goes on when it is started again; a directory with
results of another configuration is refused.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lockstitch.rewards.sandbox.bubblewrap import SandboxUnavailable
from lockstitch.rewards.tasks.builtin import TASKS
from lockstitch.rewards.tasks.completions import NAMES
from lockstitch.rewards.tasks.grade import GradeConfig, Progress, grade
from lockstitch.rewards.tasks.reasoning_gym_task import GYM

from lockstitch.engine import EngineOptions, add_arguments
from lockstitch.errors import GOES_ON, reported


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lockstitch grade",
        description="Score completions of a task: results row by row, and accuracy with its interval.",
        epilog="The file holds rows with the columns of the benchmark's own file (or of the hub's data set), or with its "
        f"'task_id' or 'id', and with completions: in {', '.join(NAMES)}, or as EvalPlus, lm-eval, lockstitch sample and "
        "stitch write them. `lockstitch rewards` lists the rewards.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--task",
        required=True,
        help=f"{', '.join(TASKS)}, {GYM}NAME (extra 'gym'), another "
        "that `lockstitch tasks` lists, a YAML file, file.py:attribute or module:attribute",
    )
    parser.add_argument(
        "--completions", type=Path, required=True, metavar="FILE", help="JSON Lines, JSON, CSV or parquet"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for results.jsonl and summary.json")
    parser.add_argument(
        "--form",
        default="plain",
        help="form of the prompts: tags (adds the rewards for tags), boxed, fenced or plain (default)",
    )
    parser.add_argument(
        "--reward",
        action="append",
        default=[],
        metavar="NAME[=WEIGHT]",
        help="a further reward, by name or as module:function; may be repeated",
    )
    parser.add_argument(
        "--column", metavar="NAME", help="the column of the completions, where it has no name that is known"
    )
    parser.add_argument(
        "--input",
        type=Path,
        metavar="FILE",
        help="the task's own rows (a file or a folder), which those of the file are joined with by task_id or id; default: "
        "the folder LOCKSTITCH_DATA or the hub, for rows that lack columns",
    )
    parser.add_argument(
        "--source", metavar="NAME", help="which of the task's sources these are (default: the usual one)"
    )
    parser.add_argument("--chunk", type=int, default=64, help="completions scored and saved together (default 64)")
    add_arguments(parser)
    return parser


def _bar(total: int) -> Progress:
    from tqdm import tqdm

    bar = tqdm(total=total, unit="row", disable=None)

    def update(count: int) -> None:
        bar.update(count)
        if bar.n >= total:
            bar.close()

    return update


def table(summary: Mapping[str, Any]) -> str:
    """The summary for the terminal."""
    judged = summary["n"] - summary["none"]
    lines = [f"{summary['task']}: {summary['right']} of {judged} right"]
    if summary["accuracy"] is not None:
        low, high = summary["ci95"]
        lines[0] += f", {summary['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%})"
    lines[0] += f"; {summary['none']} without a verdict; {summary['seconds']:.1f} s"
    if summary["n"] > summary["problems"]:
        for name, of in summary["pass@k"].items():
            lines.append(f"{name}: {of['mean']:.1%} ({of['ci95'][0]:.1%} to {of['ci95'][1]:.1%})")
        lines[1] += f" over {summary['problems']} problems"
    width = max(len("reward"), *map(len, summary["rewards"]))
    lines += ["", f"{'reward':<{width}}  weight    mean  none"]
    for name, of in summary["rewards"].items():
        lines.append(f"{name:<{width}}  {of['weight']:>6g}  {_number(of['mean'])}  {of['none']:>4}")
    return "\n".join([*lines, f"{'sum':<{width}}  {'':>6}  {_number(summary['reward'])}"])


def _number(value: float | None) -> str:
    return f"{'-' if value is None else format(value, '.4f'):>6}"


@reported("lockstitch grade", f"interrupted; {GOES_ON}", SandboxUnavailable)
def main(argv: list[str] | None = None) -> int:
    """Entry point of `lockstitch grade`: 0, or 2 with the reason on the error stream."""
    options = _parser().parse_args(argv)
    config = GradeConfig(
        options.task,
        options.completions,
        options.output,
        options.form,
        tuple(options.reward),
        options.chunk,
        options.column,
        options.input,
        options.source,
    )
    engine = EngineOptions(options.workers, options.engine, options.pools, options.ray_address)
    summary = grade(config, _bar, engine)
    print(table(summary))
    if summary["note"] is not None:
        print(f"\nNote: {summary['note']}.")
    return 0
