"""Solvers: prompts, answers, and three ways to run a model, each held against counting or generating by hand."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lockstitch.rewards.tasks.named import get_task
from lockstitch.stitching.refine import (
    CHAT_MARK,
    Script,
    Solver,
    balanced_end,
    boxed_answer,
    chat_messages,
    load_solver,
    plain_answer,
    plain_solver_prompt,
)
from lockstitch.stitching.solvers import OpenAISolver, TransformersSolver
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

TOKENIZER = str(files("lockstitch") / "embedded" / "tokenizer")
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
QUESTIONS = ["12+3", "9", "12+3-40+7", "Zoe has 72 apples. Zoe loses 34 of them. How many has she?", "5*6"]
EVIDENCES = ["[c=1.000] 12+03=15", "", "[c=0.930] 12+03=15\n[c=0.200] 15-40=99", "", "[c=0.500] 05*6=30"]
ARITHMETIC = get_task("arithmetic")


@pytest.fixture(params=["plain", "chat"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A random Llama with the embedded tokenizer, without and with a chat template."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    if request.param == "chat":
        tokenizer.chat_template = TEMPLATE
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.repetition_penalty = 1.5  # a solver must not take this over
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def _greedy_by_hand(directory: Path, script: Script, question: str, evidence: str, eos: list[int]) -> list[int]:
    """The tokens of transformers' plain `generate` on one unpadded prompt, cut after the answer."""
    model = LlamaForCausalLM.from_pretrained(directory)
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=0)
    ids = script.prompt(question, evidence)
    out = model.generate(input_ids=torch.tensor([ids]), do_sample=False, max_new_tokens=24)[0, len(ids) :].tolist()
    return next((out[:length] for length in range(1, len(out)) if script.is_complete(out[:length])), out)


def test_transformers_solver_is_greedy_generation_and_counts_its_tokens(directory: Path) -> None:
    script = Script(AutoTokenizer.from_pretrained(directory), ARITHMETIC)
    eos = [1, _greedy_by_hand(directory, script, QUESTIONS[0], EVIDENCES[0], [1])[6]]  # so that a row ends early
    config = GenerationConfig.from_pretrained(directory)
    config.eos_token_id = eos[1]  # the tokenizer adds its own
    config.save_pretrained(directory)

    solver = load_solver(str(directory), ARITHMETIC, max_new_tokens=24)
    lengths = []
    for question, evidence, got in zip(QUESTIONS, EVIDENCES, solver(QUESTIONS, EVIDENCES), strict=True):
        written = _greedy_by_hand(directory, script, question, evidence, eos)
        text = script.decode(written)
        read = boxed_answer(text, ARITHMETIC) if script.chat else plain_answer(text)
        assert (got.text, got.tokens) == (read, len(script.prompt(question, evidence)) + len(written))
        lengths.append(len(written))
    assert lengths[0] <= 7 < max(lengths)


def test_batched_is_one_at_a_time(directory: Path) -> None:
    solver = TransformersSolver.from_pretrained(str(directory), ARITHMETIC, max_new_tokens=24)
    together = solver(QUESTIONS, EVIDENCES)
    solver.batch_size = 2
    assert solver(QUESTIONS, EVIDENCES) == together
    solver.batch_size = 1
    assert solver(QUESTIONS, EVIDENCES) == together
    assert solver([], []) == []
    with pytest.raises(ValueError, match="zip"):
        solver(QUESTIONS, EVIDENCES[:2])


