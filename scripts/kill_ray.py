"""Kills `lockstitch sample --engine ray`, or `stitch`, at random moments, starts it again, and compares its rows with one
process's.

    python scripts/kill_ray.py                              # ten kills; each run starts a cluster of its own
    python scripts/kill_ray.py --command stitch --workers 2
    python scripts/kill_ray.py --times 2 --ray_address HOST:PORT

After each kill the results must be a beginning of the right ones, and what waits beside them must be right; a cluster of the
run's own must be gone within three minutes, with every process: Ray's own agents see by and by that it has ended. The last
run is left alone and must end with all rows.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lockstitch.rewards.tasks.named import get_task
from lockstitch.stitching.inputs import generate_problems

from lockstitch import files

ROWS = 60


def command(name: str, source: Path, output: Path, *more: str) -> list[str]:
    """The command, whose portions are of two rows."""
    said = {
        "sample": f"--model embedded:sudoku --canvas_length 20 --steps 20 --temperature 0.8 --input {source}",
        "stitch": f"--task sudoku --model embedded:sudoku-early --num_trajectories 4 --steps 20 --generate {ROWS}",
    }
    fixed = ["--device", "cpu", "--chunk", "2", "--output", str(output)]
    return [sys.executable, "-m", "lockstitch", name, *said[name].split(" "), *fixed, *more]


def timeless(value: Any) -> Any:
    """Without what is measured in seconds."""
    if isinstance(value, dict):
        return {name: timeless(inner) for name, inner in value.items() if name != "seconds"}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def rows_of(path: Path) -> list[Any]:
    """The whole rows of a file."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [timeless(json.loads(line)) for line in lines]


def left(folder: str) -> list[int]:
    """The processes that were started with this folder as Ray's."""
    mark = f"RAY_TMPDIR={folder}".encode()
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in environment.read_bytes().split(b"\0"):
                found.append(int(environment.parent.name))
        except OSError:  # it ended
            continue
    return found


def killed(arguments: list[str], output: Path, until: int) -> tuple[int, float]:
    """Starts the command, kills it when so many rows are on the disk; how many are then, and seconds until all is gone."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            arguments,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "RAY_TMPDIR": folder},
        )
        while done(output) < until:
            if process.poll() is not None:
                raise SystemExit(f"it ended by itself, with {process.returncode}: {process.communicate()[1]}")
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        began = time.monotonic()
        while remaining := left(folder):
            assert time.monotonic() < began + 180, f"processes {remaining} are left three minutes after the kill"
            time.sleep(0.1)
    return done(output), time.monotonic() - began


def done(output: Path) -> int:
    """How many rows are on the disk, in their turn or before it."""
    return len({row["index"] for name in (files.RESULTS, files.AHEAD) for row in rows_of(output / name)})


def main() -> None:
    """Runs the script; an assertion fails where a row is lost, repeated or wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", choices=("sample", "stitch"), default="sample")
    parser.add_argument("--workers", type=int, default=1, help="actors of each stage")
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ray_address", help="a cluster that runs; default: each run starts its own")
    options = parser.parse_args()
    more = ["--engine", "ray", "--workers", str(options.workers)]
    more += ["--ray_address", options.ray_address] if options.ray_address else []
    task, rng = get_task("sudoku"), random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        source, whole, output = Path(folder, "in.jsonl"), Path(folder, "whole"), Path(folder, "killed")
        prompts = [task.prompt(given.problem.question) for given in generate_problems(task, ROWS, 0)]
        source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
        subprocess.run(command(options.command, source, whole), check=True, stdout=subprocess.DEVNULL)
        expected = rows_of(whole / files.RESULTS)
        assert len(expected) == ROWS
        moments = sorted(rng.randrange(1, ROWS * 3 // 4) for _ in range(options.times))
        for number, moment in enumerate(moments, start=1):
            before = done(output)
            rows, seconds = killed(command(options.command, source, output, *more), output, max(moment, before + 1))
            found = rows_of(output / files.RESULTS)
            assert found == expected[: len(found)]
            assert all(row == expected[row["index"]] for row in rows_of(output / files.AHEAD))
            print(
                f"kill {number}: {before} rows before, {rows} after, {len(found)} of them in their turn; "
                f"no process left after {seconds:.0f} s",
                flush=True,
            )
        subprocess.run(command(options.command, source, output, *more), check=True, stdout=subprocess.DEVNULL)
        assert rows_of(output / files.RESULTS) == expected
        assert sorted(os.listdir(output)) == sorted(os.listdir(whole))
    print(f"{options.times} kills: all {ROWS} rows as by one process, none lost, none twice")


if __name__ == "__main__":
    main()
