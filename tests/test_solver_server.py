"""A solver behind a server, by the command: a failure loses nothing, secrets stay such, what a server lacks is not asked."""

import json
import re
import threading
import time
import urllib.error
from contextlib import contextmanager
from email.utils import formatdate
from http.client import IncompleteRead
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from lockstitch.rewards.tasks.named import get_task
from lockstitch.stitching.cli import main
from lockstitch.stitching.config import StitchConfig
from lockstitch.stitching.openai_solver import OpenAISolver
from lockstitch.stitching.refine import load_solver

from lockstitch import files
from lockstitch.server import ServerError

GSM8K = get_task("gsm8k")
USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
KEY = "sk-very-secret"


def said(content, **more):
    return {"choices": [{"message": {"role": "assistant", "content": content, **more}}], "usage": USAGE}


@contextmanager
def serving(answer, models=({"data": [{"id": "tiny"}]}, 200)):
    """A server; `answer(body, headers, number)` is (reply, status, headers). Yields its host with port, what was posted."""
    posted, lock = [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def reply(self, value, status=200, headers=()):
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            try:
                self.send_response(status)
                for name, text in dict(headers).items():
                    self.send_header(name, text)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except ConnectionError:  # a client that no longer waits
                pass

        def do_GET(self):
            self.reply(*models)

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                posted.append(body)
                number = len(posted)
            self.reply(*answer(body, dict(self.headers), number))

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", posted
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def solve(answer, models=({"data": [{"id": "tiny"}]}, 200), **retries):
    """The answer to one question, and what was posted for it."""
    with serving(answer, models) as (address, posted):
        solver = OpenAISolver("tiny", f"http://{address}", GSM8K, **{"backoff": 0.01, **retries})
        (answered,) = solver(["How many?"], [""])
    return answered, posted


# --- servers differ --------------------------------------------------------------------------------------------------


def refused_for(text):
    return {"error": {"message": text}}, 400


def test_newer_models_are_asked_in_their_own_words(caplog):
    def answer(body, headers, number):
        if "max_tokens" in body:
            return refused_for("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        if "temperature" in body:
            return refused_for("Unsupported value: 'temperature' does not support 0 with this model.")
        for name in ("continue_final_message", "repetition_penalty"):
            if name in body:
                return refused_for(f"Unknown parameter: '{name}'.")
        return said(r"\boxed{7}"), 200

    with serving(answer) as (address, posted):
        solver = OpenAISolver("tiny", f"http://{address}", GSM8K)
        assert [one.text for one in solver(["How many?", "And now?"], ["", ""])] == [r"\boxed{7}"] * 2
    assert posted[-1].keys() == {"model", "messages", "max_completion_tokens"}
    assert "takes no temperature of 0" in caplog.text


def test_what_is_continued_may_come_back_as_thought():
    """A parser of thoughts takes a turn that ends none for nothing else."""
    answered, _ = solve(lambda *_: (said(None, reasoning_content="24}."), 200))
    assert answered.text == r"\boxed{24}"
    answered, _ = solve(lambda *_: (said(None, reasoning_content=r"Twice 12: \boxed{24}"), 200))
    assert answered.text == r"\boxed{24}"


@pytest.mark.parametrize(
    ("ended", "says"), [("length", "cut answers off at 48 tokens"), ("content_filter", "withholds")]
)
def test_an_answer_that_is_not_whole_is_said(ended, says, caplog):
    reply = said("24")
    reply["choices"][0]["finish_reason"] = ended
    solve(lambda *_: (reply, 200))
    assert says in caplog.text


def test_an_answer_that_was_broken_off_is_none():
    reply = said("24")
    reply["choices"][0]["finish_reason"] = "abort"
    with pytest.raises(ServerError, match="broke an answer off: finish_reason 'abort'"):
        solve(lambda *_: (reply, 200))


def test_an_error_in_a_reply_of_200_is_tried_again():
    failed = {"error": {"message": "overloaded", "code": 503}}, 200
    answered, posted = solve(lambda body, headers, number: failed if number == 1 else (said("24}."), 200))
    assert (answered.text, len(posted)) == (r"\boxed{24}", 2)
    with pytest.raises(ServerError, match=r"refused after 1 attempt.*: no credit"):
        solve(lambda *_: ({"error": {"message": "no credit", "code": 402}}, 200))


def test_a_post_follows_no_redirect():
    moved = {}, 302, {"Location": "http://user:word@127.0.0.1:9/other?key=1"}
    with pytest.raises(ServerError, match=r"HTTP 302: it moved to http://127.0.0.1:9/other: name that address$"):
        solve(lambda *_: moved)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("", "/v1"),
        ("/v1/", "/v1"),
        ("/proxy", "/proxy/v1"),
        ("/api/v3", "/api/v3"),
        ("/v1beta/openai", "/v1beta/openai"),
    ],
)
def test_the_version_of_an_address_is_kept(given, kept):
    with serving(lambda *_: (said("24}."), 200)) as (address, _):
        assert OpenAISolver("tiny", f"http://{address}{given}", GSM8K).url == f"http://{address}{kept}"


