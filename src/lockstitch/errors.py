"""The one place that turns a user's mistake into a line on the error stream and exit status 2.

What is the user's is what the code says so by: `ValueError` with the value and what is accepted, and `OSError` for what
cannot be read or written. Everything else is a fault of ours, and stays a traceback.

    with one_line("lockstitch sample"):
        ...
"""

import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

from lockstitch.files import unlock_all

HIDDEN = "***"
_USER = re.compile(r"(?<=://)[^/\s]*@")
_QUERY = re.compile(r"(?<=[?&])([\w.-]*(?:key|token|secret|password|signature)[\w.-]*=)[^&\s]+", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """A text with `***` in the place of the users, passwords and keys of the addresses in it."""
    return _QUERY.sub(rf"\1{HIDDEN}", _USER.sub(f"{HIDDEN}@", text))


class OthersCodeError(ValueError):
    """Code that a user named, a reward or a scorer, raised; says what, and in which line."""


GOES_ON = "the same command goes on where this one stopped"


@contextmanager
def one_line(
    program: str,
    interrupted: str = "interrupted",
    mistakes: type[Exception] | tuple[type[Exception], ...] = (ValueError, OSError),
) -> Iterator[None]:
    """Within the block, mistakes end the process with 2 and a message, Ctrl-C with 130, and a closed pipe in silence.

    What the output's encoding lacks is written as an escape, and does not end a run whose work is done.

    Raises:
        SystemExit: in each of these cases.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except BrokenPipeError:
        # Whoever read our output has gone: nothing is left to say, nor anyone to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except mistakes as error:
        print(f"{program}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"\n{program}: {interrupted}", file=sys.stderr)
        raise SystemExit(130) from None


@contextmanager
def others_code(
    what: str, mistakes: type[BaseException] | tuple[type[BaseException], ...] = (Exception, SystemExit)
) -> Iterator[None]:
    """Within the block, which runs code that a user named, whatever that raises is said of `what`, with its place.

    A `sys.exit` in it is said, too, and does not end the command in silence.

    `mistakes` may be fewer, where the code is ours and called with what the user gave.

    Raises:
        OthersCodeError: in the place of any other exception.
    """
    try:
        yield
    except OthersCodeError:
        raise
    except mistakes as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise OthersCodeError(f"{what} raised {said} ({place.filename}, line {place.lineno})") from error


def reported(
    program: str, interrupted: str = "interrupted", *more: type[Exception]
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Makes a command's `main` of a function that raises: it returns the exit status in place of raising.

    `more` are further exceptions that are the user's to mend.
    """

    def decorate(main: Callable[..., int]) -> Callable[..., int]:
        @wraps(main)
        def reported_main(argv: list[str] | None = None) -> int:
            try:
                with one_line(program, interrupted, (ValueError, OSError, *more)):
                    return main(argv)
            except SystemExit as ended:
                if isinstance(ended.code, int):
                    return ended.code
                raise
            finally:
                unlock_all()

        return reported_main

    return decorate
