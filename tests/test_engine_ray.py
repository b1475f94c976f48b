"""A Ray cluster makes the rows that one process makes: with actors that die, callers that die, and on two machines."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from lockstitch.sampling.work import Drawing
from test_engine import COMMANDS, done, sample_arguments, written

from lockstitch import files

pytestmark = pytest.mark.slow
# A token for the clusters of this test, which the processes that it starts (they import this file, too) must not replace.
for _name, _value in {"USAGE_STATS_ENABLED": "0", "AUTH_MODE": "token", "AUTH_TOKEN": secrets.token_hex(32)}.items():
    os.environ.setdefault(f"RAY_{_name}", _value)
ray = pytest.importorskip("ray")
TESTS = Path(__file__).parent
STORE = 200_000_000


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster of two cores, which this process is in."""
    ray.init("local", num_cpus=2, object_store_memory=STORE, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.mark.parametrize("actors", [1, 2])
@pytest.mark.parametrize("arguments", COMMANDS)
def test_a_cluster_writes_the_rows_of_one_process(cluster, tmp_path, arguments, actors):
    command, given = arguments(tmp_path)
    assert command([*given, "--output", str(tmp_path / "local")]) == 0
    assert command([*given, "--output", str(tmp_path / "ray"), "--engine", "ray", "--workers", str(actors)]) == 0
    assert written(tmp_path / "ray") == written(tmp_path / "local")
    assert len(written(tmp_path / "ray")) == 8


def test_actors_that_are_killed_lose_nothing(cluster, tmp_path):
    items = [1, 2, "once", 4, 5, "once", 7, 8]
    rows = done(items, tmp_path, engine="ray", workers=2)
    assert [row["twice"] for row in rows] == [item * 2 for item in items]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "5", files.RESULTS]  # both were killed


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        ("refused", ValueError, r"^row 3: no number$"),
        ("fault", RuntimeError, "rows 2 to 3, doubler(.|\n)*KeyError"),
        ("deadly", OSError, r"^rows 2 to 3: the actor of the doubler died with these rows, 3 times$"),
    ],
)
def test_what_goes_wrong_in_an_actor_is_said(cluster, tmp_path, bad, kind, message):
    with pytest.raises(kind, match=message):
        done([0, 1, 2, bad, 4, 5], tmp_path, engine="ray")
    kept = [row["index"] for row in files.finished_by_index(tmp_path / files.RESULTS)]
    assert kept == [0, 1, 2][: len(kept)]
    assert len(done([0, 1, 2, 3, 4, 5], tmp_path)) == 6 - len(kept)  # and alone it goes on from there


