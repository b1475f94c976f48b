"""Tests of a program, taken apart: what it is asked, and what it must answer, so that the two can be kept apart.

`assert call == value` becomes the call, which the program's sandbox gets, and the value, which it does not. Everything else
(an assertion about an expression of several calls, a loop, `check(candidate)` with variables) stays a script, with the names
that it takes from the program. Tests of programs that read and write are a text in and a text out.

Only tests are parsed here, never a completion; nothing is evaluated.
"""

import ast
import builtins
import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lockstitch.rewards.sandbox.tagged import encode

_BUILTINS = frozenset(vars(builtins))
_CONTAINERS = {"set": set, "frozenset": frozenset, "tuple": tuple, "list": list}


class BadTest(ValueError):  # noqa: N818
    """A test that cannot be read: the data's fault, not the program's."""


@dataclass(frozen=True)
class Case:
    """A call, as source, and the value that it must return, as `tagged` data."""

    call: str
    expected: Any


@dataclass(frozen=True)
class Script:
    """A test that must run through, and the names in it that are the program's."""

    source: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Dialogue:
    """What a program reads, and what it must write."""

    stdin: str
    stdout: str


Test = Case | Script | Dialogue


def parse_tests(sources: Sequence[str], known: Iterable[str] = ()) -> tuple[Test, ...]:
    """The tests in source texts such as MBPP's `test_list`, one or more for each.

    A text of assertions only is one test for each of them; any other is a single test.

    Args:
        sources: Python source, one text for each test or group of tests.
        known: names that the set-up defines, which are not the program's.

    Returns:
        A call is taken out of a test only if its arguments are literals or the program's own affair. What names
        of others make of them is computed with the test: where the program could redefine `encode`, `decode(encode("x"))`
        would give the answer away.

    Raises:
        BadTest: one of them is not Python, or nests too deeply to be written out.
    """
    with _nesting_is_bad():
        return tuple(test for source in sources for test in _tests_of(_parse(source).body, frozenset(known)))


def parse_check(source: str, entry_point: str, known: Iterable[str] = ()) -> tuple[tuple[Test, ...], str]:
    """HumanEval's `test`: the tests in its `check(candidate)`, and the source of everything else.

    If the body of `check` is assertions only, each is a test, else the whole is one.

    Raises:
        BadTest: it is not Python, nests too deeply to be written out, or has no `check` of one argument.
    """
    with _nesting_is_bad():
        module = _parse(source)
        checks = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "check"]
        if len(checks) != 1 or len(checks[0].args.args) != 1:
            raise BadTest("a test without a function check(candidate)")
        (check,) = checks
        others = ast.Module([node for node in module.body if node is not check], [])
        renamed = _Rename(check.args.args[0].arg, entry_point)
        scope = frozenset(known).union(_bound(others)) - {entry_point}
        if _only_assertions(check.body):
            body = [renamed.visit(node) for node in check.body]
            return tuple(_tests_of(body, scope)), ast.unparse(others)
        whole = ast.unparse(check) + f"\ncheck({entry_point})"
        return (Script(whole, _names([check], scope | {"check"}, entry_point)),), ast.unparse(others)


def names_of_setup(source: str) -> frozenset[str] | None:
    """The names that a text of the data set (a set-up, a header) defines; None if it cannot run without the program.

    That is where it is not Python by itself, or uses names that neither it nor Python defines.
    """
    try:
        tree = _parse(source)
    except BadTest:
        return None
    return None if _names(tree.body, frozenset()) else _bound(tree)


def called_names(tests: Iterable[Test]) -> frozenset[str]:
    """The names of the program that tests call."""
    names: set[str] = set()
    for test in tests:
        if isinstance(test, Case):
            names.add(test.call.partition("(")[0])
        elif isinstance(test, Script):
            names.update(test.names)
    return frozenset(names)


@contextlib.contextmanager
def _nesting_is_bad() -> Iterator[None]:
    """What `ast.parse` takes, `ast.unparse` may not: it recurses in Python, and by several frames for each level."""
    try:
        yield
    except RecursionError:
        raise BadTest("a test that nests too deeply") from None


def _parse(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadTest(f"a test that is not Python: {type(error).__name__}: {error}") from None


def _tests_of(body: Sequence[ast.stmt], known: frozenset[str]) -> Iterator[Test]:
    if not _only_assertions(body):
        yield _script(body, known)
        return
    for node in body:
        if isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant):
            yield _case(node.test, known) or _script([node], known)


def _script(body: Sequence[ast.stmt], known: frozenset[str]) -> Script:
    """The statements as a script. Some of MBPP's use modules that only the program imports: here the script does."""
    names = _names(body, known)
    tree = ast.Module(list(body), [])
    used = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    modules = [
        name for name in names if name in sys.stdlib_module_names
        and all(id(node) in used for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == name)
    ]  # fmt: skip
    imports = "".join(f"import {name}\n" for name in modules)
    return Script(imports + ast.unparse(tree), tuple(name for name in names if name not in modules))


def _only_assertions(body: Sequence[ast.stmt]) -> bool:
    """Nothing but assertions and what does nothing, such as a documentation text."""
    return all(
        isinstance(node, ast.Assert | ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in body
    )


def _case(test: ast.expr, known: frozenset[str]) -> Case | None:
    """The case that `call == value` is, in either order, or `call is None` and the like; None for anything else."""
    if not isinstance(test, ast.Compare) or len(test.ops) != 1:
        return None
    left, operator, right = test.left, test.ops[0], test.comparators[0]
    if isinstance(operator, ast.Is):
        if not (isinstance(right, ast.Constant) and (right.value is None or isinstance(right.value, bool))):
            return None
    elif not isinstance(operator, ast.Eq):
        return None
    for call, value in ((left, right), (right, left)):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not _loaded(call) & (known | _BUILTINS):
            try:
                return Case(ast.unparse(call), encode(_literal(value)))
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                continue
    return None


def _literal(node: ast.expr) -> Any:
    """The value of a literal, or of `set([...])` and its like."""
    if (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CONTAINERS
        and len(node.args) == 1 and not node.keywords
    ):  # fmt: skip
        return _CONTAINERS[node.func.id](ast.literal_eval(node.args[0]))
    return ast.literal_eval(node)


def _bound(tree: ast.AST) -> frozenset[str]:
    """The names that are given a meaning anywhere in the tree."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.add(node.name)
    return frozenset(names)


def _names(body: Sequence[ast.stmt], known: frozenset[str], *more: str) -> tuple[str, ...]:
    """The names that the statements use and nobody else defines: the program's."""
    tree = ast.Module(list(body), [])
    return tuple(sorted((_loaded(tree) - _bound(tree) - known - _BUILTINS) | set(more)))


def _loaded(tree: ast.AST) -> frozenset[str]:
    """The names that are read anywhere in the tree."""
    return frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))


class _Rename(ast.NodeTransformer):
    """Calls one name by another."""

    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, new

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.copy_location(ast.Name(self.new if node.id == self.old else node.id, node.ctx), node)
