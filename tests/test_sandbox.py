"""The sandbox itself: what is in it, how it starts, ends and refuses."""

import ctypes
import errno
import json
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from lockstitch.rewards.code_rewards import CodeReward, code_reward, examiner_of
from lockstitch.rewards.sandbox import bubblewrap, children, launchers, seccomp
from lockstitch.rewards.sandbox.bubblewrap import SandboxUnavailable
from lockstitch.rewards.sandbox.launchers import Bubblewrap, Limits, StartFailed, Stopped, Unsafe, input_file
from lockstitch.rewards.sandbox.sandbox_watch import processes_of


def told(launcher, source, *expressions, limits=None):
    """What a program answers to some expressions."""
    with launcher.start(limits or Limits()) as process:
        process.send({"kind": "functions", "variants": [source], "before": "", "after": ""})
        assert json.loads(process.receive(4096)) == {"done": True}
        answers = []
        for expression in expressions:
            process.send({"eval": expression})
            answers.append(json.loads(process.receive(2**20)))
        return answers


@pytest.mark.usefixtures("bubblewrap")
def test_what_there_is_inside():
    source = """
import glob, os, sys
def names(path):
    return sorted(os.listdir(path))
def environment():
    return sorted(set(os.environ) - {'LD_LIBRARY_PATH'})  # which some interpreters need
def writable():
    paths = {'/', os.__file__, *glob.glob('/*'), *glob.glob('/*/*'), *sys.path}
    return sorted(path for path in paths if os.access(path, os.W_OK))
"""
    answers = told(
        Bubblewrap(),
        source,
        "names('/dev')",
        "environment()",
        "writable()",
        "os.getpid() <= 3",
        "[p for p in sys.path if 'site-packages' in p or p in ('', '/tmp')]",
        "os.getuid() == 0",
        "names('/tmp')",
        "[os.path.exists(p) for p in ('/proc', '/etc', '/bin/sh', '/usr/bin', '/sys', '/var', '/run')]",
        "sys.stdin.read()",
    )
    assert [answer["value"] for answer in answers] == [
        ["fd", "null", "shm", "stdin"],
        ["HOME", "LC_CTYPE", "PWD", "PYTHONHASHSEED"],
        ["/dev/null", "/dev/shm", "/dev/stdin", "/tmp", "/tmp/solution.py"],
        True,
        ["/tmp"],
        False,
        ["solution.py"],
        [False] * 7,
        "",
    ]


@pytest.mark.usefixtures("bubblewrap")
def test_the_same_program_answers_the_same():
    """Also where it depends on the order of a set of texts."""
    source = "def f():\n    return list({chr(i) * 3 for i in range(65, 90)})"
    assert told(Bubblewrap(), source, "f()") == told(Bubblewrap(), source, "f()")


AS_A_SCRIPT = r"""
import concurrent.futures, inspect, mmap, multiprocessing, os, pathlib, shutil, sqlite3, sys, zoneinfo
from datetime import datetime

class Counter:
    '''Counts.'''

def square(n):
    # with a remark
    return n * n

def pool():
    with multiprocessing.Pool(2) as pool:
        return pool.map(square, range(5))

def executor():
    with concurrent.futures.ProcessPoolExecutor(2) as executor:
        return list(executor.map(square, range(5)))

def shared():
    total = multiprocessing.Value('i', 0)
    def add():
        with total.get_lock():
            total.value += 1
    workers = [multiprocessing.Process(target=add) for _ in range(2)]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    return total.value

def source():
    return [inspect.getsource(square), inspect.getsource(Counter)]

def itself():
    name = os.path.basename(__file__)
    return name == os.path.basename(sys.argv[0]), len(sys.argv), 'class Counter' in pathlib.Path(__file__).read_text()

def zone():
    return datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo('Europe/Paris')).utcoffset().total_seconds()

def files():
    pathlib.Path('a.txt').write_text('one')
    pathlib.Path('helper.py').write_text('value = 17')
    shutil.copy2('a.txt', 'b.txt')
    import helper
    base = sqlite3.connect('c.db')
    base.execute('create table t (n int)')
    base.execute('insert into t values (5)')
    base.commit()
    with open(os.devnull, 'w') as null:
        print('nothing', file=null)
    return pathlib.Path('b.txt').read_text(), helper.value, base.execute('select n from t').fetchone()

def ends():
    found = []
    for end in (exit, quit):
        try:
            end(3)
        except SystemExit as error:
            found.append(error.code)
    return found
"""


