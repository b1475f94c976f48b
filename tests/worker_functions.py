"""Functions that the tests run in worker processes, which import them from here."""

import ast
import builtins
import os
import signal
import time
from pathlib import Path


def square(x):
    return x * x


def pid(x):
    time.sleep(0.02)
    return os.getpid()


def behave(what):
    """Does as it is told."""
    if what == "spin":
        return 9**9**9**9 > 0  # minutes inside one C call, where no alarm of Python's reaches
    if what == "deaf":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        while True:
            time.sleep(1)
    if what == "slow":
        time.sleep(0.8)
    if what == "raise":
        raise KeyError("no such thing")
    if what == "exit":
        os._exit(3)
    if what == "leave":
        raise SystemExit(4)
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "bloat":
        return len(bytearray(2**34))
    if what == "unspeakable":
        return object()
    if what == "chatter":
        print("[", flush=True)
    return what


def write_pid(path):
    Path(path).write_text(str(os.getpid()))
    return os.getpid()


def _only_literals(source):
    """Ends the process unless the source is what sympy makes of a number or a symbol: `Float ('1.41' )`."""
    harmless = (ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.UnaryOp, ast.USub)
    names = {"Integer", "Float", "Rational", "Symbol"}
    for node in ast.walk(ast.parse(source.strip(), mode="eval")):
        if not isinstance(node, harmless) or (isinstance(node, ast.Name) and node.id not in names):
            raise SystemExit(f"evaluated: {source}")


def guarded(call):
    """`function(argument)`, where only numbers and symbols of sympy's may be evaluated, and its own generated code run.

    sympy reads a number literal with `eval`, so eval cannot be forbidden altogether.
    """
    name, argument = call
    import sympy.physics.units  # evaluates names of its own while it is imported
    from lockstitch.rewards.mathematics.math_worker import is_right

    real_eval, real_exec = builtins.eval, builtins.exec

    def checked_eval(source, *scopes):
        _only_literals(source)
        return real_eval(source, *scopes)

    def checked_exec(source, *scopes):
        if isinstance(source, str) and not source.startswith(("from sympy import *", "def monomial_")):
            raise SystemExit(f"executed: {source}")
        return real_exec(source, *scopes)

    builtins.eval, builtins.exec = checked_eval, checked_exec
    try:
        return is_right(argument) if name == "is_right" else str(sympy.sympify(argument))
    finally:
        builtins.eval, builtins.exec = real_eval, real_exec