@pytest.mark.parametrize(
    ("directory", "said", "rest", "text"),
    [
        ("plain", " 24<eos>", "", "#### 24"),
        ("plain", "\n 24\n", "Question: #### 7", "#### 24"),
        ("plain", " 24", None, "#### 24"),
        ("chat", "24}", " or \\boxed{7}<eos>", r"\boxed{24}"),
        ("chat", r"\frac{1}{2}}", " and more", r"#### \frac{1}{2}"),  # arithmetic does not read that box
        ("chat", "24<eos>", "", r"The answer is \boxed{24"),
    ],
    indirect=["directory"],
)
def test_an_answer_ends_where_it_is_complete(directory: Path, said: str, rest: str | None, text: str) -> None:
    """A model made to write a fixed text: what follows the answer is neither read nor counted."""
    solver = TransformersSolver.from_pretrained(str(directory), ARITHMETIC)
    tokenizer = solver.script.tokenizer
    ids = tokenizer(said)["input_ids"]
    forced = iter(ids + tokenizer(rest or " ")["input_ids"] + tokenizer(" " * 100)["input_ids"])

    def write(module: object, args: object, output: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor(next(forced)), len(tokenizer)).float().expand_as(output)

    solver.model.lm_head.register_forward_hook(write)
    answers = solver(QUESTIONS, EVIDENCES)
    assert [answer.text for answer in answers] == [text] * len(QUESTIONS)
    count = 48 if rest is None else len(ids)
    prompts = map(solver.script.prompt, QUESTIONS, EVIDENCES)
    assert [answer.tokens for answer in answers] == [len(prompt) + count for prompt in prompts]


def test_a_prompt_beyond_the_context_is_refused(directory: Path) -> None:
    solver = TransformersSolver.from_pretrained(str(directory), ARITHMETIC)
    with pytest.raises(ValueError, match="at most 464 fit"):
        solver(["1+2"], ["[c=1.000] 01+2=03\n" * 40])


@pytest.mark.parametrize(
    ("text", "end"),
    [
        (r"\boxed{24}", 10),
        (r"The answer is \boxed{24}. So \boxed{7}", 24),
        (r"\boxed{\frac{1}{2}} x", 19),
        (r"\boxed{\{1\}}", 13),
        (r"\boxed{\\}}", 10),  # an escaped backslash, then the brace that closes
        (r"\boxed{}", 8),
        (r"\boxed{\frac{1}{2}", None),
        (r"\boxed{1\}", None),
        (r"boxed{24}", None),
        ("}", None),
        ("", None),
    ],
)
def test_balanced_end(text: str, end: int | None) -> None:
    assert balanced_end(text) == end


@pytest.mark.parametrize(
    ("task", "continuation", "answer"),
    [
        ("gsm8k", "24}. Done 3}", "24"),
        ("arithmetic", "24}", "24"),
        ("gsm8k", r"\$1,024 apples}", "1024"),
        ("gsm8k", r"The answer is \boxed{24}.", "24"),  # the server opened a new turn
        ("countdown", "(93+30)-100}$", "(93+30)-100"),
        ("sudoku", "1432 3214 4123 2341}", "1432321441232341"),
        ("arithmetic", "24", None),  # never closed
    ],
)
def test_the_task_reads_a_box(task: str, continuation: str, answer: str | None) -> None:
    assert get_task(task).extract(boxed_answer(continuation, get_task(task))) == answer


def test_prompts() -> None:
    assert plain_solver_prompt("12+3\n", "") == "12+3\n####"
    assert plain_solver_prompt("12+3\n", "[c=1.000] 12+03=15") == "12+3\n[c=1.000] 12+03=15\n####"
    assert ARITHMETIC.extract(plain_answer(" 15")) == "15"
    user, assistant = chat_messages("How many?", "[c=0.930] Three.\n[c=0.100] Four.")
    assert user["content"].startswith("How many?\n\n")
    assert "\n[c=0.930] Three.\n[c=0.100] Four.\n" in user["content"]
    assert assistant == {"role": "assistant", "content": CHAT_MARK}
    assert "c=" not in chat_messages("How many?", "")[0]["content"]


@pytest.mark.parametrize(
    "spec",
    [
        "",
        " ",
        "vllm:",
        "openai:",
        "openai:model",
        "openai:@http://localhost",
        "openai:model@localhost:8000",
        "openai:model@http://",
        "grpc:model",
        "./no/such/directory",
        "/no/such/directory",
    ],
)
def test_malformed_specs_name_the_accepted_forms(spec: str) -> None:
    with pytest.raises(ValueError, match="openai:MODEL@URL") as caught:
        load_solver(spec, ARITHMETIC)
    assert repr(spec) in str(caught.value)


def test_missing_vllm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match=r"pip install lockstitch\[vllm\]"):
        load_solver("vllm:some/model", ARITHMETIC)


