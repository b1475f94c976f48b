"""A solver behind any OpenAI-compatible server, over the standard library's HTTP client.

What a server need not have is used where it is there: its list of models, the continuing of an assistant turn
(`continue_final_message`, as vLLM and SGLang do), and what it says of tokens (`usage`). Answers are handed out as they come,
so that what was paid for can be kept when a later request fails.

    vllm serve MODEL --port 8000          # then: openai:MODEL@http://127.0.0.1:8000
"""

import base64
import json
import logging
import os
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from lockstitch.rewards.tasks.task import Task
from lockstitch.stitching.refine import Answered, boxed_answer, chat_messages, own_turn_answer

from lockstitch.errors import HIDDEN
from lockstitch.files import whole_characters

logger = logging.getLogger(__name__)

LONGEST_WAIT = 600.0  # seconds that a server may ask to wait for
_CONTINUED = {"repetition_penalty": 1.0, "add_generation_prompt": False, "continue_final_message": True}
# What servers say that do not know these fields, or take no assistant turn as the last one.
_UNKNOWN = re.compile(
    r"repetition_penalty|add_generation_prompt|continue_final_message|unrecogni[sz]ed|unknown|unsupported|unexpected|"
    r"not (?:supported|permitted|allowed)|forbidden|prefill|assistant|last (?:message|role)",
    re.IGNORECASE,
)


