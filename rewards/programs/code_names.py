"""Names in the source of tests: which of them are the program's, and what tests import.

Only tests and set-ups are parsed here, never a completion; nothing is evaluated.
"""

import ast
import builtins
import re
import sys
from collections.abc import Iterable, Sequence

BUILTINS = frozenset(vars(builtins)) | {"__name__", "__file__", "__doc__", "run_test_"}
# What tests may import though it is not there: `stand_ins` has the functions below of these.
STAND_INS = {
    "numpy": frozenset(
        {"allclose", "isclose", "array_equal", "testing", "float32", "float64", "int32", "int64", "bool_"}
    ),
    "pytest": frozenset({"raises", "approx", "mark", "main", "param", "fail"}),
}
# Anything else that is not of the standard library is what the tests' author called the program.
_PACKAGES = re.compile(
    "pandas|scipy|sklearn|torch|tensorflow|jax|sympy|networkx|matplotlib|seaborn|hypothesis|requests|parameterized|nose|mock"
    "|freezegun|yaml|bs4|lxml|PIL|cv2|flask|django|fastapi|sqlalchemy|pydantic|attrs?|tqdm|nltk|spacy|transformers|numba"
    "|statsmodels|psutil|dateutil|pytz|regex|sortedcontainers|aiohttp|httpx|testfixtures|ddt"
)
# Ways to reach into the program's process, where there is nothing to reach.
_OUT_OF_REACH = frozenset(
    {"monkeypatch", "capsys", "capfd", "mock", "patch", "MagicMock", "Mock", "getsource", "signature"}
)


class BadTest(ValueError):  # noqa: N818
    """A test that cannot be read or judged: the data's fault, not the program's."""


def parse(source: str) -> ast.Module:
    """The tree of a source of the data set; `BadTest` if it is not Python."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadTest(f"a test that is not Python: {type(error).__name__}: {error}") from None


def bound(tree: ast.AST) -> frozenset[str]:
    """The names that are given a meaning anywhere in the tree, other than by importing the program."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            names.add(node.name)
    return frozenset(names)


def loaded(tree: ast.AST) -> frozenset[str]:
    """The names that are read anywhere in the tree."""
    return frozenset(
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    )


def names_of_program(body: Iterable[ast.stmt], known: frozenset[str], *more: str) -> tuple[str, ...]:
    """The names that the statements use and nobody else defines, or that they import from the program."""
    tree = ast.Module(list(body), [])
    ours = known | BUILTINS
    return tuple(sorted((loaded(tree) - bound(tree) - ours) | _imported(tree) | set(more)))


def _imported(tree: ast.AST) -> set[str]:
    """What is taken from the program by `from solution import f` and by `import solution` and `solution.f`."""
    names: set[str] = set()
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and _is_program(node.module or ""):
            names.update(alias.name for alias in node.names if alias.name != "*")
        elif isinstance(node, ast.Import):
            modules.update((alias.asname or alias.name) for alias in node.names if _is_program(alias.name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            names.add(node.attr)
    return names


def _is_program(module: str) -> bool:
    top = module.partition(".")[0]
    return bool(top) and top not in sys.stdlib_module_names and top not in STAND_INS and not _PACKAGES.fullmatch(top)


def used_modules(trees: Iterable[ast.AST]) -> tuple[frozenset[str], frozenset[str]]:
    """The names by which tests import the program, and the stand-ins that they need.

    Raises:
        BadTest: they need a package or something of the program's process, neither of which they can get.
    """
    program: set[str] = set()
    stand_ins: set[str] = set()
    for tree in trees:
        called: dict[str, str] = {}  # what packages are called here
        for node in ast.walk(tree):
            for module, name, alias in _imports(node):
                top = module.partition(".")[0]
                if _PACKAGES.fullmatch(top):
                    raise BadTest(f"its tests need the package {top}")
                if top in STAND_INS:
                    stand_ins.add(top)
                    called[alias] = top
                    _check_stand_in(top, name)
                elif _is_program(module):
                    program.add(module)
                if name in _OUT_OF_REACH or top == "tempfile":
                    raise BadTest(f"its tests use {name or top}, which does not reach the program")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
                raise BadTest("its tests use files, which do not reach the program")
            if isinstance(node, ast.Attribute) and node.attr in _OUT_OF_REACH | {"stdin"}:
                raise BadTest(f"its tests use {node.attr}, which does not reach the program")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in called:
                _check_stand_in(called[node.value.id], node.attr)
    return frozenset(program), frozenset(stand_ins)


def _imports(node: ast.AST) -> Iterable[tuple[str, str | None, str]]:
    """Module, name in it, and what it is called, for each import of a statement."""
    if isinstance(node, ast.Import):
        return [(alias.name, None, alias.asname or alias.name.partition(".")[0]) for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [(node.module or "", alias.name, alias.asname or alias.name) for alias in node.names]
    return []


def _check_stand_in(package: str, name: str | None) -> None:
    if name is not None and name not in STAND_INS[package]:
        raise BadTest(f"its tests need {package}.{name}")


def modules_without_import(body: Sequence[ast.stmt], names: Sequence[str]) -> list[str]:
    """Modules of Python's own among the names, of which only attributes are used: what some tests forget to import."""
    tree = ast.Module(list(body), [])
    used = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return [
        name
        for name in names
        if name in sys.stdlib_module_names
        and all(id(node) in used for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == name)
    ]
