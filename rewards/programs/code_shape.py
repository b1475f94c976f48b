"""What the statements of a test are: assertions, tests that somebody must call, or neither; and what is meant by them."""

import ast
import re
from collections.abc import Iterator, Sequence
from typing import Any

from lockstitch.rewards.programs.code_names import BadTest, loaded

DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_CHECKS = ("assert", "raises", "fail", "check", "expect", "verify", "approx")


def as_meant(node: ast.stmt) -> ast.stmt:
    """A comparison that stands alone is an assertion, and whoever starts all tests is not needed."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Compare):
        return ast.copy_location(ast.Assert(node.value, None), node)
    return _NoRunner().visit(node)  # type: ignore[no-any-return]


_SKIPPED = re.compile(r"(?:unittest\.|(?:pytest\.)?mark\.)?skip(?:\(.*)?", re.DOTALL)


class _NoRunner(ast.NodeTransformer):
    """Leaves out `unittest.main()` and `pytest.main()`, wherever their results go, and tests that are always skipped."""

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, DEFINITIONS) and any(_SKIPPED.fullmatch(ast.unparse(one)) for one in node.decorator_list):
            return ast.copy_location(ast.Pass(), node)
        return super().visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        calls = [ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)]
        return ast.copy_location(ast.Pass(), node) if {"unittest.main", "pytest.main"} & set(calls) else node


class AskForClass(ast.NodeTransformer):
    """Asks an object itself for its class, since `type` does not know that it stands for another one."""

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        is_type = isinstance(node.func, ast.Name) and node.func.id == "type" and not node.keywords
        if not is_type or len(node.args) != 1 or isinstance(node.args[0], ast.Starred):
            return node
        return ast.copy_location(ast.Attribute(node.args[0], "__class__", ast.Load()), node)


def uncalled(body: Sequence[ast.stmt], entry_point: str | None) -> Iterator[str]:
    """Calls of the functions and classes of tests that the statements define and do not use."""
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    used = loaded(ast.Module([node for node in body if not isinstance(node, DEFINITIONS)], []))
    for node in body:
        if isinstance(node, functions) and node.name not in used:
            if node.name == "check" and entry_point and len(node.args.args) == 1:
                yield f"check({entry_point})"
            elif node.name.startswith("test"):
                arguments = node.args.args[: len(node.args.args) - len(node.args.defaults)]
                if arguments and "parametrize" not in ast.unparse(ast.List(node.decorator_list, ast.Load())):
                    raise BadTest(f"a test that needs fixtures: {arguments[0].arg}")
                yield f"run_test_({node.name})"
        elif isinstance(node, ast.ClassDef) and node.name not in used:
            of_unittest = any("TestCase" in ast.unparse(base) for base in node.bases)
            if of_unittest or node.name.startswith("Test"):
                yield f"run_test_({node.name})"


def checks(body: Sequence[ast.stmt], everything: Sequence[ast.stmt]) -> bool:
    """Whether statements can fail in another way than by an error: in what they do, or in the functions that they use."""
    used, waiting, nodes = set[str](), list[ast.AST](body), list[ast.AST]()
    functions = {node.name: node for node in everything if isinstance(node, DEFINITIONS)}
    while waiting:
        node = waiting.pop()
        nodes.append(node)
        for name in loaded(node) - used:
            used.add(name)
            if name in functions:
                waiting.append(functions[name])
    for node in [part for outer in nodes for part in alive(outer)]:
        if (isinstance(node, ast.Raise) and not _skips(node)) or (
            isinstance(node, ast.Assert) and not is_true(node.test)
        ):
            return True
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name not in functions and name.lstrip("_").startswith(_CHECKS):
                return True
    return False


def alive(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below and at one that can run and whose failure can be seen.

    Left out is what stands under `if False` and the like, in loops over nothing, behind `return` or a skipped test, and in a
    `try` that swallows failed assertions.
    """
    waiting = [node]
    while waiting:
        one = waiting.pop()
        yield one
        for name, value in ast.iter_fields(one):
            if isinstance(value, list) and not _is_dead(one, name):
                for child in value:
                    if isinstance(child, ast.AST):
                        waiting.append(child)
                        if isinstance(child, ast.stmt) and _ends(child):
                            break
            elif isinstance(value, ast.AST):
                waiting.append(value)


def _is_dead(node: ast.AST, field: str) -> bool:
    """Whether what stands in a field of a statement never runs, or can fail without anybody noticing."""
    if isinstance(node, ast.If | ast.While) and (truth := _constant(node.test)) is not None:
        return (field == "body" and not truth) or (field == "orelse" and truth)
    if isinstance(node, ast.For | ast.AsyncFor) and field == "body":
        return _is_empty(node.iter)
    if isinstance(node, ast.Try) and field == "body":
        return any(map(_swallows, node.handlers))
    if isinstance(node, ast.With | ast.AsyncWith) and field == "body":
        calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
        return any(ast.unparse(call.func).endswith("suppress") and any(map(_catches, call.args)) for call in calls)
    return False


