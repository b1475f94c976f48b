"""What a command leaves behind that is killed at random moments and started again until it is done, as a table.

    python scripts/kill_commands.py --kills 15                # 15 SIGKILLs of every command: some ten minutes of one core
    python scripts/kill_commands.py --commands stitch --kills 40 --seed 1

Each command is run once without being killed. Then it is started again and again in a directory of its own, and killed by
SIGKILL at a moment between its start and the time that the whole run took; where it ends before, what it left is compared
with what the whole run left, and it begins anew. Counted are the kills that came after the first results and before the
end, results that were there after a kill and not after the next, runs that ended with other files or rows than the whole
one (numbers of seconds left out), that did not end well, or that took longer than `--limit`.

Processes are forked from one that has imported what they need. Left out: machines that lose their power.
"""

import argparse
import contextlib
import difflib
import json
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from fuzz_commands import RECIPES, main_of, make_adapter
from lockstitch.rl.checkpoints import torn

IMPORTS = [
    "lockstitch.rl.grpo", "lockstitch.rl.sft", "lockstitch.rl.export", "lockstitch.rl.merge", "lockstitch.sampling.cli",
    "lockstitch.stitching.cli", "lockstitch.stitching.pipeline", "lockstitch.rewards.tasks.grade_cli",
    "lockstitch.recipes.run_directory", "lockstitch.recipes.rl_data", "lockstitch.rl.adaptation",
    "lockstitch.recipes.step_training", "lockstitch.recipes.step_labels", "fuzz_commands",
]  # fmt: skip
TRAINED = {
    "model_name_or_path": "embedded:sudoku-early", "num_problems": 64, "save_steps": 1, "learning_rate": 1e-3,
    "warmup_steps": 0, "bf16": "false", "use_cpu": "true", "dtype": "float32", "report_to": "none", "logging_steps": 1,
    "gradient_checkpointing": "false", "lr_scheduler_type": "constant",
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {**TRAINED, "generate": "sudoku", "canvas_length": 20, "per_device_train_batch_size": 4, "max_steps": 12},
    "grpo": {**TRAINED, "task": "sudoku", "prompt_form": "plain", "reward_funcs": "sudoku", "max_completion_length": 20,
             "steps": 5, "num_generations": 4, "per_device_train_batch_size": 8, "max_steps": 10, "use_peft": "true",
             "lora_r": 4, "held_out_problems": 4, "held_out_every": 5, "log_completions": "true",
             "num_completions_to_print": 0},
    "adapt": {**TRAINED, "model_name_or_path": "embedded:solver", "layout": "context_causal", "block_length": 4,
              "generate": "evidence", "canvas_length": 20, "text": "rollouts", "states": "on_policy",
              "objective": "distillation", "per_device_train_batch_size": 4, "max_steps": 12},
    "prm": {**TRAINED, "task": "sudoku", "label_model": "embedded:sudoku-early", "num_problems": 8, "num_eval_problems": 4,
            "num_trajectories": 2, "num_completions": 2, "chunk": 1, "per_device_train_batch_size": 4, "max_steps": 8},
    "sample": {"model": "embedded:sudoku-early", "input": "prompts.jsonl", "canvas_length": 20, "steps": 10, "n": 2,
               "temperature": 1.0, "chunk": 1, "html": "page.html"},
    "stitch": {"task": "sudoku", "generate": 12, "num_trajectories": 4, "temperature": 1.0, "chunk": 1},
    "grade": {"task": "gsm8k", "completions": "completions.jsonl", "chunk": 1},
    "export": {"adapter": "adapter"},
}  # fmt: skip
ROWS = {"sample": 24, "grade": 300}
# Times, what they say of speed, and transformers' mean of the losses since a run was last started.
_TIMES = re.compile(r'"([\w/]*seconds|train_loss|\w*runtime|[\w/]*_per_second|step_time|epoch_time)": [^,}\n]+')


@dataclass
class Ends:
    """What came of the kills of a command."""

    kills: int = 0
    at_work: int = 0
    runs: int = 0
    lost: int = 0
    different: int = 0
    failed: int = 0
    stuck: int = 0

    @property
    def bad(self) -> int:
        """What must not be."""
        return self.lost + self.different + self.failed + self.stuck


def words(command: str, output: Path) -> list[str]:
    """The command line."""
    said = [f"--{name}={value}" for name, value in SETTINGS[command].items()]
    more = ["--merge"] if command == "export" else []
    return [*said, *more, f"--output{'_dir' if command in RECIPES else ''}={output}"]


def _process(command: str, output: Path, said: Path) -> None:
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(output.parent)
    code: object = 1
    try:
        code = main_of(command)(words(command, output)) or 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # noqa: BLE001  (it is printed)
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code if isinstance(code, int) else 1)


def start(command: str, output: Path) -> BaseProcess:
    """Starts a command in a process of its own, which says what it has to say beside its output."""
    process = _context().Process(target=_process, args=(command, output, output.with_suffix(".said")))
    process.start()
    return process


def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTS)
    return context


