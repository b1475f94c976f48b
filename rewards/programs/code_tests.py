"""Tests of a program, taken apart: what it is asked, and what it must answer, so that the two can be kept apart.

`assert call == value` becomes the call, which the program's sandbox gets, and the value, which it does not. Everything else
(an assertion about an expression of several calls, a loop, `check(candidate)` with variables) stays a script, with the names
that it takes from the program. Functions `test_...` and classes of tests that nobody calls are called. What neither asks
the program anything nor checks anything is no test. Tests of programs that read and write are a text in and a text out.

Only tests are parsed here, never a completion; nothing is evaluated.
"""

import ast
import contextlib
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lockstitch.rewards.programs.code_names import (
    BUILTINS,
    BadTest,
    bound,
    loaded,
    modules_without_import,
    names_of_program,
    parse,
    used_modules,
)
from lockstitch.rewards.programs.code_shape import (
    DEFINITIONS,
    AskForClass,
    as_meant,
    checks,
    is_call_of,
    is_true,
    only_assertions,
    uncalled,
)
from lockstitch.rewards.sandbox.tagged import encode

_CONTAINERS = {"set": set, "frozenset": frozenset, "tuple": tuple, "list": list}


@dataclass(frozen=True)
class Case:
    """A call, as source, and the value that it must return, as `tagged` data.

    If `is_wrapped`, the one that the value holds is right, too; if `is_json`, tuples and integers as keys are what JSON
    makes of them.
    """

    call: str
    expected: Any
    is_wrapped: bool = False
    is_json: bool = False


@dataclass(frozen=True)
class Script:
    """A test that must run through, and the names in it that are the program's."""

    source: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dialogue:
    """What a program reads, and what it must write."""

    stdin: str
    stdout: str


Test = Case | Script | Dialogue


@dataclass(frozen=True)
class Tests:
    """What a row has.

    Attributes:
        tests: what must be passed.
        setup: what scripts stand on, in their sandbox, in this order.
        classes: names of classes that the set-up defines on both sides.
        modules: names by which the tests import the program.
        stand_ins: packages that they import and that something stands in for.
    """

    tests: tuple[Test, ...]
    setup: tuple[Script, ...] = ()
    classes: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    stand_ins: tuple[str, ...] = ()


@dataclass
class _Reader:
    """Reads one source after another; `known` are the names that are not the program's."""

    known: frozenset[str] = frozenset()
    asks: bool = False  # whether one of the known names may ask the program something
    setup: list[Script] = field(default_factory=list)
    tests: list[Test] = field(default_factory=list)
    trees: list[ast.AST] = field(default_factory=list)

    def result(self, classes: Iterable[str] = ()) -> Tests:
        modules, stand_ins = (tuple(sorted(names)) for names in used_modules(self.trees))
        return Tests(tuple(self.tests), tuple(self.setup), tuple(sorted(classes)), modules, stand_ins)

    def read_setup(self, sources: Sequence[str]) -> set[str]:
        """Source that the program sees, too; returns the names of classes in it that are plain enough to cross."""
        classes: set[str] = set()
        for source in sources:
            body = parse(source).body
            if body:
                self.add_setup(body)
            plain = [node for node in body if isinstance(node, ast.ClassDef) and not node.bases and not node.keywords]
            classes |= {node.name for node in plain}
        return classes

    def add_setup(self, body: Sequence[ast.stmt], *more: str) -> None:
        """Source that runs before the tests and is none."""
        script = self.script(body, *more)
        if script.source:
            self.setup.append(script)
        self.asks = self.asks or bool(script.names)
        self.learn(body)

    def learn(self, body: Sequence[ast.stmt]) -> None:
        """What the statements define is nobody else's from now on."""
        tree = ast.Module(list(body), [])
        self.known |= bound(tree) - frozenset(names_of_program(body, frozenset()))
        self.trees.append(tree)

    def script(self, body: Sequence[ast.stmt], *more: str) -> Script:
        """The statements as a script. Some of MBPP's use modules that only the program imports: here the script does."""
        names = names_of_program(body, self.known, *more)
        modules = modules_without_import(body, names)
        imports = "".join(f"import {name}\n" for name in modules)
        tree = AskForClass().visit(ast.Module(list(body), []))
        return Script(imports + ast.unparse(tree), tuple(name for name in names if name not in modules))

    def add_test(self, body: Sequence[ast.stmt], *more: str) -> None:
        """A test, if it asks the program anything."""
        script = self.script(body, *more)
        if script.names or (self.asks and loaded(ast.Module(list(body), [])) & self.known):
            self.tests.append(script)
            self.learn(body)
        else:
            self.add_setup(body, *more)

    def add_assertions(self, body: Sequence[ast.stmt]) -> None:
        """One test for each assertion."""
        for node in body:
            if isinstance(node, ast.Assert) and not is_true(node.test):
                case = _case(node.test, self.known)
                if case is None:
                    self.add_test([node])
                else:
                    self.tests.append(case)

    def add(self, body: list[ast.stmt], entry_point: str | None = None) -> None:
        """One source: assertions, tests that must be called, or statements."""
        body = [as_meant(node) for node in body]
        if only_assertions(body):
            self.add_assertions(body)
            return
        calls = list(uncalled(body, entry_point))
        if checks([node for node in body if not isinstance(node, DEFINITIONS)], body):
            self.add_test(body)
        else:
            self.add_setup(body)
        everything = [node for tree in self.trees if isinstance(tree, ast.Module) for node in tree.body]
        for call in calls:
            inside = frozenset(names_of_program(body, self.known)) | (loaded(parse(call)) - self.known - BUILTINS)
            if (inside or self.asks) and checks(parse(call).body, everything):
                self.tests.append(Script(call, tuple(sorted(inside))))


