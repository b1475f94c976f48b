"""The attack table: none of the programs in `attacks` is paid, harms the machine, or disturbs the scores of others."""

import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest
from attack_shapes import ANSWERS, GOOD, GOOD_PROGRAM, INPUTS, MARK, OUTPUTS, TESTS, Attack, aim
from attacks import ATTACKS
from lockstitch.rewards.code_rewards import CodeReward
from lockstitch.rewards.sandbox import children
from lockstitch.rewards.sandbox.sandbox_watch import processes_of

pytestmark = pytest.mark.usefixtures("bubblewrap")

TIMEOUT = 1.0


class Machine:
    """A file with the answers, a server and a process, all of which must be out of reach; and what was left behind."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "answers.json"
        self.text = json.dumps({key: str(value) for key, value in ANSWERS.items()})
        self.file.write_text(self.text)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.setblocking(False)
        self.null = os.stat("/dev/null")
        CodeReward()([""], [GOOD], tests=[TESTS])  # what serves all sandboxes is there from now on
        self.before = set(processes_of(os.getpid()))

    def aim(self, attack: Attack) -> str:
        """The attack, told where to strike."""
        return aim(attack, self.file, self.server.getsockname()[1])

    def left_files(self) -> list[Path]:
        places = [Path(place) for place in ("/", "/tmp", "/var/tmp", "/dev/shm", "/dev", "/root", "/home", "/usr/lib")]
        places += [Path.cwd(), Path.home(), Path(os.__file__).parent]
        return [file for place in places if place.is_dir() for file in place.iterdir() if MARK in file.name]

    def left_processes(self) -> set[int]:
        return set(processes_of(os.getpid())) - self.before


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("host")
    for place in (folder, *folder.parents):  # readable to all: it is the sandbox that hides it
        if place.owner() != "root" or place.name.startswith("pytest"):
            place.chmod(0o755)
    machine = Machine(folder)
    yield machine
    machine.server.close()


@pytest.fixture(scope="module")
def results(machine):
    """Every attack between two honest programs, all in two batches: those with calls, and those that read and write."""
    reward, results = CodeReward(timeout=TIMEOUT, workers=4), {}
    calls = {"tests": (TESTS, TESTS[:1])}  # for the attack, and for the honest program
    dialogues = {"inputs": (INPUTS, INPUTS), "outputs": (OUTPUTS, OUTPUTS)}
    for reads_and_writes, honest, columns in ((False, GOOD, calls), (True, GOOD_PROGRAM, dialogues)):
        attacks = [attack for attack in ATTACKS if attack.reads_and_writes == reads_and_writes]
        batch = [honest]
        for attack in attacks:
            batch += [machine.aim(attack), honest]
        rows = {
            name: [for_honest, *[for_attack, for_honest] * len(attacks)]
            for name, (for_attack, for_honest) in columns.items()
        }
        said = []
        began = time.monotonic()
        values = reward([""] * len(batch), batch, **rows, log_extra=lambda name, texts, said=said: said.extend(texts))
        took = time.monotonic() - began
        for i, attack in enumerate(attacks):
            results[attack.name] = (values[2 * i : 2 * i + 3], said[2 * i + 1])
        assert took < TIMEOUT * len(attacks)
    return results


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name.replace(" ", "-"))
def test_an_attack_is_not_paid_and_its_neighbours_are(attack, results):
    (before, value, after), reason = results[attack.name]
    assert value == 0.0, reason
    assert reason.isprintable()
    assert (before, after) == (1.0, 1.0)


def test_nothing_is_left_and_nobody_was_called(machine, results):
    assert len(results) == len(ATTACKS)
    assert not machine.left_processes()
    assert not machine.left_files()
    assert MARK not in Path("/proc/net/unix").read_text()
    assert os.stat("/dev/null") == machine.null
    assert machine.file.read_text() == machine.text
    with pytest.raises(BlockingIOError):
        machine.server.accept()


def test_the_attacks_that_report_an_escape_would_tell(machine):
    """Without a sandbox, some of them do escape; so their silence in one means something."""
    names = ["reads the answers from a file", "reads /etc", "calls a server of this machine", "runs a shell"]
    attacks = [machine.aim(attack) for attack in ATTACKS if attack.name in names]
    assert len(attacks) == len(names)
    reward = CodeReward(backend="unsafe", timeout=20.0)
    values = reward([""] * len(names), attacks, tests=[["assert f(2) == 7919"]] * len(names))
    assert values == [1.0] * len(names)
    machine.server.accept()[0].close()


@pytest.mark.parametrize(
    "name",
    [
        "spinning children, each in a session of its own",
        pytest.param("spinning children that nobody waits for", marks=pytest.mark.slow),
    ],
)
def test_a_program_is_not_late_because_of_its_neighbours(name):
    """One that needs most of its time for itself, on one processor with two that spin with as many processes as they may."""
    (greedy,) = (attack.source for attack in ATTACKS if attack.name == name)
    honest = """
import time

def f(x):
    end = time.process_time() + 0.7
    while time.process_time() < end:
        pass
    return x
"""
    reward = CodeReward(timeout=1.0, workers=3)
    assert reward([""], [GOOD], tests=[TESTS]) == [1.0]
    assert children._current is not None
    keeper, allowed = children._current.process.pid, os.sched_getaffinity(0)
    os.sched_setaffinity(keeper, {min(allowed)})  # and so for all that it starts from now on
    try:
        programs = [greedy, greedy, honest, honest]
        values = reward([""] * 4, programs, tests=[["assert f(7) == 7"]] * 4)
    finally:
        os.sched_setaffinity(keeper, allowed)
    assert values == [0.0, 0.0, 1.0, 1.0]


def test_programs_run_side_by_side_do_not_see_each_other():
    """A program that waits in /tmp for a file of its neighbour, while that one writes it."""
    writes = "import time\nopen('/tmp/shared', 'w').write('x')\n\ndef f(x):\n    time.sleep(0.5)\n    return x\n"
    waits = "import os, time\n\ndef f(x):\n    time.sleep(0.5)\n    return x if os.path.exists('/tmp/shared') else 0\n"
    values = CodeReward(workers=2)([""] * 2, [writes, waits], tests=[["assert f(7) == 7"]] * 2)
    assert values == [1.0, 0.0]


def test_scoring_from_many_threads_at_once():
    values, reward = [], CodeReward(workers=2)

    def score():
        values.extend(reward([""] * 2, [GOOD, "x"], tests=[TESTS] * 2))

    threads = [threading.Thread(target=score) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert values == [1.0, 0.0] * 4
