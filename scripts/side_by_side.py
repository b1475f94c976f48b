"""Pieces of work compared with one another in one run, and results that survive an interruption.

The sides of a comparison take turns, in the opposite order every other time, so that whatever else the machine does
falls on all of them alike. Each turn gives one ratio; what counts is the median, and the quartiles say how far it can be
trusted. With one thread the clock is the processor's, which other work on the machine disturbs less; with more it is
the wall's.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch.profiler import ProfilerActivity, profile
from tqdm import trange

from lockstitch.files import to_json, write_whole

Work = Callable[[], object]
Seconds = Callable[[], float]


def clock() -> float:
    """Seconds: of the processor with one thread, of the wall with more."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def timed(work: Work) -> Seconds:
    """A side that takes what one run of the work takes."""

    def seconds() -> float:
        began = clock()
        work()
        return clock() - began

    return seconds


def compare(name: str, slow: str, sides: dict[str, Seconds], repeats: int) -> dict[str, dict]:
    """How many times longer the side `slow` takes than each of the others: by side, `ratio`, `quartiles`, all `ratios`
    and the median `seconds` of both. Nothing is run beforehand: whoever calls has checked what the sides give, and
    that was their warm-up."""
    turns = [
        {side: sides[side]() for side in (sides if turn % 2 == 0 else reversed(sides))}
        for turn in trange(repeats, desc=name)
    ]
    found = {}
    for side in sides:
        if side == slow:
            continue
        ratios = [turn[slow] / turn[side] for turn in turns]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        seconds = {one: statistics.median(turn[one] for turn in turns) for one in (slow, side)}
        found[side] = {"ratio": middle, "quartiles": [low, high], "ratios": ratios, "seconds": seconds}
        both = ", ".join(f"{one} {value:.3f} s" for one, value in seconds.items())
        print(f"{name}: {side} {middle:.2f}x, quartiles {low:.2f} to {high:.2f} ({both})", flush=True)
    return found


def peak_memory(work: Work) -> int:
    """The most bytes of tensors that the work holds at a time beyond what was there before, temporary ones included.

    As torch's own allocator counts them: exact, and the same at every run, unlike the process's resident set, which
    keeps what was freed.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "trace.json"
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as profiler:
            work()
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    levels = [event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]"]
    first = next(event["args"] for event in events if event.get("name") == "[memory]")
    return int(max(levels) - (first["Total Allocated"] - first["Bytes"]))


def parse(parser: argparse.ArgumentParser, embedded: str) -> argparse.Namespace:
    """The command line with the options that benchmarks of a model share; sets torch's threads."""
    parser.add_argument("--model", default=embedded, metavar="DIR", help="a directory; by default the embedded model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where figures go; those that it holds are kept")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each, at least 5 (5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    arguments = parser.parse_args()
    if arguments.repeats < 5:
        parser.error(f"--repeats {arguments.repeats}: a median wants at least 5")
    torch.set_num_threads(arguments.threads)
    return arguments


class Results:
    """What is known so far, in memory and in a file that is whole after every comparison.

    A second run with the same conditions goes on where the first stopped; `ValueError` for a file made under others.
    """

    def __init__(self, path: Path | None, conditions: dict[str, object]) -> None:
        self.path = path
        self.values: dict[str, object] = {"conditions": conditions | machine()}
        if path is not None and path.exists():
            earlier = json.loads(path.read_text())
            if earlier.get("conditions") != self.values["conditions"]:
                raise ValueError(
                    f"{path} holds figures of other conditions ({earlier.get('conditions')}); "
                    f"choose another file, or delete it"
                )
            self.values = earlier

    def add(self, name: str, measure: Callable[[], object]) -> None:
        """Measures, unless the figure is there already."""
        if name in self.values:
            print(f"{name}: in {self.path} already", flush=True)
            return
        self.values[name] = measure()
        if self.path is not None:
            write_whole(self.path, to_json(self.values))


def machine() -> dict[str, object]:
    """What figures depend on beside the work."""
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processor": platform.processor() or platform.machine(),
    }
