"""Requests to a server that speaks JSON over HTTP, over the standard library's client: tried again, and without secrets.

Broken connections, requests that take too long, and the statuses 408, 409, 429 and 5xx are tried again, after what the
server asks to wait (`Retry-After`), or with doubling pauses. A key is read from the environment, and a user's name and
password may stand in the address: none of them is in a message.
"""

import base64
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from lockstitch.errors import HIDDEN

LONGEST_WAIT = 600.0  # seconds that a server may ask to wait for
LONGEST_PAUSE = 60.0  # seconds between two attempts where it asks for nothing
_LATER = (408, 409, 429)  # statuses after which another attempt may succeed, beside 500 and above


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


class Server:
    """A server, and what it takes to ask it.

    Args:
        url: its address, to which paths are added.
        key: the environment variable that holds its key, if it has one.
        retries: how it is asked.
        what: what is asked for there, in words for messages.
        user: `name:password`, which goes before the key.
    """

    def __init__(self, url: str, key: str, retries: Retries, what: str = "", user: str | None = None) -> None:
        self.url, self.retries = url, retries
        self._key, self._what, self._user = key, what, user

    def request(self, path: str, body: dict[str, Any] | None, stop: threading.Event) -> Any:
        """The JSON reply to a GET, or to a POST of `body`; `ServerError` when all attempts have failed, or at `stop`."""
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
                pause = min(LONGEST_PAUSE, self.retries.backoff * 2 ** (attempt - 1)) * random.uniform(1.0, 1.25)
                if stop.wait(max(pause, error.wait)):
                    raise
        raise AssertionError("at least one attempt")

    def _once(self, path: str, body: dict[str, Any] | None, attempt: int) -> Any:
        where = f"{self.url}{path}{self._what}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers={"Content-Type": "application/json"})
        if said := self._authorization():
            request.add_unredirected_header("Authorization", said)
        try:
            with _OPENER.open(request, timeout=self.retries.timeout) as response:
                reply = json.load(response)
        except urllib.error.HTTPError as error:
            reason = self.safe(_body_of(error))[:500] or error.reason
            again = error.code in _LATER or error.code >= 500
            wait = _seconds(error.headers.get("Retry-After"))
            said = f"{where} refused after {attempt} attempt(s): HTTP {error.code}: {reason}"
            raise ServerError(said, error.code, again, wait) from None
        except (ValueError, RecursionError) as error:
            raise ServerError(f"{where} sent no JSON: {self.safe(str(error))[:200]}") from None
        except (OSError, HTTPException) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(cause, TimeoutError):
                said = f"no answer within {self.retries.timeout:g} seconds, after {attempt} attempt(s)"
            else:
                said = f"no connection after {attempt} attempt(s): {self.safe(str(cause)) or type(cause).__name__}"
            raise ServerError(f"{where}: {said}", again=True) from None
        if isinstance(reply, dict) and isinstance(failed := reply.get("error"), dict) and "choices" not in reply:
            # Some answer 200 and say in the reply what went wrong.
            code = failed.get("code") if isinstance(failed.get("code"), int) else None
            said = (
                f"{where} refused after {attempt} attempt(s): {self.safe(str(failed.get('message') or failed))[:500]}"
            )
            raise ServerError(said, code, code is None or code in _LATER or code >= 500)
        return reply

    def _secret(self) -> str:
        return os.environ.get(self._key, "").strip()

    def _authorization(self) -> str | None:
        if self._user is not None:
            return "Basic " + base64.b64encode(self._user.encode()).decode()
        key = self._secret()
        if not (key.isascii() and key.isprintable()):
            raise ServerError(f"{self._key} holds characters that stand in no header")
        return f"Bearer {key}" if key else None

    def safe(self, text: str) -> str:
        """A text that the server sent, without what it was sent in confidence."""
        secrets = [self._secret()]
        if self._user is not None:
            secrets += [self._user, self._user.partition(":")[2], base64.b64encode(self._user.encode()).decode()]
        for secret in filter(None, secrets):
            text = text.replace(secret, HIDDEN)
        return text


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect of a GET; one of a POST would become a GET without its body."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """As the standard library's; `HTTPError` for a POST."""
        if req.data is not None:
            to = urlsplit(newurl)
            where = urlunsplit((to.scheme, to.netloc.rpartition("@")[2], to.path, "", ""))
            raise urllib.error.HTTPError(req.full_url, code, f"it moved to {where}: name that address", headers, None)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_Redirects)


def _body_of(error: urllib.error.HTTPError) -> str:
    """What was sent along with a refusal, as far as it comes."""
    try:
        return error.read(2000).decode(errors="replace").strip()
    except (OSError, HTTPException, AttributeError):
        return ""


def without_user(url: str) -> tuple[str, str | None]:
    """An address, and the `user:password` that stood in it; `ValueError` for one with a query."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    if parts.query or parts.fragment:
        raise ValueError(
            f"{parts.scheme}://{host}{parts.path}: the address of a server ends with its path, without ? or #"
        )
    user = unquote(parts.netloc.rpartition("@")[0]) or None
    return urlunsplit((parts.scheme, host, parts.path, "", "")), user


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
