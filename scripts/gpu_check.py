"""Does everything work on this GPU as on the CPU, how fast is it, and does a step need the memory that we say?

    scripts/gpu_check                                  # makes .venv first if need be
    python scripts/gpu_check.py --size 3b              # in an environment of your own
    python scripts/gpu_check.py --device cpu --size tiny

tests       The tests marked `gpu` (`tests/test_gpu.py`): every family's golden checkpoint, the accelerator against the CPU.
            Tokens under the family's preset and with every cache, likelihoods, steps of training, export; the drift of
            bfloat16.
throughput  This sampler against LLaDA's loop as one would write it today, on a random Llama: see `gpu_figures.py`.
memory      Peak of one optimisation step of reinforcement learning against the formula of `recipes/gpu_memory.py`.

Sized to take at most 8 minutes on one GPU, the first that is visible. At its end it writes gpu_check.json and a page,
gpu_check.html, both or neither; those of an earlier run are removed first. The exit status is 0 if all tests passed, 1 if
one did not, 2 for what was not understood.
`--device cpu` proves that all of it runs, and its figures say nothing of a GPU.
"""

import argparse
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
SIZES = ("tiny", "1b", "3b")
TESTS_LIMIT = 240  # seconds


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message):
        self.exit(2, f"gpu_check: {message}\n")


def parse(argv):
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser("gpu_check", description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("--device", choices=["gpu", "cpu"], default="gpu", help="cpu only to prove that it runs (gpu)")
    parser.add_argument("--size", choices=SIZES, default="1b", help="of the random Llama, in parameters (1b)")
    parser.add_argument("--turns", type=int, default=5, help="most turns of each side of a comparison, at least 2 (5)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "runs/gpu_check", metavar="DIR", help="where the files go"
    )
    arguments = parser.parse_args(argv)
    if arguments.turns < 2:
        parser.error(f"--turns {arguments.turns}: a spread wants at least 2")
    if arguments.device == "cpu" and arguments.size != "tiny":
        parser.error(f"--size {arguments.size}: --device cpu goes with --size tiny")
    if arguments.output.exists() and not arguments.output.is_dir():
        parser.error(f"--output {arguments.output} is not a directory")
    return arguments


def device_of(arguments):
    """The device; ends the check where there is no accelerator."""
    import torch

    if arguments.device == "cpu":
        return torch.device("cpu")
    if not torch.accelerator.is_available():
        print(
            "gpu_check: no accelerator found; --device cpu --size tiny proves without one that it runs",
            file=sys.stderr,
        )
        raise SystemExit(2)
    return torch.accelerator.current_accelerator()


def run_tests(device):
    """What became of each test, and what it recorded."""
    environment = dict(os.environ)
    environment.pop("LOCKSTITCH_GPU_TESTS_ON", None)
    if device.type == "cpu":
        environment["LOCKSTITCH_GPU_TESTS_ON"] = "cpu"
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "tests/test_gpu.py", "-m", "gpu", "-q", f"--junitxml={report}"]
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, timeout=TESTS_LIMIT, check=False)
        except subprocess.TimeoutExpired:
            return [
                {
                    "test": "all",
                    "case": "",
                    "outcome": "failed",
                    "seconds": TESTS_LIMIT,
                    "recorded": {},
                    "reason": f"not at their end after {TESTS_LIMIT} s",
                }
            ]
        if not report.exists():
            raise SystemExit(f"gpu_check: pytest ended with status {done.returncode} and left no report")
        return read_report(report)


def read_report(path):
    """The rows of a report in JUnit's form."""
    rows = []
    for case in ElementTree.parse(path).iter("testcase"):
        name, _, parameters = case.get("name").partition("[")
        ends = {kind: case.find(kind) for kind in ("failure", "error", "skipped")}
        outcome, reason = "passed", ""
        for kind, end in ends.items():
            if end is not None:
                outcome, reason = (
                    "skipped" if kind == "skipped" else "failed",
                    (end.get("message") or "").split("\n")[0],
                )
        recorded = {one.get("name"): number(one.get("value")) for one in case.iter("property")}
        rows.append(
            {
                "test": name.removeprefix("test_").replace("_", " "),
                "case": parameters.removesuffix("]"),
                "outcome": outcome,
                "seconds": float(case.get("time")),
                "recorded": recorded,
                "reason": reason,
            }
        )
    return rows


def number(text):
    """A recorded figure; as text where it is not finite, which JSON cannot say."""
    value = float(text)
    return value if math.isfinite(value) else text


def conditions(arguments, device):
    """What the figures depend on beside the work."""
    import torch
    import transformers
    from transformers.utils import is_flash_attn_2_available

    module = None if device.type == "cpu" else torch.get_device_module(device)
    name = module.get_device_name() if module is not None else platform.processor() or platform.machine()
    return {
        "device": device.type,
        "name": name,
        "size": arguments.size,
        "torch": torch.__version__,
        "CUDA": torch.version.cuda,
        "transformers": transformers.__version__,
        "Python": platform.python_version(),
        "flash attention": is_flash_attn_2_available(),
        "threads": torch.get_num_threads(),
    }


def write_both(directory, texts):
    """Writes all of the files, or none."""
    directory.mkdir(parents=True, exist_ok=True)
    partial = {name: directory / f"{name}.partial" for name in texts}
    try:
        for name, text in texts.items():
            partial[name].write_text(text, encoding="utf-8")
        for name, path in partial.items():
            os.replace(path, directory / name)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


def main(argv):
    """Checks, measures, writes."""
    arguments = parse(argv)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # with several, trainers would spread a batch over them
    device = device_of(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from gpu_figures import memory, throughput
    from gpu_page import page

    from lockstitch.errors import one_line
    from lockstitch.files import to_json

    names = ("gpu_check.json", "gpu_check.html")
    with one_line("gpu_check"):  # before minutes of work, not after
        arguments.output.mkdir(parents=True, exist_ok=True)
        for name in names:
            (arguments.output / name).unlink(missing_ok=True)
    began = time.monotonic()
    found = {"conditions": conditions(arguments, device), "tests": run_tests(device)}
    found["throughput"] = throughput(arguments.size, device, arguments.turns)
    found["memory"] = memory(arguments.size, device)
    found["seconds"] = round(time.monotonic() - began, 1)
    write_both(arguments.output, dict(zip(names, (to_json(found), page(found)), strict=True)))
    failed = sum(row["outcome"] == "failed" for row in found["tests"])
    print(f"{len(found['tests'])} tests, {failed} failed; {found['seconds']:.0f} s; {arguments.output / names[1]}")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