@pytest.mark.parametrize("command", ["sample", "stitch"])
def test_a_caller_that_is_killed_goes_on_with_the_same_command(cluster, command):
    script = TESTS.parent / "scripts" / "kill_ray.py"
    asked = ["--command", command, "--workers", "2", "--times", "2", "--ray_address", cluster]
    ran = subprocess.run([sys.executable, script, *asked], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "2 kills: all 60 rows as by one process" in ran.stdout


# --- two machines ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OnNode:
    """Work for a test: what `Drawing` draws, and the address of the machine that drew it. It begins when two are there."""

    drawing: Drawing
    folder: str

    def __call__(self):
        drawer = self.drawing()
        Path(self.folder, f"at-{ray.util.get_node_ip_address()}").touch()
        until = time.monotonic() + 120
        while len(list(Path(self.folder).glob("at-*"))) < 2:
            assert time.monotonic() < until, "the other machine was given nothing"
            time.sleep(0.1)

        def work(portion):
            for rows in drawer(portion):
                yield [{**row, "node": ray.util.get_node_ip_address()} for row in rows]

        return work


@pytest.fixture
def two_machines(tmp_path):
    """The address of a cluster on two machines of one core: network namespaces with a cable between them."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root, and the command `ip` (Debian's iproute2)")
    names = [f"lockstitch-{os.getpid()}-{side}" for side in "ab"]
    cables = [f"ls{os.getpid() % 10**6}{side}" for side in "ab"]

    def ip(*words):
        return subprocess.run(["ip", *words], capture_output=True, text=True, check=True)

    nodes = []
    folder = tempfile.mkdtemp(prefix="ray")  # sockets have short paths
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip(
                "link",
                "add",
                cables[0],
                "netns",
                names[0],
                "type",
                "veth",
                "peer",
                "name",
                cables[1],
                "netns",
                names[1],
            )
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        for i, (name, cable) in enumerate(zip(names, cables, strict=True), start=1):
            ip("-n", name, "addr", "add", f"10.213.7.{i}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "route", "add", "default", "dev", cable)  # by which Ray finds a machine's own address
        for i, name in enumerate(names, start=1):
            where = ["--head", "--port=6379", f"--temp-dir={folder}"] if i == 1 else ["--address=10.213.7.1:6379"]
            command = ["ip", "netns", "exec", name, sys.executable, "-m", "ray.scripts.scripts", "start", *where, "--block",
                       f"--node-ip-address=10.213.7.{i}", "--num-cpus=1", f"--object-store-memory={STORE // 2}"]  # fmt: skip
            log = (tmp_path / f"node{i}.log").open("w+")
            nodes.append(subprocess.Popen(command, stdout=log, stderr=log, process_group=0))
            until = time.monotonic() + 120
            while "Ray runtime started" not in Path(log.name).read_text():
                assert nodes[-1].poll() is None, Path(log.name).read_text()
                assert time.monotonic() < until
                time.sleep(0.1)
        yield names[0], "10.213.7.1:6379"
    finally:
        for node in reversed(nodes):
            node.terminate()
            try:
                node.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(node.pid, signal.SIGKILL)
        for name in names:
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
            for pid in map(int, pids.split()):
                os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def test_two_machines_share_the_work(two_machines, tmp_path):
    name, address = two_machines
    command, given = sample_arguments(tmp_path)
    assert command([*given, "--output", str(tmp_path / "local")]) == 0
    pools = ["--engine", "ray", "--pools", "sampler=2", "--ray_address", address]
    program = [sys.executable, "-m", "lockstitch", "sample", *given, "--output", str(tmp_path / "ray"), *pools]
    ran = subprocess.run(["ip", "netns", "exec", name, *program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert written(tmp_path / "ray") == written(tmp_path / "local")
    script = tmp_path / "caller.py"
    script.write_text(f"""
import json, sys
sys.path.insert(0, {str(TESTS)!r})
from lockstitch import embedded_model
from lockstitch.engine import EngineOptions, run, whole
from lockstitch.sampling.prompts import Reader
from lockstitch.sampling.loading import load_tokenizer
from lockstitch.sampling.work import Drawing
from pathlib import Path
from test_engine_ray import OnNode

model = str(embedded_model("sudoku"))
reader = Reader(load_tokenizer(model), dict(canvas_length=20, steps=5, temperature=0.8))
requests = reader.read(Path({str(tmp_path / "prompts.jsonl")!r}))
drawing = Drawing(model, "llada", None, None, False, "cpu", compile=False, n=2, seed=0)
options = EngineOptions(engine="ray", workers=2, ray_address={address!r})
job = whole("sampler", OnNode(drawing, {str(tmp_path)!r}))
for rows in run(job, requests, options, chunk=1, path=None, done=0, progress=print):
    for row in rows:
        print(json.dumps(row))
""")
    ran = subprocess.run(
        ["ip", "netns", "exec", name, sys.executable, script], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    rows = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    assert {row.pop("node") for row in rows} == {"10.213.7.1", "10.213.7.2"}
    ids = [[trajectory["canvas_ids"] for trajectory in row["trajectories"]] for row in rows]
    assert ids == [
        [trajectory["canvas_ids"] for trajectory in row["trajectories"]] for row in written(tmp_path / "local")
    ]
