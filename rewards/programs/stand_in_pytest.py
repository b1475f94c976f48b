"""What tests call `pytest` where it is not: `raises`, `approx`, `mark`, `param`, `fail`.

The judge sends this source to the sandbox of the tests; `tests_side.run_test` runs them. `code_names.STAND_INS` lists what
there is.
"""

import math
import re
from collections.abc import Callable
from typing import Any


class raises:  # noqa: N801 - the library's name
    """An error must come; a text that is searched for in it may be given."""

    def __init__(self, expected: Any, *call: Any, match: str | None = None, **kwargs: Any) -> None:
        self.expected, self.match = expected, match
        self.type: Any = None
        self.value: Any = None
        if call:
            with self:
                call[0](*call[1:], **kwargs)

    def __enter__(self) -> "raises":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        if error is None:
            raise AssertionError(f"nothing was raised instead of {self.expected!r}")
        if not isinstance(error, self.expected):
            return False
        self.type, self.value = kind, error
        if self.match is not None and not re.search(self.match, str(error)):
            raise AssertionError(f"{str(error)!r} does not match {self.match!r}")
        return True


class approx:  # noqa: N801 - the library's name
    """Equal to numbers that are near, also in lists, tuples and dictionaries."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self, expected: Any, rel: float | None = None, abs: float | None = None, nan_ok: bool = False
    ) -> None:
        self.expected, self.nan_ok = expected, nan_ok
        self.relative = 1e-6 if rel is None and abs is None else rel or 0.0
        self.absolute = 1e-12 if abs is None else abs

    def __eq__(self, other: object) -> bool:
        return self._is_near(self.expected, other)

    def _is_near(self, expected: Any, found: Any) -> bool:
        if isinstance(expected, dict):
            same_keys = isinstance(found, dict) and expected.keys() == found.keys()
            return same_keys and all(self._is_near(value, found[key]) for key, value in expected.items())
        if isinstance(expected, list | tuple):
            same_shape = type(found) in (list, tuple) and len(found) == len(expected)
            return same_shape and all(map(self._is_near, expected, found))
        if isinstance(expected, bool) or not (isinstance(expected, int | float) and isinstance(found, int | float)):
            return bool(expected == found)
        if math.isnan(expected) or math.isnan(found):
            return self.nan_ok and math.isnan(expected) and math.isnan(found)
        near = not math.isinf(expected) and abs(expected - found) <= max(self.absolute, self.relative * abs(expected))
        return expected == found or near


def param(*values: Any, **_: Any) -> Any:
    """One set of arguments."""
    return values


def fail(reason: str = "") -> None:
    """Fails the test."""
    raise AssertionError(reason)


class _Mark:
    """`mark.parametrize`, and other marks, which change nothing here."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def mark(*arguments: Any, **_: Any) -> Any:
            return arguments[0] if len(arguments) == 1 and callable(arguments[0]) else lambda function: function

        return mark

    def parametrize(self, names: Any, values: Any, **_: Any) -> Callable[[Any], Any]:
        """A function that runs once for each set of arguments."""
        words = [word.strip() for word in names.split(",")] if isinstance(names, str) else list(names)

        def row(value: Any) -> Any:
            return value if len(words) > 1 or (type(value) is tuple and len(value) == 1) else [value]

        sets = [dict(zip(words, row(value), strict=True)) for value in values]

        def mark(function: Any) -> Any:
            before = getattr(function, "_lockstitch_arguments", [{}])
            function._lockstitch_arguments = [{**one, **other} for one in before for other in sets]
            return function

        return mark


mark = _Mark()


def main(*_: Any, **__: Any) -> int:
    """Tests are run anyway."""
    return 0
