"""Several workers make the rows that one makes, whatever happens to them on the way."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
from lockstitch.rewards.tasks.grade_cli import main as grade
from lockstitch.sampling.cli import main as sample
from lockstitch.stitching.cli import main as stitch

from lockstitch import cores, files
from lockstitch.engine import EngineOptions, InOrder, Pool, Stage, cut, named, run, whole
from lockstitch.engine_ray import shares

PUZZLES = [
    "3102\n2000\n0210\n0320\n",
    "0140\n4320\n1402\n0000\n",
    "4310\n0100\n0030\n3420\n",
    "2004\n0012\n0320\n1003\n",
]


@dataclass(frozen=True)
class Doubling:
    """Work for a test: doubles numbers, and does to its process what the items say, once each where there is a marker."""

    folder: str

    def __call__(self):
        def work(portion):
            for place, item in portion:
                if item == "refused":
                    raise ValueError("no number")
                if item == "fault":
                    raise KeyError(item)
                marker = Path(self.folder, f"{place}")
                if item == "deadly" or (item == "once" and not marker.exists()):
                    marker.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                yield [{"index": place, "twice": item * 2, "cores": cores.available()}]

        return work


@dataclass(frozen=True)
class Telling:
    """Work for a test: tells what its process is told of the path."""

    def __call__(self):
        return lambda portion: [[{"index": i, "safe_path": os.environ.get("PYTHONSAFEPATH")} for i, _ in portion]]


def done(items, tmp_path, **options):
    """The rows of a run that is given to the local engine, and its results file."""
    path = tmp_path / files.RESULTS
    count = len(files.finished_by_index(path))
    job = whole("doubler", Doubling(str(tmp_path)), model=False)
    seen = []
    chunks = run(job, items, EngineOptions(**options), chunk=2, path=path, done=count, progress=seen.append)
    rows = [row for rows in chunks for row in rows]
    assert sum(seen) == len(items) - count
    assert not path.with_name(files.AHEAD).exists()
    return rows


def timeless(value):
    """Without what is measured in seconds."""
    if isinstance(value, dict):
        return {name: timeless(inner) for name, inner in value.items() if name != "seconds"}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def written(folder):
    return [timeless(json.loads(line)) for line in (Path(folder) / files.RESULTS).read_text().splitlines()]


# --- portions and their order ----------------------------------------------------------------------------------------


def test_portions_stand_at_the_same_places_whatever_is_left():
    items = "abcdefghij"
    assert cut(range(10), items, 4) == [list(enumerate(items))[i : i + 4] for i in (0, 4, 8)]
    left = [1, 2, 3, 5, 6, 9]
    assert [[place for place, _ in portion] for portion in cut(left, items, 4)] == [[1, 2, 3], [5, 6], [9]]
    assert [[place for place, _ in portion] for portion in cut([0, 2, 3], items, 4)] == [[0], [2, 3]]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]])
def test_results_are_in_order_whatever_is_finished_first(tmp_path, order):
    path = tmp_path / files.RESULTS
    results, ready = InOrder(path, 0, 4), []
    for i, index in enumerate(order):
        ready += results.add([{"index": index}])
        # Stopped here, no finished row would be lost.
        again = InOrder(path, len(files.finished_by_index(path)), 4)
        assert {*range(again.count), *again.waiting} == {*order[: i + 1]}
    assert ready == [{"index": i} for i in range(4)] == files.finished_by_index(path)
    results.close()
    assert os.listdir(tmp_path) == [files.RESULTS]


def test_a_refused_row_is_named_and_the_others_are_kept(tmp_path):
    kept = []

    def all_at_once(portion):
        return [[row for rows in Doubling(str(tmp_path))()(portion) for row in rows]]

    with pytest.raises(ValueError, match=r"^row 8: no number$"):
        kept.extend(row for rows in named(all_at_once, [(6, 1), (7, 2), (8, "refused"), (9, 3)]) for row in rows)
    assert [row["index"] for row in kept] == [6, 7]
    with pytest.raises(ValueError, match=r"^rows 6 to 7: no number$"):
        list(named(all_at_once, [(6, 1), (7, "refused")], apart=False))


# --- processes -------------------------------------------------------------------------------------------------------


def test_a_directory_with_rows_that_wait_belongs_to_its_run(tmp_path):
    files.claim_directory(tmp_path, {"seed": 0})
    (tmp_path / files.AHEAD).write_text('{"index": 3}\n')
    with pytest.raises(ValueError, match="seed: 0 then, 1 now"):
        files.claim_directory(tmp_path, {"seed": 1})


@pytest.mark.slow
@pytest.mark.parametrize(("said", "threads"), [(None, 1), ("2", 2)])
def test_a_worker_that_has_torch_already_keeps_to_its_share(said, threads):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {} if said is None else {"OMP_NUM_THREADS": said}
    script = "import torch; from lockstitch import cores; cores.keep_to(1); print(torch.get_num_threads())"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == threads


def test_workers_divide_the_rows_and_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "_share", 6)
    items = [1, 2, "once", 4, 5, "once", 7, 8, 9]
    rows = done(items, tmp_path, workers=3)
    assert [row["twice"] for row in rows] == [item * 2 for item in items]
    assert {row["cores"] for row in rows} == {2}
    assert rows == files.finished_by_index(tmp_path / files.RESULTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "5", files.RESULTS]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        ("refused", ValueError, r"^row 3: no number$"),
        ("fault", RuntimeError, "rows 2 to 3: a worker failed(.|\n)*KeyError"),
        ("deadly", OSError, "row 3: the worker ended by signal 9, and so did the one before it"),
    ],
)
def test_what_goes_wrong_in_a_worker_names_its_row(tmp_path, bad, kind, message):
    with pytest.raises(kind, match=message):
        done([0, 1, 2, bad, 4, 5], tmp_path, workers=2)
    kept = [row["index"] for row in files.finished_by_index(tmp_path / files.RESULTS)]
    assert kept == [0, 1, 2][: len(kept)]
    assert len(done([0, 1, 2, 3, 4, 5], tmp_path)) == 6 - len(kept)  # and alone it goes on from there


def test_fewer_portions_than_workers_are_said(tmp_path, caplog):
    done([0, 1, 2], tmp_path, workers=3)
    assert "3 rows in portions of 2 are work for 2 of 3 workers: a --chunk of 1 is work" in caplog.text


def test_files_beside_the_user_are_not_taken_for_pythons_own(tmp_path, monkeypatch):
    for name in ("signal", "resource"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file beside the user was run')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    job = whole("telling", Telling(), model=False)
    path = tmp_path / files.RESULTS
    chunks = run(job, [1, 2], EngineOptions(workers=2), chunk=1, path=path, done=0, progress=lambda count: None)
    assert [row["safe_path"] for rows in chunks for row in rows] == [None] * 2
    assert "PYTHONSAFEPATH" not in os.environ


def test_an_actor_looks_beside_its_caller_last(tmp_path):
    (tmp_path / "colorsys.py").write_text("")
    (tmp_path / "my_neighbour.py").write_text("")
    code = """if True:
        import os, sys
        from lockstitch.engine_ray import Place
        place = Place(sys.argv[1], tuple(sys.path), {})
        for _ in range(2):
            place.enter()
        import colorsys, my_neighbour
        assert os.getcwd() == sys.argv[1] == sys.path[-1] and sys.path.count(sys.argv[1]) == 1
        assert os.path.dirname(my_neighbour.__file__) == sys.argv[1] != os.path.dirname(colorsys.__file__)
    """
    subprocess.run([sys.executable, "-P", "-c", code, str(tmp_path)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_caller(tmp_path, stop):
    script = tmp_path / "caller.py"
    script.write_text(f"""
