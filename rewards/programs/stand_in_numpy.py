"""What tests call `numpy` where it is not: comparisons of numbers and nested lists, as HumanEval+ makes them.

The judge sends this source to the sandbox of the tests. `code_names.STAND_INS` lists what there is.
"""

import math
import types
from collections.abc import Callable
from typing import Any

float32 = float64 = float
int32 = int64 = int
bool_ = bool


def _flat(value: Any, place: tuple[int, ...] = ()) -> list[tuple[tuple[int, ...], Any]]:
    """Numbers with their places."""
    if isinstance(value, list | tuple | range):
        return [pair for i, item in enumerate(value) for pair in _flat(item, (*place, i))]
    if not isinstance(value, int | float | complex):
        raise TypeError(f"{type(value).__name__} is no number")
    return [(place, value)]


def _is_close(a: Any, b: Any, rtol: float, atol: float, equal_nan: bool) -> bool:
    if a != a or b != b:
        return equal_nan and a != a and b != b
    return bool(a == b or (not math.isinf(abs(b)) and abs(a - b) <= atol + rtol * abs(b)))


def allclose(a: Any, b: Any, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> bool:
    """Whether all numbers are near; a single number is compared with each one."""
    ours, theirs = _flat(a), _flat(b)
    if len(theirs) == 1 and theirs[0][0] == ():
        theirs = [(place, theirs[0][1]) for place, _ in ours]
    if len(ours) == 1 and ours[0][0] == ():
        ours = [(place, ours[0][1]) for place, _ in theirs]
    if [place for place, _ in ours] != [place for place, _ in theirs]:
        raise ValueError("operands could not be broadcast together")
    return all(_is_close(x, y, rtol, atol, equal_nan) for (_, x), (_, y) in zip(ours, theirs, strict=True))


def isclose(a: Any, b: Any, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> Any:
    """The same for two numbers, or number by number."""
    if not isinstance(a, list | tuple):
        return _is_close(a, b, rtol, atol, equal_nan)
    others = b if isinstance(b, list | tuple) else [b] * len(a)
    return [isclose(x, y, rtol, atol, equal_nan) for x, y in zip(a, others, strict=True)]


def array_equal(a: Any, b: Any) -> bool:
    """Whether places and numbers are the same."""
    return _flat(a) == _flat(b)


def _assert(function: Callable[..., bool]) -> Callable[..., None]:
    def check(actual: Any, desired: Any, rtol: float = 1e-07, atol: float = 0, **_: Any) -> None:
        if not function(actual, desired, rtol, atol):
            raise AssertionError("not equal to tolerance")

    return check


testing = types.SimpleNamespace(
    assert_allclose=_assert(lambda a, b, rtol, atol: allclose(a, b, rtol, atol, True)),
    assert_array_equal=_assert(lambda a, b, *_: array_equal(a, b)),
    assert_equal=_assert(lambda a, b, *_: bool(a == b)),
    assert_almost_equal=_assert(lambda a, b, *_: allclose(a, b, 0, 1.5e-7)),
    assert_array_almost_equal=_assert(lambda a, b, *_: allclose(a, b, 0, 1.5e-6)),
)