@pytest.mark.usefixtures("bubblewrap")
@pytest.mark.parametrize(
    ("call", "value"),
    [
        ("pool()", [0, 1, 4, 9, 16]),
        ("executor()", [0, 1, 4, 9, 16]),
        ("shared()", 2),
        (
            "source()",
            ["def square(n):\n    # with a remark\n    return n * n\n", "class Counter:\n    '''Counts.'''\n"],
        ),
        ("itself()", {"tuple": [True, 1, True]}),
        ("zone()", 7200.0),
        ("ends()", [3, 3]),
        ("files()", {"tuple": ["one", 17, {"tuple": [5]}]}),
    ],
)
def test_a_program_finds_what_a_script_finds(call, value):
    if call == "zone()" and not Path("/usr/share/zoneinfo").exists():
        pytest.skip("this machine has no zone data")
    assert told(Bubblewrap(), AS_A_SCRIPT, call) == [{"value": value}]


@pytest.mark.usefixtures("bubblewrap")
@pytest.mark.parametrize(
    "source",
    [
        "print(open('/dev/stdin').read(), end='')",
        "print(open(0).read(), end='')",
        "print(input())\nprint(input())",
        "import sys\nsys.stdin = open('/dev/stdin')\nprint(input(), input(), sep='\\n')\nexit()\nprint(3)",
        "import os\nprint(os.read(os.open('/dev/fd/0', 0), 99).decode(), end='')\nquit(0)",
        "from multiprocessing import Pool\ndef f(x): return x\n"
        "if __name__ == '__main__':\n    with Pool() as p: print(*p.map(f, [input(), input()]), sep='\\n')",
    ],
)
def test_a_script_reads_its_input_in_every_way(source):
    reward = CodeReward()
    assert reward([""], [source], inputs=[["one\ntwo\n"]], outputs=[["one\ntwo\n"]]) == [1.0]
    assert reward([""], [source], inputs=[["one\ntwo\n"]], outputs=[["one\ntwo\nthree\n"]]) == [0.0]


@pytest.mark.usefixtures("bubblewrap")
def test_an_end_is_the_end_of_all_its_processes():
    source = (
        "import os, time\nfor _ in range(5):\n    if os.fork() == 0:\n        os.setsid()\n        time.sleep(600)\n"
    )
    before = processes_of(os.getpid())
    with Bubblewrap().start(Limits()) as process:
        process.send({"kind": "functions", "variants": [source], "before": "", "after": ""})
        assert json.loads(process.receive(4096)) == {"done": True}
        assert len(processes_of(process.child.pid)) >= 7
        inside = set(processes_of(process.child.pid))
    assert processes_of(os.getpid()) == before
    assert not [pid for pid in inside if Path(f"/proc/{pid}").exists()]


@pytest.mark.usefixtures("bubblewrap")
def test_it_ends_with_whoever_started_it():
    code = (
        "import sys, time\nfrom lockstitch.rewards.sandbox.launchers import Bubblewrap, Limits\n"
        "with Bubblewrap().start(Limits()) as process:\n    print(process.first[0], flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        parent.kill()
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.05)
    raise AssertionError("the sandbox outlives the process that started it")


@pytest.mark.slow
@pytest.mark.usefixtures("bubblewrap")
@pytest.mark.parametrize("kind", ["functions", "program"])
def test_a_program_that_is_ended_by_what_is_outside_is_not_scored(kind):
    """But one that ends itself is, whatever it says about it."""
    columns = {"functions": {"tests": [["assert f(1) == 1"]]}, "program": {"inputs": [[""]], "outputs": [["1"]]}}[kind]
    source = "def f(x):\n    import time\n    time.sleep(2)\n    return 1\n" + (
        "print(f(1))" if kind == "program" else ""
    )
    reward, said = CodeReward(), []
    reward([""], ["x"], **columns)
    assert children._current is not None
    threading.Timer(0.7, os.kill, (children._current.process.pid, signal.SIGKILL)).start()
    assert reward([""], [source], **columns, log_extra=lambda name, texts: said.extend(texts)) == [None]
    assert said == ["[not scored: the sandbox did not start: the keeper of sandboxes was killed]"]
    assert reward([""], [source.replace("time.sleep(2)", "__import__('os').kill(0, 9)")], **columns) == [0.0]


@pytest.mark.usefixtures("bubblewrap")
def test_an_answer_in_time_counts_however_late_it_is_heard():
    with Bubblewrap().start(Limits(seconds=0.4)) as process:
        process.send({"kind": "functions", "variants": ["import time"], "before": "", "after": ""})
        assert json.loads(process.receive(4096)) == {"done": True}
        process.send({"eval": "1 + 1"})
        time.sleep(0.5)
        assert json.loads(process.receive(4096)) == {"value": 2}
        process.send({"eval": "time.sleep(0.2)"})
        with pytest.raises(Stopped, match="out of time"):
            process.receive(4096)