def test_a_refusal_that_breaks_off_is_a_refusal(monkeypatch):
    def broken(*_):
        raise IncompleteRead(b"out of")

    monkeypatch.setattr(urllib.error.HTTPError, "read", broken, raising=False)
    answered, posted = solve(lambda body, headers, number: ({}, 503) if number == 1 else (said("24}."), 200))
    assert (answered.text, len(posted)) == (r"\boxed{24}", 2)


# --- nothing is lost -------------------------------------------------------------------------------------------------


def written(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line] if path.exists() else []


@pytest.mark.parametrize("concurrency", ["1", "4"])
def test_what_a_server_answered_before_it_failed_is_kept(concurrency, tmp_path, capsys):
    """It answers eighteen requests, for six problems of three each, and fails from then on; later it is back."""
    source, out = tmp_path / "t.jsonl", tmp_path / "out"
    rows = [{"question": f"Problem {i}?", "answer": str(i), "completions": [f"It is {i}.", "No."]} for i in range(10)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    broken = threading.Event()
    broken.set()

    def answer(body, headers, number):
        if broken.is_set() and number > 18:
            return {"error": "out of memory"}, 500
        return said(re.search(r"Problem (\d+)", body["messages"][0]["content"])[1] + "}."), 200

    with serving(answer) as (address, posted):
        command = ["--task", "gsm8k", "--trajectories", str(source), "--output", str(out), "--solver_attempts", "1",
                   "--solver_concurrency", concurrency, "--solver", f"openai:tiny@http://{address}"]  # fmt: skip
        assert main(command) == 2
        assert "HTTP 500: " in capsys.readouterr().err
        finished = [row["index"] for row in written(out / files.RESULTS)]
        assert finished == list(range(len(finished)))
        assert len(finished) in (
            [6] if concurrency == "1" else [5, 6]
        )  # side by side, a seventh may overtake the sixth
        assert not (out / files.SUMMARY).exists()
        kept = {row["asked"] for row in written(out / "answers.jsonl")}
        assert len(kept) == 18
        first = [json.dumps(body) for body in posted[:18]]
        broken.clear()
        posted.clear()
        assert main(command) == 0
    again = [json.dumps(body) for body in posted]
    assert len(again) == 12
    assert not set(first) & set(again)
    results = written(out / files.RESULTS)
    assert [row["index"] for row in results] == list(range(10))
    assert all(row["methods"]["solver_alone"]["correct"] for row in results)
    assert {row["methods"]["solver_alone"]["ledger"]["solver_tokens"] for row in results} == {8}
    assert not (out / "answers.jsonl").exists()
    assert json.loads((out / files.SUMMARY).read_text())["methods"]["all_traces"]["accuracy"] == 1.0


def test_the_seventh_call_fails_and_six_problems_are_kept(tmp_path, capsys):
    """What is asked about the seventh of nine problems fails: six are kept, and only the rest is asked later."""
    source, out = tmp_path / "t.jsonl", tmp_path / "out"
    rows = [{"question": f"Problem {i}?", "answer": str(i), "completion": f"I say {i}."} for i in range(9)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    broken = threading.Event()
    broken.set()

    def answer(body, headers, number):
        problem = int(re.search(r"Problem (\d+)", body["messages"][0]["content"])[1])
        return ({}, 503) if broken.is_set() and problem == 6 else (said(f"{problem}}}"), 200)

    with serving(answer) as (address, posted):
        command = ["--task", "gsm8k", "--trajectories", str(source), "--output", str(out), "--solver_attempts", "1",
                   "--solver_timeout", "20", "--solver_concurrency", "1",
                   "--solver", f"openai:tiny@http://{address}/v1"]  # fmt: skip
        assert main(command) == 2
        assert [row["index"] for row in written(out / files.RESULTS)] == list(range(6))
        broken.clear()
        posted.clear()
        assert main([*command[:-4], "--solver_concurrency", "3", *command[-2:]]) == 0
    asked = {int(re.search(r"Problem (\d+)", body["messages"][0]["content"])[1]) for body in posted}
    assert asked == {6, 7, 8}
    assert len(written(out / files.RESULTS)) == 9


def test_answers_of_another_solver_are_not_taken(tmp_path):
    """Answers without results are any configuration's directory, but not any solver's answers."""
    source, out = tmp_path / "t.jsonl", tmp_path / "out"
    source.write_text(json.dumps({"question": "How many?", "answer": "4", "completions": ["4"]}) + "\n")
    for name, number in (("one", 3), ("two", 4)):
        models = ({"data": [{"id": name}]}, 200)

        def answer(body, headers, count, number=number):
            return (said(f"{number}}}"), 200) if count == 1 or number == 4 else ({}, 500)

        with serving(answer, models) as (address, _):
            main(
                [
                    "--task",
                    "gsm8k",
                    "--trajectories",
                    str(source),
                    "--output",
                    str(out),
                    "--solver_attempts",
                    "1",
                    "--solver",
                    f"openai:{name}@http://{address}",
                    "--solver_concurrency",
                    "1",
                ]
            )
    (row,) = written(out / files.RESULTS)
    assert {row["methods"][name]["answer"] for name in ("all_traces", "solver_alone")} == {"4"}


# --- again -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
def test_it_waits_as_long_as_it_is_asked_to(status):
    began = time.perf_counter()
    answered, posted = solve(
        lambda body, headers, n: ({}, status, {"Retry-After": "0.3"}) if n < 3 else (said("24}"), 200)
    )
    assert time.perf_counter() - began > 0.6
    assert (answered.text, len(posted)) == (r"\boxed{24}", 3)


def test_a_date_to_wait_for_and_one_that_is_too_far():
    soon = {"Retry-After": formatdate(time.time() + 1.5, usegmt=True)}
    began = time.perf_counter()
    assert solve(lambda body, headers, n: ({}, 429, soon) if n == 1 else (said("24}"), 200))[0].text == r"\boxed{24}"
    assert time.perf_counter() - began > 0.3
    with pytest.raises(ConnectionError, match="it asks to wait for 7200 seconds"):
        solve(lambda body, headers, n: ({}, 429, {"Retry-After": "7200"}))
    odd = {"Retry-After": "soon"}
    assert solve(lambda body, headers, n: ({}, 429, odd) if n == 1 else (said("24}"), 200))[0].tokens == 8


def test_what_takes_too_long_is_asked_again():
    def answer(body, headers, number):
        time.sleep(0.4 if number == 1 else 0)
        return said("24}"), 200

    answered, posted = solve(answer, timeout=0.2, attempts=3)
    assert (answered.text, len(posted)) == (r"\boxed{24}", 2)


def test_options_of_servers_are_for_servers():
    for settings, says in (
        ({"solver": "none", "solver_timeout": 3.0}, "solver_timeout would be ignored: solver='none'"),
        ({"solver_attempts": 3}, "solver_attempts would be ignored: solver=None"),
        ({"solver": "openai:a@http://b", "solver_attempts": 0}, "solver_attempts=0 must be"),
        ({"solver": "openai:a@http://b", "solver_concurrency": 0}, "solver_concurrency=0 must be"),
        ({"solver": "openai:a@http://b", "solver_timeout": 0.0}, "solver_timeout=0.0 must be a positive"),
    ):
        with pytest.raises(ValueError, match=re.escape(says)):
            StitchConfig(task="gsm8k", trajectories="t", output="o", **settings)
    with pytest.raises(ValueError, match="timeout would be ignored"):
        load_solver("none/at-all", GSM8K, timeout=3.0)


# --- what servers need not have --------------------------------------------------------------------------------------


@pytest.mark.parametrize("models", [({}, 404), ({"error": "no"}, 405), ({}, 200), ({"data": []}, 200), ([], 200)])
def test_a_list_of_models_is_not_demanded(models):
    assert solve(lambda body, headers, n: (said("24}"), 200), models)[0].text == r"\boxed{24}"


@pytest.mark.parametrize(
    ("status", "reply"),
    [
        (400, {"error": {"message": "Unrecognized request argument supplied: add_generation_prompt"}}),
        (422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "repetition_penalty"]}]}),
        (400, {"message": "Expected last role User or Tool but got assistant"}),
    ],
)
def test_a_server_that_continues_no_turn_is_asked_without(status, reply):
    def answer(body, headers, number):
        if "continue_final_message" in body:
            return reply, status
        assert [message["role"] for message in body["messages"]] == ["user"]
        named = "repetition_penalty" in json.dumps(reply)
        more = set() if named else {"repetition_penalty"}  # without which the model's own settings would penalise
        assert set(body) == {"model", "messages", "max_tokens", "temperature", *more}
        return said("The sum is 7, so \\boxed{24}."), 200

    with serving(answer) as (address, posted):
        solver = OpenAISolver("tiny", f"http://{address}", GSM8K, concurrency=1)
        assert [one.text for one in solver(["a", "b", "c"], [""] * 3)] == [r"\boxed{24}"] * 3
    assert len(posted) == 4  # it is told once


