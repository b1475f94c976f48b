"""Recipes as runs of a comparison: each in a process and a thread of its own, its processor time kept, never run twice."""

import json
import os
import subprocess
import sys

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def launch(recipe, run):
    """Runs a recipe by `run/config.yaml` to its end, unless it got there.

    Output goes to `log.txt`, processor time (seconds) to `cpu.jsonl`, a line for each leg. Raises `RuntimeError` where the
    recipe fails.
    """
    if (run / "trainer_state.json").exists():
        return
    command = [sys.executable, "-m", f"lockstitch.recipes.{recipe}", "--config", str(run / "config.yaml")]
    with (run / "log.txt").open("a", encoding="utf-8") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=ONE_THREAD)
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    with (run / "cpu.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"seconds": usage.ru_utime + usage.ru_stime, "exit": child.returncode}) + "\n")
    if child.returncode:
        raise RuntimeError(f"{run} ended with {child.returncode}: see its log.txt")
