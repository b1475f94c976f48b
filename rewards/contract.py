"""What a reward is: TRL's calling convention, and what our rewards share to keep it.

A reward is a module-level callable `(prompts, completions, **columns) -> list[float | None]`. TRL passes every column of the
data set as a list with one entry per completion, and besides these `completion_ids`, `trainer_state`, `log_extra` and
`log_metric`. Completions are texts or conversations. A reward returns one float per completion, or None where it does not
apply or could not be computed: None is left out of the sum and of the means, while 0.0 says that an answer is wrong.
Rewards are pickled when they are sent to other processes, so a configured one is an instance of a class, not a closure.

Left out: reward models, which TRL calls in other ways; `async` rewards are for training alone.
"""

import functools
import inspect
import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lockstitch.errors import OthersCodeError

logger = logging.getLogger(__name__)

Completion = str | Sequence[Mapping[str, Any]]
Value = float | None
LogExtra = Callable[[str, list[Any]], None]
LogMetric = Callable[[str, float], None]

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
# What TRL passes by keyword besides the columns of the data set.
RESERVED = frozenset(
    {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}
)


def completion_texts(completions: Sequence[Completion]) -> list[str]:
    """The text of every completion: itself, or the content of the last message of a conversation.

    A message without content (a bare tool call) is an empty text; of content in parts, the text parts are joined.
    """
    return [text if isinstance(text, str) else _content(text) for text in completions]


def _content(messages: Sequence[Mapping[str, Any]]) -> str:
    content = messages[-1].get("content") if messages else None
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part["text"] for part in content if part.get("type") == "text")


def rows_of(columns: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """`count` rows of the columns: every list of that length that is not one of TRL's own arguments."""
    kept = {
        name: column
        for name, column in columns.items()
        if name not in RESERVED and isinstance(column, list | tuple) and len(column) == count
    }
    return [{name: column[i] for name, column in kept.items()} for i in range(count)]


def printable(text: str) -> str:
    """A text that others wrote, for logs, tables and terminals: what those would act on, or cannot write, is escaped.

    That is all that Python's `repr` would escape but quotes: control and format characters, ends of lines, odd blanks,
    halves of surrogate pairs.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def report_none(name: str, values: Sequence[Value], log_metric: LogMetric | None, reason: str = "") -> None:
    """Logs the share of None as the metric `rewards/NAME/none`, and how many there are as a warning if there are any.

    The metric is logged when there are none, too: in distributed training all processes must log the same names.
    """
    none = sum(value is None for value in values)
    if none:
        why = reason and f" ({printable(reason)})"
        logger.warning("%s: %d of %d completions not scored%s", name, none, len(values), why)
    if log_metric is not None and values:
        log_metric(f"rewards/{name}/none", none / len(values))


class PerSample:
    """A reward made of a function of one completion; see `per_sample`."""

    __name__: str

    def __init__(self, function: Callable[..., Value], name: str) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.__name__ = name

    def __repr__(self) -> str:
        return f"per_sample({self.function.__module__}.{self.function.__qualname__}, {self.__name__!r})"

    def __reduce__(self) -> str | tuple[Any, ...]:
        # A decorated function's name leads to this object, so it is that name that is pickled.
        path = self.function.__qualname__
        if vars(sys.modules[self.function.__module__]).get(path) is self:
            return path
        return PerSample, (self.function, self.__name__)

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Completion],
        log_metric: LogMetric | None = None,
        **columns: Any,
    ) -> list[Value]:
        """One value per completion, from the columns that the function names (all of them if it takes `**row`)."""
        texts = completion_texts(completions)
        rows = rows_of({**columns, "prompt": list(prompts)}, len(texts))
        takes = list(inspect.signature(self.function).parameters.values())[1:]
        needed = {p.name for p in takes if p.kind in _BY_NAME and p.default is p.empty}
        missing = needed.difference(*rows[:1]) if rows else set()
        if missing:
            raise ValueError(f"reward {self.__name__!r} needs the columns {sorted(missing)}; given: {sorted(rows[0])}")
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in takes):
            names = {parameter.name for parameter in takes}
            rows = [{name: value for name, value in row.items() if name in names} for row in rows]
        values = [self.function(text, **row) for text, row in zip(texts, rows, strict=True)]
        scored = [None if value is None else float(value) for value in values]
        report_none(self.__name__, scored, log_metric)
        return scored


def per_sample(function: Callable[..., Value], name: str | None = None) -> PerSample:
    """Makes a reward of a module-level `function(completion_text, **row) -> float | None`.

    The function takes the completion's text first and then whichever of the row's columns it names, or all of them as
    `**row`; `prompt` is one of them. A decorator, or a call whose result has a name of its own:

        @per_sample
        def near_reward(completion: str, answer: str) -> float: ...

    Args:
        function: what scores one completion.
        name: what the reward is called in metrics; the function's own name by default.
    """
    return PerSample(function, name or function.__name__)


def checked_values(name: str, values: Any, count: int) -> list[Value]:
    """What a reward returned for `count` completions as floats, of numbers of Python, NumPy or torch; NaN is None.

    Raises `OthersCodeError` for anything but a list of that length of finite numbers and None.
    """
    if inspect.iscoroutine(values):
        values.close()
        raise OthersCodeError(f"reward {name!r} is asynchronous, and only training waits for such a one")
    if not _is_list(values) or len(values) != count:
        raise OthersCodeError(
            f"reward {name!r} returned {_shown(values)} for {count} completions; a list of {count} numbers is needed"
        )
    numbers: list[Value] = []
    for value in values:
        number = math.nan if value is None else _number(value)
        if math.isinf(number):
            raise OthersCodeError(
                f"reward {name!r} returned {_shown(value)} for a completion; a finite number is needed, or None"
            )
        numbers.append(None if math.isnan(number) else number)
    return numbers


def _is_list(values: Any) -> bool:
    """Whether it has an order and a length; so has an array, but not one of no dimensions."""
    ordered = hasattr(values, "__len__") and hasattr(values, "__getitem__")
    return ordered and not isinstance(values, Mapping | str | bytes) and getattr(values, "ndim", 1) > 0


def _number(value: Any) -> float:
    """A reward's value; infinite where it is none, or where no float holds it."""
    try:
        return math.inf if isinstance(value, str | bytes | bytearray) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last is torch's
        return math.inf


def _shown(value: Any) -> str:
    """A value in a line of at most 80 characters; Python does not write an integer of thousands of digits."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:
        text = type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}..."


def combine(values: Sequence[Sequence[Value]], weights: Sequence[float] | None = None) -> list[Value]:
    """The weighted sum of several rewards, completion by completion, as TRL's `reward_weights` make it.

    Args:
        values: for each reward, one value per completion.
        weights: one per reward; all 1.0 by default.

    Returns:
        The sums over the rewards that are not None; None where every reward is.

    Raises:
        ValueError: as many weights as rewards are needed.
    """
    weights = [1.0] * len(values) if weights is None else weights
    if len(weights) != len(values):
        raise ValueError(f"{len(weights)} weights for {len(values)} rewards; one per reward is needed")
    sums: list[Value] = []
    for row in zip(*values, strict=True):
        known = [weight * value for weight, value in zip(weights, row, strict=True) if value is not None]
        sums.append(sum(known) if known else None)
    return sums
