"""The SandboxFusion backend, against a small server that keeps the contract of `POST /run_code`."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from lockstitch.rewards.code_rewards import CodeReward, code_reward
from lockstitch.rewards.programs import sandbox_fusion
from lockstitch.rewards.programs.code_tests import Dialogue, Tests, parse_tests
from lockstitch.rewards.programs.judge import Exam
from lockstitch.rewards.programs.sandbox_fusion import FusionExaminer
from lockstitch.rewards.sandbox.launchers import Limits

DOUBLE = "def double(x):\n    print('{\"value\": 7}')\n    return 2 * x\n"
ASSERTS = [
    "assert double(1) == 2",
    "assert double('\u00e4\"') == '\u00e4\"\u00e4\"'",
    "assert double([0.5]) == [0.5, 0.5]",
]


class Handler(BaseHTTPRequestHandler):
    """Runs what it is sent, as the server does: a file, its input, a time limit."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, request))
        time.sleep(self.server.delay)
        reply = self.server.reply or self.run(request)
        body = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        self.send_response(next(self.server.statuses, self.server.status))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):
            self.wfile.write(body)

    def run(self, request):
        assert request["language"] == "python"
        file = self.server.folder / f"{threading.get_ident()}.py"
        file.write_text(request["code"], encoding="utf-8")
        result = {"status": "Finished", "execution_time": 0.1, "return_code": 0, "stdout": "", "stderr": ""}
        try:
            done = subprocess.run(
                [sys.executable, str(file)],
                input=request["stdin"],
                capture_output=True,
                encoding="utf-8",
                timeout=request["run_timeout"],
                check=False,
                cwd=self.server.folder,
            )
            result |= {"return_code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
        except subprocess.TimeoutExpired as error:
            result |= {"status": "TimeLimitExceeded", "return_code": None, "stdout": (error.stdout or b"").decode()}
        status = "Success" if result["return_code"] == 0 else "Failed"
        return {"status": status, "message": "", "compile_result": None, "run_result": result, "files": {}}

    def log_message(self, *words):
        pass


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    monkeypatch.setattr(sandbox_fusion, "_PAUSE_SECONDS", 0.01)


@pytest.fixture
def server(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.folder, server.requests, server.reply, server.status, server.delay = tmp_path, [], None, 200, 0.0
    server.statuses = iter(())  # of the next requests, before `status`
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def url(server):
    return f"http://127.0.0.1:{server.server_address[1]}/"


def test_calls(server, url):
    completions = [
        DOUBLE, "def double(x): return x", "def double(x", "import os\nos._exit(0)", "def double(x): raise SystemExit",
        "double = 3",
    ]  # fmt: skip
    for fraction in (False, True):
        values = CodeReward(backend=url, fraction=fraction)([""] * 6, completions, tests=[ASSERTS] * 6)
        assert values == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    path, request = server.requests[0]
    assert (path, request["run_timeout"], request["memory_limit_MB"]) == ("/run_code", 10.0, 512)
    assert "double(1)" in request["stdin"]
    assert "0.5, 0.5" not in json.dumps(request)  # what must come out stays here


def test_inputs_and_the_variable(server, url, monkeypatch):
    monkeypatch.setenv("LOCKSTITCH_SANDBOX", url)
    programs = ["print(int(input()) * 2)", "print(2)", "input(); print(4); raise SystemExit(1)"]
    rows = {"inputs": [["1\n", "2\n"]] * 3, "outputs": [["2\n", "4\n"]] * 3}
    assert code_reward([""] * 3, programs, **rows) == [1.0, 0.0, 0.0]
    assert server.requests[0][1]["stdin"] == "1\n"


def test_of_a_script_with_prose_the_first_reading_that_compiles_is_run(url):
    ways = ["Here is the program:\nprint(2 * int(input()))", "Here it is\x00", "print(2 * int(input()))", "print(3)"]
    exam = Exam(Tests((Dialogue("1", "2"), Dialogue("2", "4"))))
    assert FusionExaminer(url).examine(exam, ways, Limits(seconds=5.0)).passed == (True, True)
    assert FusionExaminer(url).examine(exam, ways[:2], Limits(seconds=5.0)).passed == (False, False)


def test_what_does_not_speak_http_leaves_programs_unscored():
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            connection, _ = listening.accept()
            with connection:
                connection.recv(9)
                connection.sendall(b"SSH-2.0-what\r\n")

        threading.Thread(target=answer, daemon=True).start()
        marks = FusionExaminer(f"http://127.0.0.1:{listening.getsockname()[1]}").examine(
            Exam(parse_tests(ASSERTS)), [DOUBLE], Limits(seconds=5.0)
        )
    assert marks.passed is None
    with pytest.raises(ValueError, match=r"http://host:port is no address of a SandboxFusion server: Port could not"):
        FusionExaminer("http://host:port")


@pytest.mark.slow
def test_its_time_limit_is_the_programs_fault(url):
    slow = "import time\ndef double(x):\n    if x == 1: return 2\n    time.sleep(9)"
    values = CodeReward(backend=url, fraction=True, timeout=0.5)([""] * 2, [slow, DOUBLE], tests=[ASSERTS] * 2)
    assert values[1] == 1.0
    assert values[0] == pytest.approx(1 / 3)
    loop = "while True: pass"
    assert CodeReward(backend=url, timeout=0.5)([""], [loop], inputs=[["1"]], outputs=[["1"]]) == [0.0]


@pytest.mark.slow
def test_a_server_that_is_busy_is_asked_again(server, url):
    reward, asked = CodeReward(backend=url), {"inputs": [[""]], "outputs": [["1"]]}
    for statuses, value in (([503, 429, 200], 1.0), ([503, 502, 504], None), ([500], None)):
        server.statuses, before = iter(statuses), len(server.requests)
        assert reward([""], [f"print(1)  # {statuses}"], **asked) == [value]
        assert len(server.requests) - before == len(statuses)


@pytest.mark.parametrize(
    ("status", "reply"),
    [
        (500, {"status": "Success"}),
        (404, b"no such page"),
        (200, b"no JSON"),
        (200, [1]),
        (200, {"status": "Success"}),
        (200, {"status": "SandboxError", "message": "no workers", "run_result": {"status": "Error", "stdout": "2"}}),
    ],
)
def test_a_server_that_fails_leaves_programs_unscored(server, url, status, reply, caplog):
    server.status, server.reply = status, reply
    metrics = {}
    reward = CodeReward(backend=url)
    assert reward([""], [DOUBLE], tests=[ASSERTS], log_metric=metrics.__setitem__) == [None]
    assert reward([""], ["print(2)"], inputs=[[""]], outputs=[["2"]]) == [None]
    assert metrics == {"rewards/code_reward/none": 1.0}
    assert url in caplog.text


def test_a_password_in_its_address_is_refused_and_not_told():
    with pytest.raises(ValueError, match=r"http://\*\*\*@host") as caught:
        FusionExaminer("http://ann:secret@host:8080")
    assert "secret" not in str(caught.value)


def test_nobody_there_and_nobody_in_time(server, url):
    assert CodeReward(backend="http://127.0.0.1:9")([""], [DOUBLE], tests=[ASSERTS]) == [None]
    server.delay = 1.0
    marks = FusionExaminer(url, patience=0.1).examine(Exam(parse_tests(ASSERTS)), [DOUBLE], Limits(seconds=0.1))
    assert marks.passed is None
    assert "timed out" in marks.reason


def test_tests_that_call_from_a_script_are_not_scored(url, caplog):
    tests = [["assert double(1) == 2", "assert set(double([1])) == {1}"]]
    assert CodeReward(backend=url)([""], [DOUBLE], tests=tests) == [None]
    assert "no 'assert call == value'" in caplog.text