@pytest.mark.parametrize(
    ("reply", "text", "tokens"),
    [
        ({"choices": [{"message": {"content": "24}"}}]}, r"\boxed{24}", (0, 0)),
        ({**said("24}"), "usage": None}, r"\boxed{24}", (0, 0)),
        ({**said("24}"), "usage": {"prompt_tokens": 7, "completion_tokens": 2}}, r"\boxed{24}", (9, 2)),
        (said([{"type": "text", "text": "2"}, {"type": "text", "text": "4}"}]), r"\boxed{24}", (8, 3)),
        (said(None, reasoning_content=r"First \boxed{7}, no: \boxed{24}"), r"\boxed{24}", (8, 3)),
        (said(None, reasoning="It is 24."), "It is 24.", (8, 3)),
        (said("24}", reasoning_content=r"\boxed{7}"), r"\boxed{24}", (8, 3)),
        (said("2\ud8004}"), "\\boxed{2\\ud8004}", (8, 3)),
    ],
)
def test_what_replies_look_like(reply, text, tokens):
    answered, _ = solve(lambda body, headers, n: (reply, 200))
    assert (answered.text, (answered.tokens, answered.written)) == (text, tokens)


def test_an_empty_reply_is_no_answer():
    assert GSM8K.extract(solve(lambda body, headers, n: (said(None), 200))[0].text) is None


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_a_password_is_in_no_file_of_a_finished_run(tmp_path, capsys):
    source = tmp_path / "t.jsonl"
    source.write_text(json.dumps({"question": "?", "answer": "4", "completions": ["4"]}) + "\n")
    with serving(lambda body, headers, number: (said("4}"), 200)) as (address, _):
        assert (
            main(
                [
                    "--task",
                    "gsm8k",
                    "--trajectories",
                    str(source),
                    "--output",
                    str(tmp_path / "o"),
                    "--solver",
                    f"openai:tiny@http://ann:secret@{address}",
                ]
            )
            == 0
        )
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == [
        "config.json",
        "report.html",
        "results.jsonl",
        "summary.json",
    ]
    assert not [path for path in (tmp_path / "o").iterdir() if "secret" in path.read_text()]
    assert "secret" not in "".join(capsys.readouterr())