def parse_tests(
    sources: Sequence[str], known: Iterable[str] = (), *, setup: Sequence[str] = (), entry_point: str | None = None
) -> Tests:
    """The tests in source texts such as MBPP's `test_list`, one or more for each.

    A text of assertions only is one test for each of them; any other is a single test, or one for each function
    `test_...` and class of tests in it. A comparison that stands alone is meant as an assertion.

    Args:
        sources: Python source, one text for each test or group of tests.
        known: names that are not the program's.
        setup: sources that run before the tests.
        entry_point: the function that `check(candidate)` is for.

    Returns:
        A call is taken out of a test only if its arguments are literals or the program's own affair. What names
        of others make of them is computed with the test: where the program could redefine `encode`, `decode(encode("x"))`
        would give the answer away.

    Raises:
        BadTest: one of them is not Python, nests too deeply to be written out, or needs what it cannot get.
    """
    with _nesting_is_bad():
        reader = _Reader(frozenset(known))
        classes = reader.read_setup(setup)
        for source in sources:
            reader.add(_at_the_margin(source).body, entry_point)
        return reader.result(classes)


def parse_check(source: str, entry_point: str, *, header: str | None = None) -> Tests:
    """HumanEval's `test`: the tests in its `check(candidate)`.

    If the body of `check` is assertions only, each is a test, else the whole is one. Without a `check`, functions
    `test_...` and classes of tests are the tests.

    Args:
        source: the column `test`.
        entry_point: the function, or `Solution().method`.
        header: what the prompt begins, which is not for the program to redefine.

    Raises:
        BadTest: it is not Python, nests too deeply to be written out, or has no tests.
    """
    with _nesting_is_bad():
        module, target = parse(source), _expression(entry_point)
        root = min(loaded(target), default="")
        reader = _Reader()
        classes = reader.read_setup([header] if header is not None and parses(header) else [])
        reader.known -= {root}
        found = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "check"]
        if len(found) != 1 or len(found[0].args.args) != 1:
            if not list(uncalled(module.body, None)):
                raise BadTest("a test without a function check(candidate)")
            reader.add(module.body)
            return reader.result(classes)
        (check,) = found
        others = [node for node in module.body if node is not check and not is_call_of(node, "check")]
        if others:
            reader.add_setup(others)
        reader.known -= {root}
        reader.trees.append(check)
        if only_assertions(check.body):
            reader.add_assertions([_Rename(check.args.args[0].arg, target).visit(node) for node in check.body])
        elif checks([check], [check, *others]):
            whole = [check, *parse(f"check({entry_point})").body]
            reader.add_test(whole, root)
        return reader.result(classes)


def parse_setup(sources: Iterable[str]) -> bool:
    """Whether the sources (a set-up, a header) can run without the program.

    They cannot where they use names that neither they nor Python defines.
    """
    body = [node for source in sources for node in parse(source).body]
    return not names_of_program(body, frozenset())


def parses(source: str) -> bool:
    """Whether it is Python by itself."""
    try:
        parse(source)
    except BadTest:
        return False
    return True


def called_names(tests: Iterable[Test]) -> frozenset[str]:
    """The names of the program that tests call."""
    names: set[str] = set()
    for test in tests:
        if isinstance(test, Case):
            names.add(test.call.partition("(")[0].partition(".")[0].partition("[")[0])
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


def _at_the_margin(source: str) -> ast.Module:
    """The tree of a test, which may be indented as a whole."""
    try:
        return parse(source)
    except BadTest:
        return parse(textwrap.dedent(source))


def _expression(source: str) -> ast.expr:
    try:
        return ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise BadTest(f"an entry point {source[:50]!r} that is no expression") from None


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
        if _is_asked(call) and not loaded(call) & (known | BUILTINS):
            try:
                return Case(ast.unparse(call), encode(_literal(value)))
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                continue
    return None


def _is_asked(node: ast.expr) -> bool:
    """Whether it is one name of the program's, called, indexed and so on: no operation of the test's own."""
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Call):
            node = node.func
        elif isinstance(node, ast.Attribute | ast.Subscript):
            if isinstance(node.value, ast.Name) and node.value.id in sys.stdlib_module_names:
                return False
            node = node.value
        else:
            return False
    return True


def _literal(node: ast.expr) -> Any:
    """The value of a literal, or of `set([...])` and its like."""
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in _CONTAINERS
        and len(node.args) == 1
        and not node.keywords
    ):
        return _CONTAINERS[node.func.id](ast.literal_eval(node.args[0]))
    return ast.literal_eval(node)


class _Rename(ast.NodeTransformer):
    """Puts an expression for a name."""

    def __init__(self, old: str, new: ast.expr) -> None:
        self.old, self.new = old, new

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.new if node.id == self.old else node