def prepare(folder: Path) -> None:
    """The files that the commands read."""
    rows = [
        {"question": f"{i} and {i}?", "answer": str(2 * i), "completion": f"It is {2 * i + i % 3}."}
        for i in range(ROWS["grade"])
    ]
    (folder / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    puzzle = "3102\n2000\n0210\n0320\n"
    (folder / "prompts.jsonl").write_text((json.dumps({"prompt": puzzle}) + "\n") * ROWS["sample"])
    make_adapter(folder / "adapter")


def results(output: Path) -> list[str]:
    """What there is so far, oldest first: whole rows, those of labels among them, then steps of checkpoints."""
    files = [output / place / "results.jsonl" for place in (".", "labels/train", "labels/fit", "labels/test")]
    rows = [
        _TIMES.sub("", line)
        for file in files
        if file.is_file()
        for line in file.read_text(encoding="utf-8").split("\n")[:-1]
    ]
    steps = sorted(int(path.name.split("-")[1]) for path in output.glob("checkpoint-*"))
    return [*rows, *(str(step) for step in range(1, steps[-1] + 1 if steps else 1))]


def contents(output: Path) -> dict[str, Any]:
    """The files that a run left, those of time left out, without the times in them."""
    found: dict[str, Any] = {}
    for path in sorted(output.rglob("*")):
        name = str(path.relative_to(output))
        if (
            path.is_dir()
            or path.name in ("report.html", "page.html", "calibration.html", "training_args.bin")
            or name.startswith("checkpoint-")
        ):
            continue
        if path.suffix in (".json", ".jsonl", ".md"):
            found[name] = _TIMES.sub("", path.read_text(encoding="utf-8")).replace(output.name, "")
        else:
            found[name] = None if path.suffix == ".parquet" else path.read_bytes()
    return found


def different(whole: dict[str, Any], killed: dict[str, Any]) -> list[str]:
    """The names of files that are there in one alone, or hold something else."""
    return sorted(
        name for name in whole | killed if name not in whole or name not in killed or whole[name] != killed[name]
    )


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def kill(command: str, folder: Path, kills: int, seed: int, limit: float) -> Ends:
    """Kills a command so many times, in a folder that `prepare` has filled."""
    moments, ends = random.Random(f"{seed} {command}"), Ends()
    warm = _context().Process(target=os.getpid)  # which is there once everything is imported
    warm.start()
    warm.join()
    began = time.monotonic()
    process = start(command, folder / f"{command}-whole")
    process.join(limit)
    seconds = time.monotonic() - began
    assert process.exitcode == 0, (folder / f"{command}-whole.said").read_text()
    whole, output, before = contents(folder / f"{command}-whole"), folder / f"{command}-killed", []
    last = len(results(folder / f"{command}-whole"))
    while True:
        process = start(command, output)
        process.join(moments.uniform(0.0, seconds) if ends.kills < kills else limit)
        stopped = process.exitcode is None
        if stopped:
            process.kill()
            process.join()
        there = results(output)
        if there[: len(before)] != before:
            ends.lost += 1
            _tell(f"{command}: {before[len(there) :][:1]} was there, and is not")
        before = there
        for path in output.glob("checkpoint-*"):
            if (why := torn(path)) is not None:
                ends.lost += 1
                _tell(f"{command}: {path.name} is not whole: {why}")
        if stopped and ends.kills < kills:
            ends.kills += 1
            ends.at_work += 0 < len(there) < last or (command == "export" and any(folder.glob(f".{output.name}*")))
            if command != "export" or not output.exists():
                continue
            # It writes into no directory that is there, so one that was moved into place must be whole, and is the end.
        ends.runs += 1
        done = stopped and command == "export" and output.exists()
        if (stopped or process.exitcode != 0) and not done:
            ends.stuck, ends.failed = ends.stuck + stopped, ends.failed + (not stopped)
            _tell(f"{command}: {'stuck' if stopped else process.exitcode}")
            _tell(output.with_suffix(".said").read_text()[-2000:])
        elif others := different(whole, contents(output)):
            ends.different += 1
            _tell(f"{command}: other files than in a whole run: {', '.join(others)}")
            pair = (whole.get(others[0]), contents(output).get(others[0]))
            if all(isinstance(text, str) for text in pair):
                _tell(
                    "\n".join(list(difflib.unified_diff(*(text.splitlines() for text in pair), lineterm="", n=2))[:20])
                )
        elif litter := [path.name for path in folder.glob(f".{output.name}*")]:
            ends.different += 1
            _tell(f"{command}: beside its output lies {', '.join(litter)}")
        if ends.kills >= kills:
            return ends
        shutil.rmtree(output, ignore_errors=True)
        before = []


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--commands", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--kills", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds after which a run is stuck (default 300)")
    options = parser.parse_args()
    print("| command | kills | of these at work | runs to the end | lost | different | failed | stuck |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    bad = Counter[str]()
    with tempfile.TemporaryDirectory(prefix="kill-") as name:
        folder = Path(name)
        prepare(folder)
        for command in options.commands:
            ends = kill(command, folder, options.kills, options.seed, options.limit)
            row: Sequence[object] = (f"`{command}`", ends.kills, ends.at_work, ends.runs, ends.lost, ends.different,
                                     ends.failed, ends.stuck)  # fmt: skip
            print(f"| {' | '.join(map(str, row))} |", flush=True)
            bad[command] = ends.bad
    with contextlib.suppress(AttributeError):
        multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]
    sys.exit(1 if bad.total() else 0)


if __name__ == "__main__":
    main()