import os, signal, sys, time
sys.path.insert(0, {os.path.dirname(__file__)!r})
from pathlib import Path
from lockstitch.engine import EngineOptions, run, whole
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job would not have
from lockstitch.errors import one_line

class Waiting:
    def __call__(self):
        def work(portion):
            Path({str(tmp_path)!r}, f"pid{{os.getpid()}}").touch()
            time.sleep(60)
            yield []
        return work

if __name__ == "__main__":
    with one_line("caller", "interrupted; goes on"):
        list(run(whole("waiter", Waiting(), model=False), [1, 2], EngineOptions(workers=2), chunk=1, path=None, done=0,
                 progress=lambda count: None))
""")
    caller = subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, text=True, process_group=0)
    until = time.monotonic() + 60
    while len(pids := [int(path.name[3:]) for path in tmp_path.glob("pid*")]) < 2:
        assert time.monotonic() < until
        assert caller.poll() is None, caller.stderr.read()
        time.sleep(0.02)
    os.killpg(caller.pid, stop) if stop == signal.SIGINT else caller.send_signal(
        stop
    )  # Ctrl-C reaches the workers too
    shown = caller.communicate(timeout=30)[1]
    assert caller.returncode == (130 if stop == signal.SIGINT else -stop)
    assert shown == ("\ncaller: interrupted; goes on\n" if stop == signal.SIGINT else "")
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.02)


# --- the commands ----------------------------------------------------------------------------------------------------


def sample_arguments(folder):
    source = folder / "prompts.jsonl"
    source.write_text("".join(json.dumps({"prompt": puzzle}) + "\n" for puzzle in PUZZLES * 2))
    return sample, [
        "--model",
        "embedded:sudoku",
        "--canvas_length",
        "20",
        "--steps",
        "5",
        "--temperature",
        "0.8",
        "--device",
        "cpu",
        "--input",
        str(source),
        "--n",
        "2",
        "--chunk",
        "3",
    ]


def stitch_arguments(folder):
    return stitch, [
        "--task",
        "sudoku",
        "--generate",
        "8",
        "--num_trajectories",
        "2",
        "--steps",
        "5",
        "--chunk",
        "3",
        "--device",
        "cpu",
    ]


def grade_arguments(folder):
    source = folder / "completions.jsonl"
    rows = [{"question": f"1+{i}", "answer": f"#### {1 + i}", "completion": f"#### {i % 3 + 1}"} for i in range(8)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return grade, ["--task", "gsm8k", "--completions", str(source), "--chunk", "3"]


COMMANDS = [sample_arguments, stitch_arguments, grade_arguments]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", COMMANDS)
def test_two_workers_write_the_rows_of_one(tmp_path, arguments):
    command, given = arguments(tmp_path)
    assert command([*given, "--output", str(tmp_path / "one")]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert command([*given, "--output", str(tmp_path / "two"), "--workers", "2"]) == 0
    assert written(tmp_path / "two") == written(tmp_path / "one")
    assert len(written(tmp_path / "one")) == 8
    assert sorted(os.listdir(tmp_path / "two")) == sorted(os.listdir(tmp_path / "one"))
    summaries = [
        json.loads((tmp_path / run / files.SUMMARY).read_text())
        for run in ("one", "two")
        if (tmp_path / run / files.SUMMARY).exists()
    ]
    assert not summaries or timeless(summaries[0]) == timeless(summaries[1])


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--workers", "0"], "workers=0 must be a whole number of at least 1"),
        (["--engine", "dask"], "engine='dask' is not one of local, ray"),
        (["--pools", "sampler=2"], "pools='sampler=2' would be ignored without --engine ray"),
        (["--ray_address", "auto"], "ray_address='auto' would be ignored without --engine ray"),
    ],
)
@pytest.mark.parametrize("arguments", COMMANDS)
def test_options_that_make_no_sense_are_refused(tmp_path, capsys, arguments, more, message):
    command, given = arguments(tmp_path)
    assert command([*given, "--output", str(tmp_path / "out"), *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_card_for_all_workers_and_frames_of_several_are_refused(tmp_path, capsys):
    command, given = sample_arguments(tmp_path)
    assert command([*given, "--workers", "2", "--device", "cuda:1"]) == 2
    assert "device='cuda:1' is one card" in capsys.readouterr().err
    assert command(["--model", "embedded:sudoku", "--prompt", "1", "--workers", "2", "--watch"]) == 2
    assert "watch draws what this process denoises" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pools", "message"),
    [
        ("sampler", "'sampler' is not NAME=ACTORS"),
        ("sampler=0", "'sampler=0' is not NAME=ACTORS"),
        ("sampler=1,sampler=2", "says sampler twice"),
        ("sampler=2xhalf", "'sampler=2xhalf' is not"),
    ],
)
def test_pools_are_read_or_refused(pools, message):
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match=message):
        EngineOptions(engine="ray", pools=pools)
    said = EngineOptions(engine="ray", pools="sampler=4, solver=1x0.5", workers=2)
    assert said.pools_of(["sampler", "scorer", "solver"]) == {
        "sampler": Pool(4),
        "scorer": Pool(2),
        "solver": Pool(1, 0.5),
    }
    with pytest.raises(ValueError, match="no stage 'solver', but sampler"):
        said.pools_of(["sampler"])


@pytest.mark.parametrize(
    ("nodes", "actors", "whole", "cpus"),
    [
        ([2], 1, True, 2),
        ([2], 1, False, 1),
        ([2], 4, True, 0.5),
        ([16], 3, True, 5),
        ([3, 3], 3, True, 1),  # of two cores each, the third would fit nowhere
        ([2, 2], 5, False, 0.66),  # of 0.8 each, two machines would hold four
        ([1, 0], 1, True, 1),
    ],
)
def test_all_actors_fit_side_by_side(nodes, actors, whole, cpus):
    stages = [Stage("one", None), Stage("two", None, model=False)]
    pools = {"one": Pool(actors - 1), "two": Pool(1)}
    machines = [{"CPU": float(count)} for count in nodes]
    found, gpus = shares(stages, pools, machines, whole_machine=whole)
    assert found == cpus
    assert gpus == {"one": 0, "two": 0}
    assert sum(int(count / found + 1e-9) for count in nodes) >= actors


def test_gpus_are_given_to_stages_with_models_and_counted():
    stages = [Stage("sampler", None), Stage("scorer", None, model=False), Stage("solver", None)]
    machine = [{"CPU": 8.0, "GPU": 2.0}]
    pools = {"sampler": Pool(1), "scorer": Pool(1), "solver": Pool(2, 0.5)}
    assert shares(stages, pools, machine, whole_machine=False)[1] == {"sampler": 1, "scorer": 0, "solver": 0.5}
    with pytest.raises(
        ValueError, match=r"ask for 3 GPUs side by side and the cluster has 2; now they are sampler=2x1, "
    ):
        shares(stages, {**pools, "sampler": Pool(2)}, machine, whole_machine=False)
    with pytest.raises(ValueError, match="no cores"):
        shares(stages, pools, [{"GPU": 4.0}], whole_machine=False)
