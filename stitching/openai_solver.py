"""A solver behind any OpenAI-compatible server, over the standard library's HTTP client.

What a server need not have is used where it is there: its list of models, the continuing of an assistant turn
(`continue_final_message`, as vLLM and SGLang do), and what it says of tokens (`usage`). Answers are handed out as they come,
so that what was paid for can be kept when a later request fails.

    vllm serve MODEL --port 8000          # then: openai:MODEL@http://127.0.0.1:8000
"""

import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from lockstitch.rewards.tasks.task import Task
from lockstitch.stitching.refine import (
    CHAT_MARK,
    Answered,
    balanced_end,
    boxed_answer,
    chat_messages,
    own_turn_answer,
)

from lockstitch.files import whole_characters
from lockstitch.server import Retries, Server, ServerError, without_user

logger = logging.getLogger(__name__)

_CONTINUED = {"add_generation_prompt": False, "continue_final_message": True}
_PENALTY = "repetition_penalty"
_VERSIONED = re.compile(r"/(?:v\d+\w*(?:/openai)?|openai)$")  # of an address that names its version already
# What servers say that do not know these fields, or take no assistant turn as the last one.
_UNKNOWN = re.compile(
    r"repetition_penalty|add_generation_prompt|continue_final_message|unrecogni[sz]ed|unknown|unsupported|unexpected|"
    r"not (?:supported|permitted|allowed)|forbidden|prefill|assistant|last (?:message|role)",
    re.IGNORECASE,
)