@pytest.mark.parametrize(
    ("directory", "said", "text", "limit"),
    [
        ("chat", r"24}. More", r"\boxed{24}", 48),
        ("chat", r"\frac{1}{2}}. More", r"#### \frac{1}{2}", 48),  # three stops at a brace, one answer
        ("chat", r"\frac{1}{2}}. More", r"The answer is \boxed{\frac{1", 7),
        ("chat", "24<eos>", r"The answer is \boxed{24", 48),
        ("plain", "\n 24\n7", "#### 24", 48),
        ("plain", " 24<eos>", "#### 24", 48),
    ],
    indirect=["directory"],
)
def test_vllm_solver_goes_on_until_the_answer_is_complete(
    monkeypatch: pytest.MonkeyPatch, directory: Path, said: str, text: str, limit: int
) -> None:
    """Against an engine that writes a fixed text and stops as vLLM's does: at a stop string, at EOS, at the limit."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = tokenizer(said)["input_ids"]

    class Engine:
        def __init__(self, **_: object) -> None: ...

        def get_tokenizer(self) -> Any:
            return tokenizer

        def generate(self, prompts: list[Any], parameters: list[Any], use_tqdm: bool) -> list[Any]:
            assert not use_tqdm
            return [self.one(prompt["prompt_token_ids"], p) for prompt, p in zip(prompts, parameters, strict=True)]

        def one(self, prompt: list[int], parameters: Any) -> Any:
            done = len(prompt) - len(prompts[0])  # both prompts are as long
            out, reason = [], None
            for token in ids[done : done + parameters.max_tokens]:
                out.append(token)
                if token == tokenizer.eos_token_id:
                    break
                if parameters.stop[0] in tokenizer.decode([token]):
                    reason = parameters.stop[0]
                    break
            return SimpleNamespace(outputs=[SimpleNamespace(token_ids=out, stop_reason=reason)])

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=Engine, SamplingParams=SimpleNamespace))
    solver = load_solver("vllm:tiny", ARITHMETIC, max_new_tokens=limit)
    script = Script(tokenizer, ARITHMETIC)
    prompts = [script.prompt(question, "") for question in ("12+3", "45-6")]
    answers = solver(["12+3", "45-6"], ["", ""])
    assert [answer.text for answer in answers] == [text] * 2
    written = next((n for n in range(1, len(ids)) if script.is_complete(ids[:n])), len(ids))
    assert [answer.tokens for answer in answers] == [len(prompts[0]) + min(written, limit)] * 2


# --- a server --------------------------------------------------------------------------------------------------------

Reply = tuple[int, Any]


@contextmanager
def _server(answer: Callable[[Any, dict[str, str]], Reply]) -> Iterator[tuple[str, list[str]]]:
    """A server that has the model `tiny`; `answer(body, headers)` makes its replies. Yields its URL and its log."""
    log: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def _send(self, status: int, reply: Any) -> None:
            data = json.dumps(reply).encode() if not isinstance(reply, bytes) else reply
            with suppress(ConnectionError):  # a client that no longer waits
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def do_GET(self) -> None:
            log.append(self.path)
            self._send(200, {"object": "list", "data": [{"id": "tiny"}]})

        def do_POST(self) -> None:
            log.append(self.path)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(*answer(body, dict(self.headers)))

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", log
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _continues(body: Any, headers: dict[str, str]) -> Reply:
    """What a server that honours the protocol says: it continues the assistant turn with the question's own number."""
    user, assistant = body["messages"]
    if body["add_generation_prompt"] or not body["continue_final_message"] or assistant["content"] != CHAT_MARK:
        return 400, {"error": "an open assistant turn is expected"}
    number = user["content"].split()[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("tiny", 0, 48)
    return 200, {
        "choices": [{"message": {"content": number + "}. More \\boxed{0}"}}],
        "usage": {"prompt_tokens": int(number), "completion_tokens": 4, "total_tokens": int(number) + 4},
    }


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_openai_solver_keeps_order_and_reads_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str | None] = []

    def answer(body: Any, headers: dict[str, str]) -> Reply:
        keys.append(headers.get("Authorization"))
        time.sleep(0.05 if body["messages"][0]["content"].startswith("1 ") else 0)
        return _continues(body, headers)

    with _server(answer) as (url, log):
        solver: Solver = load_solver(f"openai:tiny@{url}/v1/", ARITHMETIC)
        answers = solver([f"{i} is the number" for i in range(12)], [""] * 12)
        monkeypatch.setenv("OPENAI_API_KEY", "secret")
        solver(["3 is the number"], [""])
    assert [answer.text for answer in answers] == [rf"\boxed{{{i}}}" for i in range(12)]
    assert [answer.tokens for answer in answers] == [i + 4 for i in range(12)]
    assert keys == [None] * 12 + ["Bearer secret"]
    assert log == ["/v1/models"] + ["/v1/chat/completions"] * 13


