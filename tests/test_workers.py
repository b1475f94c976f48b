"""The pool of killable workers: right answers in order, whatever one of the items does."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from lockstitch.rewards.workers import Failed, KillablePool, TimedOut
from worker_functions import behave, pid, square

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def pool():
    with KillablePool(2, memory_bytes=2**31) as pool:
        yield pool


def alive(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    # Where nobody reaps orphans, a zombie is as dead as it gets.
    return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until_dead(numbers, seconds):
    end = time.monotonic() + seconds
    while any(map(alive, numbers)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(alive, numbers))


def test_results_are_those_of_a_plain_map_in_order(pool):
    items = list(range(500))
    assert pool.map(square, items, 5.0) == [square(x) for x in items]
    assert pool.map(behave, ["a", "ü\udc80\0", None, [1, {"k": 2.5}]], 5.0) == [
        "a",
        "ü\udc80\0",
        None,
        [1, {"k": 2.5}],
    ]
    assert pool.map(square, [], 5.0) == []


def test_work_is_shared_and_workers_are_kept(pool):
    first = set(pool.map(pid, range(40), 5.0))
    assert len(first) == 2
    assert os.getpid() not in first
    assert set(pool.map(pid, range(40), 5.0)) == first


@pytest.mark.parametrize("hang", ["spin", pytest.param("deaf", marks=pytest.mark.slow)])
def test_a_hung_item_costs_its_own_timeout_and_nobody_elses(pool, hang):
    workers = set(pool.map(pid, range(40), 5.0))
    pool.map(behave, ["warm"] * 8, 5.0)
    items = [f"item {i}" for i in range(200)]
    items[3] = hang
    began = time.monotonic()
    results = pool.map(behave, items, 1.0)
    seconds = time.monotonic() - began
    assert results[3] == TimedOut(1.0)
    assert [r for i, r in enumerate(results) if i != 3] == [x for i, x in enumerate(items) if i != 3]
    assert 1.0 <= seconds < 2.5
    assert sum(map(alive, workers)) == len(workers) - 1
    assert pool.map(behave, items[:3], 5.0) == items[:3]


def test_two_hung_items_wait_side_by_side(pool):
    pool.map(behave, ["warm"] * 8, 5.0)
    began = time.monotonic()
    assert pool.map(behave, ["deaf", "deaf"], 1.0) == [TimedOut(1.0)] * 2
    assert time.monotonic() - began < 1.9


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("raise", "KeyError: 'no such thing'"),
        ("exit", "exit status 3"),
        ("leave", "exit status 4"),
        ("crash", f"signal {int(signal.SIGSEGV)}"),
        ("bloat", "MemoryError"),
        ("unspeakable", "not JSON serializable"),
    ],
)
def test_a_failing_item_says_why_and_the_others_are_answered(pool, what, reason):
    items = [what if i == 5 else i for i in range(30)]
    results = pool.map(behave, items, 20.0)
    failed = results.pop(5)
    assert isinstance(failed, Failed)
    assert reason in failed.reason
    assert results == [i for i in range(30) if i != 5]


def test_what_items_print_is_no_answer(pool):
    assert pool.map(behave, ["chatter"] * 10, 5.0) == ["chatter"] * 10


@pytest.mark.slow
def test_messages_larger_than_a_pipe_do_not_block(pool):
    items = ["x" * 3_000_000, "spin", *["y" * 400_000] * 12]
    results = pool.map(behave, items, 2.0)
    assert results[1] == TimedOut(2.0)
    assert results[:1] + results[2:] == items[:1] + items[2:]


def test_workers_that_died_idle_are_replaced_and_no_item_is_blamed(pool):
    for victim in set(pool.map(pid, range(40), 5.0)):
        os.kill(victim, signal.SIGKILL)
    time.sleep(0.1)
    assert pool.map(square, range(50), 5.0) == [x * x for x in range(50)]


def test_interrupts_do_not_reach_the_workers(pool):
    before = set(pool.map(pid, range(40), 5.0))
    for worker in before:
        assert os.getpgid(worker) != os.getpgid(0)  # where the terminal sends Ctrl-C
        os.kill(worker, signal.SIGINT)
    time.sleep(0.1)
    assert set(pool.map(pid, range(40), 5.0)) == before


def test_an_interrupted_call_leaves_no_answers_to_the_next():
    with KillablePool(2) as pool:
        pool.map(behave, [1] * 8, 5.0)
        old = signal.signal(signal.SIGALRM, lambda number, frame: (_ for _ in ()).throw(KeyboardInterrupt))
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                pool.map(behave, ["slow", "slow"], 30.0)
        finally:
            signal.signal(signal.SIGALRM, old)
        assert pool.map(behave, list(range(20)), 5.0) == list(range(20))


def test_any_thread_may_call(pool):
    results = {}
    threads = [
        threading.Thread(target=lambda k=k: results.update({k: pool.map(square, range(k, k + 30), 5.0)}))
        for k in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {k: [x * x for x in range(k, k + 30)] for k in range(6)}


def _in_a_fork(pool, queue):
    queue.put((pool.map(square, range(5), 5.0), pool.map(pid, range(20), 5.0)))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_workers_of_its_own(pool):
    ours = set(pool.map(pid, range(40), 5.0))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_a_fork, args=(pool, queue))
    child.start()
    squares, theirs = queue.get(timeout=60)
    child.join(10)
    assert child.exitcode == 0
    assert squares == [0, 1, 4, 9, 16]
    assert not ours & set(theirs)
    assert set(pool.map(pid, range(40), 5.0)) == ours


def test_idle_workers_cost_no_time(pool):
    def ticks(number):
        return sum(map(int, Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[11:13]))

    workers = set(pool.map(pid, range(40), 5.0))
    time.sleep(0.1)
    before = {worker: ticks(worker) for worker in workers}
    time.sleep(0.5)
    assert {worker: ticks(worker) for worker in workers} == before


def test_closing_ends_the_workers_and_forgetting_the_pool_does_too():
    pool = KillablePool(2)
    first = set(pool.map(pid, range(10), 5.0))
    pool.close()
    assert not any(map(alive, first))
    second = set(pool.map(pid, range(10), 5.0))
    del pool
    gc.collect()
    assert not any(map(alive, second))


OUTLIVED = "import os, time; (os.close(1), os.close(2), time.sleep(4)) if os.fork() == 0 else os.kill(os.getpid(), 9)"
KILLED_AT_WORK = (
    "import os, threading; threading.Timer(0.5, os.kill, (os.getpid(), 9)).start(); "
    "pool.map(behave, ['deaf'] * 2, 30.0)"
)


@pytest.mark.parametrize(
    ("end", "seconds"),
    [
        ("", 5),
        (OUTLIVED, 3),
        pytest.param("raise SystemExit(1)", 5, marks=pytest.mark.slow),
        (KILLED_AT_WORK, 3),
    ],
    ids=["returns", "killed, outlived by a fork", "exits", "killed while items hang"],
)
def test_workers_end_with_their_caller(tmp_path, end, seconds):
    # No guard around the script's body: workers do not import it.
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent("""
            import sys
            sys.path.insert(0, {tests!r})
            from lockstitch.rewards.workers import KillablePool
            from worker_functions import behave, pid
            pool = KillablePool(2)
            print(*set(pool.map(pid, range(20), 5.0)), flush=True)
            {end}
        """).format(tests=str(TESTS), end=end)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr == ""
    workers = list(map(int, done.stdout.split()))
    assert len(workers) == 2
    assert wait_until_dead(workers, seconds)


def test_a_function_that_cannot_be_loaded_fails_its_items(tmp_path, monkeypatch, capfd):
    (tmp_path / "broken_here.py").write_text("import os\nassert 'HEALTHY' in os.environ\ndef f(x): return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HEALTHY", "1")
    from broken_here import f

    monkeypatch.delenv("HEALTHY")
    with KillablePool(2) as pool:
        results = pool.map(f, [1, 2, 3], 5.0)
    assert all(isinstance(result, Failed) and "do not start: exit status 1" in result.reason for result in results)
    assert "AssertionError" in capfd.readouterr().err  # the workers say why


def test_a_start_that_hangs_is_given_up(tmp_path, monkeypatch):
    (tmp_path / "slow_there.py").write_text(
        "import os, time\nif 'QUICK' not in os.environ: time.sleep(60)\ndef f(x): return x\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("QUICK", "1")
    from slow_there import f

    monkeypatch.delenv("QUICK")
    with KillablePool(1, startup_seconds=0.3) as pool:
        (result,) = pool.map(f, [1], 5.0)
    assert isinstance(result, Failed)


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_a_timeout_must_be_positive(pool, timeout):
    with pytest.raises(ValueError, match="must be positive"):
        pool.map(square, [1], timeout)


def test_a_pool_of_none_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        KillablePool(0)