class OpenAISolver:
    """A chat model behind an OpenAI-compatible server.

    The key is read from `OPENAI_API_KEY`, if set; a user's name and password may stand in the address. The server is asked
    for its models at once, so that a wrong address or name shows before any long work. What may succeed later is tried
    again (`lockstitch.server`).

    Args:
        model: its name on the server.
        url: the server's address, with or without `/v1`; another version (`/v4`, `/v1beta/openai`) is kept.
        task: what is asked.
        max_new_tokens: the longest answer, in tokens.
        retries: the fields of `Retries`.
    """

    def __init__(self, model: str, url: str, task: Task, *, max_new_tokens: int = 48, **retries: Any) -> None:
        self.retries = Retries(**retries)
        self.model, self.task, self.max_new_tokens = model, task, max_new_tokens
        address, user = without_user(url)
        self.url = address.rstrip("/")
        if not _VERSIONED.search(self.url):
            self.url += "/v1"
        self._server = Server(self.url, "OPENAI_API_KEY", self.retries, f" (model {model!r})", user)
        self._continues = True
        # What is said to it, as far as it takes that; the penalty is 1 or, in vLLM, what the model's own settings say.
        self._said: dict[str, Any] = {"max_tokens": max_new_tokens, "temperature": 0, _PENALTY: 1.0}
        self._told: set[str] = set()
        names = self._models()
        if names and model not in names:
            raise ValueError(f"{self.url} has no model {model!r}; it has {', '.join(map(repr, names))}")

    def __call__(self, questions: Sequence[str], evidences: Sequence[str]) -> list[Answered]:
        """Answers with `concurrency` requests at a time; `ConnectionError` as the server fails."""
        answered = dict(self.each(questions, evidences))
        return [answered[i] for i in range(len(questions))]

    def each(self, questions: Sequence[str], evidences: Sequence[str]) -> Iterator[tuple[int, Answered]]:
        """(place, answer) as they come. After a failure no more is asked, and what is under way is handed out first.

        Raises:
            ConnectionError: the server failed.
        """
        pairs = list(zip(questions, evidences, strict=True))
        stop = threading.Event()
        at_once = min(self.retries.concurrency, max(1, len(pairs)))
        failures: list[ConnectionError] = []

        def ask(pair: tuple[str, str]) -> Answered | None:
            if stop.is_set():
                return None
            try:
                return self._ask(pair, stop, at_once)
            except ConnectionError as error:
                failures.append(error)
                stop.set()
                return None

        pool = ThreadPoolExecutor(self.retries.concurrency)
        try:
            futures = {pool.submit(ask, pair): i for i, pair in enumerate(pairs)}
            for future in as_completed(futures):
                answered = future.result()
                if answered is not None:
                    yield futures[future], answered
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
        if failures:
            raise failures[0]

    # --- what is said and read ---------------------------------------------------------------------------------------

    def _models(self) -> list[str]:
        """The names of the server's models; none where it does not tell them."""
        try:
            reply = self._server.request("/models", None, threading.Event())
        except ServerError as error:
            if error.status in (400, 403, 404, 405, 501):
                logger.info("%s", error)
                return []
            raise
        entries = reply.get("data") if isinstance(reply, dict) else None
        entries = entries if isinstance(entries, list) else []
        return [str(entry["id"]) for entry in entries if isinstance(entry, dict) and "id" in entry]

    def _ask(self, pair: tuple[str, str], stop: threading.Event, at_once: int) -> Answered:
        began = time.perf_counter()
        reply, continued = self._chat(chat_messages(*pair), stop)
        try:
            message = reply["choices"][0]["message"]
            text, reasoned = _texts(message)
            ended = reply["choices"][0].get("finish_reason")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            said = self._server.safe(repr(reply))[:300]
            raise ServerError(f"{self.url} (model {self.model!r}) sent no answer: {said}") from error
        if ended in ("abort", "error"):
            raise ServerError(f"{self.url} (model {self.model!r}) broke an answer off: finish_reason {ended!r}")
        if ended == "content_filter":
            self._tell(
                "filter", "%s withholds answers (finish_reason 'content_filter'): they are empty here", self.url
            )
        if ended == "length":
            self._tell("length", "%s cut answers off at %d tokens", self.url, self.max_new_tokens)
        if not text.strip() and reasoned:
            # A parser of thoughts takes a continued turn that ends none for nothing else: then the box is closed in it.
            ours = r"\boxed{" not in reasoned and balanced_end(CHAT_MARK + reasoned) is not None
            text, continued = reasoned, continued and ours
        answer = boxed_answer(text, self.task) if continued else own_turn_answer(text, self.task)
        tokens, written = self._tokens(reply.get("usage"))
        seconds = (time.perf_counter() - began) / at_once
        return Answered(whole_characters(answer), tokens, written, seconds)

    def _chat(self, messages: list[dict[str, str]], stop: threading.Event) -> tuple[Any, bool]:
        """The reply, and whether the server was asked to continue the assistant turn."""
        body = {"model": self.model, "messages": messages}
        if self._continues:
            try:
                return self._post({**body, **_CONTINUED}, stop), True
            except ServerError as error:
                if error.status not in (400, 422) or not _UNKNOWN.search(str(error)):
                    raise
                if _PENALTY in str(error):
                    self._said = {name: value for name, value in self._said.items() if name != _PENALTY}
                logger.info("%s", error)
        reply = self._post({**body, "messages": messages[:1]}, stop, gives_up=_PENALTY)
        self._continues = False  # it answers in a turn of its own, and is not asked for the other again
        return reply, False

    def _post(self, body: dict[str, Any], stop: threading.Event, gives_up: str | None = None) -> Any:
        """A reply to `body` with what is said to this server, which is learned from its refusals.

        `gives_up` is no longer said where the refusal is of a field that it does not know, whichever that is.
        """
        while True:
            said = dict(self._said)
            try:
                return self._server.request("/chat/completions", {**body, **said}, stop)
            except ServerError as error:
                text = str(error)
                if error.status not in (400, 422):
                    raise
                if "max_tokens" in said and "max_completion_tokens" in text:  # OpenAI's newer models
                    self._said = {name: value for name, value in said.items() if name != "max_tokens"}
                    self._said["max_completion_tokens"] = self.max_new_tokens
                elif "temperature" in said and "temperature" in text:
                    self._said = {name: value for name, value in said.items() if name != "temperature"}
                    self._tell("temperature", "%s takes no temperature of 0: its answers are drawn", self.url)
                elif gives_up in said and (gives_up in text or _UNKNOWN.search(text)):
                    self._said = {name: value for name, value in said.items() if name != gives_up}
                else:
                    raise
                logger.info("%s", error)

    def _tell(self, key: str, text: str, *values: Any) -> None:
        if key not in self._told:
            self._told.add(key)
            logger.warning(text, *values)

    def _tokens(self, usage: Any) -> tuple[int, int]:
        """Tokens read and written together, and those written; 0 where the server does not say, which is said once."""
        known = usage if isinstance(usage, Mapping) else {}
        counts = [known.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")]
        read, written, total = (count if isinstance(count, int) else 0 for count in counts)
        if not total and not read + written:
            self._tell("usage", "%s does not say what an answer costs: the ledger counts 0 solver tokens", self.url)
        return total or read + written, written


def _texts(message: Mapping[str, Any]) -> tuple[str, str]:
    """What a message says, and what it thought before that: texts, or texts in parts."""
    return _joined(message.get("content")), _joined(message.get("reasoning_content") or message.get("reasoning"))


def _joined(content: Any) -> str:
    if isinstance(content, list):
        return "".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return content if isinstance(content, str) else ""