@pytest.mark.parametrize("concurrency", [1, 3])
def test_openai_solver_bounds_its_concurrency(concurrency: int) -> None:
    lock, running, seen = threading.Lock(), [0], [0]

    def answer(body: Any, headers: dict[str, str]) -> Reply:
        with lock:
            running[0] += 1
            seen[0] = max(seen[0], running[0])
        time.sleep(0.03)
        with lock:
            running[0] -= 1
        return _continues(body, headers)

    with _server(answer) as (url, _):
        OpenAISolver("tiny", url, ARITHMETIC, concurrency=concurrency)(["1 x"] * 9, [""] * 9)
    assert seen[0] == concurrency


def test_openai_solver_tries_again() -> None:
    failures = iter([(503, {"error": "busy"}), (429, {"error": "slow down"})])

    with _server(lambda body, headers: next(failures, None) or _continues(body, headers)) as (url, log):
        (answered,) = OpenAISolver("tiny", url, ARITHMETIC, backoff=0.01)(["24 x"], [""])
    assert answered.text == r"\boxed{24}"
    assert log == ["/v1/models"] + ["/v1/chat/completions"] * 3


@pytest.mark.parametrize(("status", "attempts"), [(503, 3), (400, 1)])
def test_openai_solver_gives_up(status: int, attempts: int) -> None:
    with _server(lambda body, headers: (status, {"error": "no such luck"})) as (url, log):
        solver = OpenAISolver("tiny", url, ARITHMETIC, attempts=3, backoff=0.01)
        with pytest.raises(
            ConnectionError, match=rf"'tiny'.*{attempts} attempt.*HTTP {status}.*no such luck"
        ) as caught:
            solver(["24 x"], [""])
    assert url in str(caught.value)
    assert len(log) == 1 + attempts


@pytest.mark.slow
@pytest.mark.parametrize(
    "reply", [{}, {"choices": []}, {"choices": [{"message": None}]}, [], b"<html>", b"[" * 100_000]
)
def test_openai_solver_refuses_what_it_cannot_read(reply: Any) -> None:
    with _server(lambda body, headers: (200, reply)) as (url, _):
        solver = OpenAISolver("tiny", url, ARITHMETIC)
        with pytest.raises(ConnectionError, match=r"127\.0\.0\.1.*'tiny'"):
            solver(["24 x"], [""])


def test_openai_solver_names_a_server_that_is_not_there() -> None:
    with _server(_continues) as (url, _):
        pass  # now nothing listens on that port
    with pytest.raises(ConnectionError, match=r"'tiny'.*2 attempt") as caught:
        OpenAISolver("tiny", url, ARITHMETIC, attempts=2, backoff=0.01)
    assert url in str(caught.value)


def test_openai_solver_names_a_server_that_is_too_slow() -> None:
    def answer(body: Any, headers: dict[str, str]) -> Reply:
        time.sleep(0.5)
        return _continues(body, headers)

    with _server(answer) as (url, log):
        solver = OpenAISolver("tiny", url, ARITHMETIC, timeout=0.1, attempts=2, backoff=0.01)
        with pytest.raises(ConnectionError, match=r"no answer within 0\.1 seconds, after 2 attempt") as caught:
            solver(["24 x"], [""])
    assert url in str(caught.value)
    assert log == ["/v1/models"] + ["/v1/chat/completions"] * 2


def test_openai_solver_names_the_models_of_the_server() -> None:
    with _server(_continues) as (url, _), pytest.raises(ValueError, match="has no model 'big'; it has 'tiny'"):
        OpenAISolver("big", url, ARITHMETIC)