def test_keys_and_passwords_are_sent_and_never_shown(tmp_path, capsys, monkeypatch):
    seen = []

    def answer(body, headers, number):
        seen.append(headers["Authorization"])
        echo = f"bad key {headers['Authorization']} {'p@ss wo:rd' if 'Basic' in seen[-1] else KEY}"
        return (said("4}"), 200) if number < 3 else ({"error": echo}, 401)

    source = tmp_path / "t.jsonl"
    rows = [{"question": f"{i}?", "answer": "4", "completions": ["4"]} for i in range(3)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    for user, out in (("", "bearer"), ("ann:p%40ss%20wo%3Ard@", "basic")):
        with serving(answer) as (address, _):
            command = ["--task", "gsm8k", "--trajectories", str(source), "--output", str(tmp_path / out),
                       "--solver_attempts", "1", "--solver", f"openai:tiny@http://{user}{address}"]  # fmt: skip
            assert main(command) == 2
            answered = seen[-1]
        shown = capsys.readouterr()
        everything = shown.out + shown.err
        everything += "".join(path.read_text() for path in (tmp_path / out).iterdir())
        assert "HTTP 401" in shown.err
        assert answered == (f"Bearer {KEY}" if not user else "Basic YW5uOnBAc3Mgd286cmQ=")
        for secret in (KEY, "p%40ss", "p@ss", "YW5uOnBA"):
            assert secret not in everything
        assert f"@http://{'***@' if user else ''}127" in (tmp_path / out / files.CONFIG).read_text()


@pytest.mark.parametrize(
    "spec",
    ["openai:m@ftp://ann:secret@host", "openai:m@http://ann:secret@host/v1?key=secret", "grpc://ann:secret@host"],
)
def test_a_wrong_address_does_not_tell_its_password(spec):
    with pytest.raises(ValueError, match="host") as caught:
        load_solver(spec, GSM8K)
    assert "secret" not in str(caught.value)