@pytest.mark.usefixtures("bubblewrap")
def test_memory_that_is_short_is_taken_from_programs():
    with Bubblewrap().start(Limits()) as process:
        inside = processes_of(process.first[0])
        assert len(inside) == 2
        assert {Path(f"/proc/{pid}/oom_score_adj").read_text() for pid in inside} == {"1000\n"}


@pytest.mark.usefixtures("bubblewrap")
def test_limits_hold_for_the_sum_and_the_one():
    with pytest.raises(Stopped, match="out of time"):
        told(Bubblewrap(), "", "1 + [i for i in iter(int, 1)]", limits=Limits(seconds=0.3))
    (answer,) = told(Bubblewrap(), "", "len(bytearray(200 * 2**20))", limits=Limits(memory_mb=128))
    assert answer["raised"][0] == "MemoryError"
    source = "def f(n):\n    with open('/tmp/x', 'wb') as file:\n        return file.write(bytes(n))"
    small, large = told(Bubblewrap(), source, "f(2**20)", "f(5 * 2**20)", limits=Limits(disk_mb=2))
    assert (small["value"], large["raised"][0]) == (2**20, "OSError")


@pytest.mark.parametrize("launcher", [Bubblewrap, Unsafe])
@pytest.mark.usefixtures("bubblewrap")
def test_a_script_reads_and_prints(launcher):
    text = "x" * 200_000 + "\n" + "\u00e4\U0001f600"
    descriptor = input_file(text)
    with launcher().start(Limits(), descriptor) as process:
        source = "import sys\nprint(__name__, sys.stdin.read()[::-1], end='')\nraise SystemExit(3)"
        process.send({"kind": "program", "variants": [source]})
        assert process.output(2**20) == (f"__main__ {text[::-1]}".encode(), 3)
    os.close(descriptor)
    with pytest.raises(ValueError, match="seconds=0"):
        Limits(seconds=0)


def test_unsafe_leaves_no_folder_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (answer,) = told(Unsafe(), "open('left', 'w').close()\nimport os", "sorted(os.listdir('.'))")
    assert answer == {"value": ["left", "solution.py"]}
    assert list(tmp_path.iterdir()) == []


# --- refusals --------------------------------------------------------------------------------------------------------


def refused(monkeypatch, **columns):
    examiner_of.cache_clear()
    monkeypatch.delenv("LOCKSTITCH_SANDBOX", raising=False)
    try:
        with pytest.raises(SandboxUnavailable) as caught:
            code_reward([""], ["def f(x):\n    return x"], tests=[["assert f(1) == 1"]], **columns)
    finally:
        examiner_of.cache_clear()
    return str(caught.value)


def test_without_bubblewrap_nothing_runs(monkeypatch, tmp_path):
    marker = tmp_path / "ran"
    monkeypatch.setenv("PATH", str(tmp_path))
    said = refused(monkeypatch)
    assert "bwrap is not on the PATH" in said
    for cure in ("apt-get install bubblewrap", "LOCKSTITCH_SANDBOX=http://", "LOCKSTITCH_SANDBOX=unsafe"):
        assert cure in said
    with pytest.raises(SandboxUnavailable):
        CodeReward()([""], [f"open({str(marker)!r}, 'w')"], tests=[["assert f(1) == 1"]])
    assert not marker.exists()
    # It says so only where there is something to run, and an explicit choice is respected.
    assert code_reward([""], ["x"], answer=["5"]) == [None]
    monkeypatch.setenv("LOCKSTITCH_SANDBOX", "unsafe")
    assert code_reward([""], ["def f(x):\n    return x"], tests=[["assert f(1) == 1"]]) == [1.0]