def _constant(node: ast.expr) -> bool | None:
    """What a condition is, if it is always the same; else None."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        inner = _constant(node.operand)
        return None if inner is None else not inner
    if isinstance(node, ast.Constant):
        return bool(node.value)
    if isinstance(node, ast.List | ast.Tuple | ast.Set) and not node.elts:
        return False
    return False if isinstance(node, ast.Dict) and not node.keys else None


def _is_empty(node: ast.expr) -> bool:
    """Whether a loop is over nothing: `[]`, `""`, `range(0)`, `list()`, `zip([], x)`."""
    if _constant(node) is False:
        return True
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return False
    name, arguments = node.func.id, node.args
    if name == "range":
        return len(arguments) == 1 and isinstance(arguments[0], ast.Constant) and arguments[0].value == 0
    if name in ("list", "tuple", "set", "dict", "frozenset", "enumerate", "sorted", "reversed", "iter", "zip"):
        return not arguments or any(map(_is_empty, arguments))
    return False


def _swallows(handler: ast.ExceptHandler) -> bool:
    """Whether a failed assertion ends in this handler, and nothing comes of it."""
    if handler.type is not None and not _catches(handler.type):
        return False
    idle = ast.Pass | ast.Continue | ast.Break | ast.Return
    return all(
        isinstance(node, idle)
        or (isinstance(node, ast.Expr) and (isinstance(node.value, ast.Constant) or is_call_of(node, "print")))
        for node in handler.body
    )


def _catches(kind: ast.expr) -> bool:
    """Whether a class of exceptions, or one of several, is one of failed assertions."""
    kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return any(
        ast.unparse(one).rpartition(".")[2] in ("AssertionError", "Exception", "BaseException") for one in kinds
    )


def _ends(node: ast.stmt) -> bool:
    """Whether nothing behind a statement runs."""
    return isinstance(node, ast.Return | ast.Raise | ast.Continue | ast.Break) or _skips(node)


def _skips(node: ast.stmt) -> bool:
    """Whether a statement skips the test: `self.skipTest(...)`, `pytest.skip(...)`, `raise unittest.SkipTest`."""
    if isinstance(node, ast.Raise):
        return node.exc is not None and "SkipTest" in ast.unparse(node.exc)
    is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    return is_call and ast.unparse(node).partition("(")[0] in ("self.skipTest", "pytest.skip", "skip", "pytest.xfail")


_REFLEXIVE = (ast.Eq, ast.Is, ast.LtE, ast.GtE)


def is_true(node: ast.expr) -> bool:
    """Whether it is true whatever the program does: `(f() == 1, "message")`, `[f(x) == 1 for x in xs]`, `f() == f()`."""
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return not all(isinstance(element, ast.Starred) for element in node.elts)
    if isinstance(node, ast.ListComp | ast.SetComp):  # a list of falsehoods is true; `all` was meant
        is_said = isinstance(node.elt, ast.Compare | ast.BoolOp | ast.UnaryOp)
        return is_said and not any(generator.ifs for generator in node.generators)
    if isinstance(node, ast.IfExp) and (truth := _constant(node.test)) is not None:
        return is_true(node.body if truth else node.orelse)
    if is_any := isinstance(node, ast.Call) and ast.unparse(node.func) == "any" and len(node.args) == 1:
        node = node.args[0]
        return is_any and isinstance(node, ast.List | ast.Tuple) and any(map(is_true, node.elts))
    if isinstance(node, ast.BoolOp):
        return (any if isinstance(node.op, ast.Or) else all)(map(is_true, node.values))
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], _REFLEXIVE):
        return not _makes_object(node.left) and ast.dump(node.left) == ast.dump(node.comparators[0])
    return isinstance(node, ast.GeneratorExp | ast.Lambda) or (isinstance(node, ast.Constant) and bool(node.value))


def _makes_object(node: ast.expr) -> bool:
    """Whether it makes an object, by the class's name. Two such are equal (`Point(1) == Point(1)`) if the class says so."""
    if not isinstance(node, ast.Call):
        return False
    root = node.func
    while isinstance(root, ast.Attribute):
        root = root.value
    return isinstance(root, ast.Name) and root.id.lstrip("_")[:1].isupper() and root.id != "Solution"


def is_call_of(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == name


def only_assertions(body: Sequence[ast.stmt]) -> bool:
    """Nothing but assertions and what does nothing, such as a documentation text."""
    return all(
        isinstance(node, ast.Assert | ast.Pass)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in body
    )