class ServerError(ConnectionError):
    """A request that failed, with the HTTP status if there was one, and whether another attempt may succeed."""

    def __init__(self, message: str, status: int | None = None, again: bool = False, wait: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.again, self.wait = status, again, wait


@dataclass(frozen=True)
class Retries:
    """How a server is asked.

    Attributes:
        timeout: seconds that a request may take.
        attempts: how often a request is tried.
        backoff: seconds before the second attempt; they double with each further one.
        concurrency: requests at a time.
    """

    timeout: float = 120.0
    attempts: int = 5
    backoff: float = 0.5
    concurrency: int = 8

    def __post_init__(self) -> None:
        for name in ("attempts", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.timeout > 0:
            raise ValueError(f"timeout={self.timeout} must be a positive number of seconds")


class OpenAISolver:
    """A chat model behind an OpenAI-compatible server.

    The key is read from `OPENAI_API_KEY`, if set; a user's name and password may stand in the address. The server is asked
    for its models at once, so that a wrong address or name shows before any long work. Broken connections, requests that
    take too long, and the statuses 408, 409, 429 and 5xx are tried again, after what the server asks to wait
    (`Retry-After`), or with doubling pauses.

    Args:
        model: its name on the server.
        url: the server's address, with or without `/v1`.
        task: what is asked.
        max_new_tokens: the longest answer, in tokens.
        retries: the fields of `Retries`.
    """

    def __init__(self, model: str, url: str, task: Task, *, max_new_tokens: int = 48, **retries: Any) -> None:
        self.retries = Retries(**retries)
        self.model, self.task, self.max_new_tokens = model, task, max_new_tokens
        address, self._user = _without_user(url)
        self.url = address.rstrip("/").removesuffix("/v1") + "/v1"
        self._continues, self._warned = True, False
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
            reply = self._request("/models", None, threading.Event())
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
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            said = self._safe(repr(reply))[:300]
            raise ServerError(f"{self.url} (model {self.model!r}) sent no answer: {said}") from error
        if not text.strip() and reasoned:
            text, continued = reasoned, False
        answer = boxed_answer(text, self.task) if continued else own_turn_answer(text, self.task)
        tokens, written = self._tokens(reply.get("usage"))
        seconds = (time.perf_counter() - began) / at_once
        return Answered(whole_characters(answer), tokens, written, seconds)

    def _chat(self, messages: list[dict[str, str]], stop: threading.Event) -> tuple[Any, bool]:
        """The reply, and whether the server was asked to continue the assistant turn."""
        body = {"model": self.model, "messages": messages, "max_tokens": self.max_new_tokens, "temperature": 0}
        if self._continues:
            try:
                return self._request("/chat/completions", {**body, **_CONTINUED}, stop), True
            except ServerError as error:
                if error.status not in (400, 422) or not _UNKNOWN.search(str(error)):
                    raise
                logger.info("%s", error)
        reply = self._request("/chat/completions", {**body, "messages": messages[:1]}, stop)
        self._continues = False  # it answers in a turn of its own, and is not asked for the other again
        return reply, False

    def _tokens(self, usage: Any) -> tuple[int, int]:
        """Tokens read and written together, and those written; 0 where the server does not say, which is said once."""
        known = usage if isinstance(usage, Mapping) else {}
        counts = [known.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")]
        read, written, total = (count if isinstance(count, int) else 0 for count in counts)
        if not total and not read + written and not self._warned:
            self._warned = True
            logger.warning("%s does not say what an answer costs: the ledger counts 0 solver tokens", self.url)
        return total or read + written, written

    # --- one request -------------------------------------------------------------------------------------------------

    def _request(self, path: str, body: dict[str, Any] | None, stop: threading.Event) -> Any:
        """The JSON reply to a GET, or to a POST of `body`; `ServerError` when all attempts have failed."""
        for attempt in range(1, self.retries.attempts + 1):
            try:
                return self._once(path, body, attempt)
            except ServerError as error:
                if not error.again or attempt == self.retries.attempts or stop.is_set():
                    raise
                if error.wait > LONGEST_WAIT:
                    raise ServerError(
                        f"{error}; it asks to wait for {error.wait:.0f} seconds", error.status
                    ) from error
                pause = self.retries.backoff * 2 ** (attempt - 1) * random.uniform(1.0, 1.25)
                if stop.wait(max(pause, error.wait)):
                    raise
        raise AssertionError("at least one attempt")

    def _once(self, path: str, body: dict[str, Any] | None, attempt: int) -> Any:
        where = f"{self.url}{path} (model {self.model!r})"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers={"Content-Type": "application/json"})
        if said := self._authorization():
            request.add_unredirected_header("Authorization", said)
        try:
            with urllib.request.urlopen(request, timeout=self.retries.timeout) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            reason = self._safe(error.read(2000).decode(errors="replace").strip())[:500] or error.reason
            again = error.code in (408, 409, 429) or error.code >= 500
            wait = _seconds(error.headers.get("Retry-After"))
            said = f"{where} refused after {attempt} attempt(s): HTTP {error.code}: {reason}"
            raise ServerError(said, error.code, again, wait) from None
        except (ValueError, RecursionError) as error:
            raise ServerError(f"{where} sent no JSON: {self._safe(str(error))[:200]}") from None
        except (OSError, HTTPException) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(cause, TimeoutError):
                said = f"no answer within {self.retries.timeout:g} seconds, after {attempt} attempt(s)"
            else:
                said = f"no connection after {attempt} attempt(s): {self._safe(str(cause)) or type(cause).__name__}"
            raise ServerError(f"{where}: {said}", again=True) from None

    def _authorization(self) -> str | None:
        if self._user is not None:
            return "Basic " + base64.b64encode(self._user.encode()).decode()
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ServerError("OPENAI_API_KEY holds characters that stand in no header")
        return f"Bearer {key}" if key else None

    def _safe(self, text: str) -> str:
        """A text that the server sent, without what it was sent in confidence."""
        secrets = [os.environ.get("OPENAI_API_KEY", "").strip()]
        if self._user is not None:
            secrets += [self._user, self._user.partition(":")[2], base64.b64encode(self._user.encode()).decode()]
        for secret in filter(None, secrets):
            text = text.replace(secret, HIDDEN)
        return text


def _without_user(url: str) -> tuple[str, str | None]:
    """An address, and the `user:password` that stood in it; `ValueError` for one with a query."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    if parts.query or parts.fragment:
        raise ValueError(
            f"{parts.scheme}://{host}{parts.path}: the address of a server ends with its path, without ? or #"
        )
    user = unquote(parts.netloc.rpartition("@")[0]) or None
    return urlunsplit((parts.scheme, host, parts.path, "", "")), user


def _texts(message: Mapping[str, Any]) -> tuple[str, str]:
    """What a message says, and what it thought before that: texts, or texts in parts."""
    return _joined(message.get("content")), _joined(message.get("reasoning_content") or message.get("reasoning"))


def _joined(content: Any) -> str:
    if isinstance(content, list):
        return "".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return content if isinstance(content, str) else ""


def _seconds(retry_after: str | None) -> float:
    """What `Retry-After` asks for, a number of seconds or a date; 0 where it says nothing that can be read."""
    if retry_after is None:
        return 0.0
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
