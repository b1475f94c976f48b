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
    for node in [part for outer in nodes for part in ast.walk(outer)]:
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Assert) and not is_true(node.test)):
            return True
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name not in functions and name.lstrip("_").startswith(_CHECKS):
                return True
    return False


def is_true(node: ast.expr) -> bool:
    """Whether it is true whatever the program does: `(f() == 1, "message")`, a generator, a function."""
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return not all(isinstance(element, ast.Starred) for element in node.elts)
    return isinstance(node, ast.GeneratorExp | ast.Lambda) or (isinstance(node, ast.Constant) and bool(node.value))


def is_call_of(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == name


def only_assertions(body: Sequence[ast.stmt]) -> bool:
    """Nothing but assertions and what does nothing, such as a documentation text."""
    return all(
        isinstance(node, ast.Assert | ast.Pass)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in body
    )