def test_where_namespaces_are_forbidden_it_says_so(monkeypatch, tmp_path):
    """Such as in many containers: bubblewrap is there, and cannot work."""
    for name in ("setpriv", "unshare", "mount", "sh"):
        (tmp_path / name).symlink_to(shutil.which(name))
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    for path in (fake, tmp_path, *list(tmp_path.parents)[:2]):
        path.chmod(path.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
    monkeypatch.setenv("PATH", str(tmp_path))
    said = refused(monkeypatch)
    assert "bubblewrap does not start here" in said
    assert "LOCKSTITCH_SANDBOX=unsafe" in said


@pytest.mark.parametrize("launcher", [Bubblewrap, Unsafe])
def test_other_systems_are_refused_and_told_what_works_there(launcher, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxUnavailable) as caught:
        launcher()
    said = str(caught.value)
    assert "\n" not in said
    assert "need Linux" in said
    assert "SandboxFusion server: LOCKSTITCH_SANDBOX=http://HOST:PORT" in said
    assert "LOCKSTITCH_SANDBOX=unsafe" not in said


def blind(path, statvfs=os.statvfs):
    """`os.statvfs` of a root user without CAP_SYS_PTRACE."""
    if str(path).startswith("/proc/"):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    return statvfs(path)


@pytest.mark.usefixtures("bubblewrap")
def test_no_program_runs_where_its_files_cannot_be_counted(monkeypatch):
    monkeypatch.setattr(os, "statvfs", blind)
    said = refused(monkeypatch)
    assert "cannot be watched here (Permission denied: /proc/" in said
    assert "CAP_SYS_PTRACE" in said
    assert "\n" not in said


@pytest.mark.usefixtures("bubblewrap")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root depends on the capability")
def test_root_without_the_capability_is_refused():
    code = "from lockstitch.rewards.sandbox.launchers import Bubblewrap; Bubblewrap()"
    command = ["setpriv", "--bounding-set", "-sys_ptrace", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "SandboxUnavailable" in done.stderr
    assert "CAP_SYS_PTRACE" in done.stderr


@pytest.mark.usefixtures("bubblewrap")
@pytest.mark.parametrize("kind", ["functions", "program"])
def test_a_program_that_cannot_be_watched_any_more_is_not_scored(kind, monkeypatch, caplog):
    columns = {"functions": {"tests": [["assert f(1) == 1"]]}, "program": {"inputs": [[""]], "outputs": [["1"]]}}[kind]
    source = "def f(x):\n    import time\n    time.sleep(0.5)\n    return 1\nprint(f(1))"
    assert code_reward([""], [source], **columns) == [1.0]
    monkeypatch.setattr(os, "statvfs", blind)
    assert code_reward([""], [source], **columns) == [None]
    assert "it cannot be watched any more" in caplog.text


@pytest.mark.usefixtures("bubblewrap")
def test_a_sandbox_that_fails_later_leaves_programs_unscored(monkeypatch, caplog):
    examiner_of("bwrap")
    real = bubblewrap.command
    monkeypatch.setattr(bubblewrap, "command", lambda *a: [*real(*a)[:-20], "/absent"])
    metrics = {}
    values = code_reward([""], ["x"], tests=[["assert f(1) == 1"]], log_metric=metrics.__setitem__)
    assert values == [None]
    assert metrics == {"rewards/code_reward/none": 1.0}
    assert "did not start" in caplog.text


@pytest.mark.parametrize(("backend", "said"), [("docker", "neither"), ("ftp://x", "neither"), ("", "neither")])
def test_an_unknown_backend_is_refused(backend, said):
    with pytest.raises(ValueError, match=said):
        CodeReward(backend=backend)
    with pytest.raises(ValueError, match="0 workers"):
        CodeReward(workers=0)


def test_a_launch_that_fails_is_a_failed_start(monkeypatch):
    monkeypatch.setattr(launchers, "interpreter", lambda: "/absent")
    with pytest.raises(StartFailed, match="absent"), Unsafe().start(Limits()):
        pass
    monkeypatch.setattr(launchers, "interpreter", lambda: shutil.which("true"))
    with pytest.raises(StartFailed, match="ended"), Unsafe().start(Limits()):
        pass


# --- the filter ------------------------------------------------------------------------------------------------------


def run_filter(machine, number, *arguments, architecture=None):
    """A small interpreter of classic BPF: what the filter returns for a call."""
    program = seccomp.program(machine)
    words = {0: number, 4: architecture or {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]}
    words |= {16 + 8 * i: argument for i, argument in enumerate(arguments)}
    accumulator, at = 0, 0
    while True:
        code = int.from_bytes(program[8 * at : 8 * at + 2], "little")
        yes, no = program[8 * at + 2], program[8 * at + 3]
        operand = int.from_bytes(program[8 * at + 4 : 8 * at + 8], "little")
        at += 1
        if code == 0x20:
            accumulator = words[operand]
        elif code == 0x54:
            accumulator &= operand
        elif code == 0x06:
            return operand
        else:
            jumps = {0x15: accumulator == operand, 0x35: accumulator >= operand, 0x45: bool(accumulator & operand)}
            at += yes if jumps[code] else no


ALLOWED, IGNORED, REFUSED, UNKNOWN, NO_FAMILY, KILLED = 0x7FFF0000, 0x50000, 0x50001, 0x50026, 0x50061, 0x80000000


@pytest.mark.parametrize(
    ("machine", "read", "mount", "clone", "clone3", "socket"),
    [("x86_64", 0, 165, 56, 435, 41), ("aarch64", 63, 40, 220, 435, 198)],
)
def test_the_filter(machine, read, mount, clone, clone3, socket):
    assert run_filter(machine, read) == ALLOWED
    assert run_filter(machine, mount) == REFUSED
    assert run_filter(machine, clone, 17) == ALLOWED
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert run_filter(machine, clone, flag | 17) == REFUSED
    assert run_filter(machine, clone3) == UNKNOWN
    assert [run_filter(machine, socket, family) for family in (1, 2, 10)] == [ALLOWED] * 3
    assert {run_filter(machine, socket, family) for family in (0, 3, 16, 17, 38, 40)} == {NO_FAMILY}
    assert run_filter(machine, read, architecture=0x40000003) == KILLED
    mmap, fcntl, setsockopt, utimensat = {"x86_64": (9, 72, 54, 280), "aarch64": (222, 25, 208, 88)}[machine]
    # Private memory and shared files are mapped; shared memory of no file is not, nor are huge pages.
    assert [run_filter(machine, mmap, 0, 1, 3, flags) for flags in (0x22, 0x1, 0x3, 0x20022)] == [ALLOWED] * 4
    assert [run_filter(machine, mmap, 0, 1, 3, flags) for flags in (0x21, 0x23, 0x8021, 0x40022)] == [REFUSED] * 4
    assert [run_filter(machine, fcntl, 3, command) for command in (0, 1, 4, 6, 7, 1030, 1032)] == [ALLOWED] * 7
    assert [run_filter(machine, fcntl, 3, command) for command in (37, 38, 1024, 1031)] == [REFUSED] * 4
    assert [run_filter(machine, setsockopt, 3, *option) for option in ((1, 2), (6, 7), (41, 8))] == [ALLOWED] * 3
    assert [run_filter(machine, setsockopt, 3, 1, option) for option in (7, 8, 32, 33, 60)] == [REFUSED] * 5
    assert run_filter(machine, utimensat) == IGNORED
    if machine == "x86_64":
        assert run_filter(machine, 0x40000000 + read) == UNKNOWN
    assert not seccomp.is_known("riscv64")


@pytest.mark.usefixtures("bubblewrap")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86-64")
def test_the_kernel_applies_it():
    """Every refused call is refused inside, and not for the reason that its arguments are wrong."""
    numbers = {name: pair[0] for name, pair in seccomp._REFUSED.items()}
    source = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def allowed():
    found = []
    for name, number in {numbers!r}.items():
        if not (libc.syscall(number, 0, 0, 0, 0, 0, 0) == -1 and ctypes.get_errno() == 1):
            found.append(name)
    return found
"""
    assert ctypes.sizeof(ctypes.c_void_p) == 8
    assert told(Bubblewrap(), source, "allowed()") == [{"value": []}]


NAMESPACE = """
import ctypes, fcntl, os, socket, struct
from lockstitch.rewards.sandbox import sandbox_watch as watch

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
assert ctypes.CDLL(None).unshare(CLONE_NEWNET | (CLONE_NEWUSER if os.getuid() else 0)) == 0
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asks:  # the loopback interface goes up and runs
    fcntl.ioctl(asks, 0x8914, struct.pack("16sh14s", b"lo", 0x41, b""))

def check(sockets, queued):
    every = watch._sockets_in_use
    found = watch.sockets_of(os.getpid())
    watch._sockets_in_use = lambda path: {}  # then every list is read
    assert found == watch.sockets_of(os.getpid()) == (sockets, queued), (found, sockets, queued)
    watch._sockets_in_use = every

check(0, 0)
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("127.0.0.1", 0))
check(1, 0)
datagrams.connect(datagrams.getsockname())
datagrams.send(b"x")
assert watch.sockets_of(os.getpid())[1] > 0
datagrams.close()
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen(8)
check(1, 0)
callers = [socket.create_connection(listener.getsockname()) for _ in range(3)]
check(7, 3)  # whom nobody has accepted: they are queued, and belong to no process
for caller in callers:
    caller.send(b"x" * 1000)
check(7, 3003)
pair = socket.socketpair()
check(9, 3003)
"""


@pytest.mark.usefixtures("bubblewrap")
def test_sockets_are_counted_where_they_are_and_lists_without_any_are_not_read():
    done = subprocess.run([sys.executable, "-c", NAMESPACE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
