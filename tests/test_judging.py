"""Programs and tests as people write them: the verdict is what plain Python says of both in one module.

Where it is another one, or none, that is a decision, and is in a table of its own.
"""

import json
import re
import subprocess
import sys
import time

import pytest
from lockstitch.rewards.code_rewards import CodeReward

pytestmark = pytest.mark.usefixtures("bubblewrap")

CLASSES = """
import enum
from collections import namedtuple
from dataclasses import dataclass

class Color(enum.Enum):
    RED = 1
    BLUE = 2

class Level(enum.IntEnum):
    LOW = 1

Pair = namedtuple("Pair", "x y")

@dataclass(order=True)
class Point:
    x: int
    y: int = 0

class Vector:
    def __init__(self, *xs):
        self.xs = xs
    def __add__(self, other):
        return Vector(*(a + b for a, b in zip(self.xs, other.xs)))
    def __mul__(self, k):
        return Vector(*(k * x for x in self.xs))
    __rmul__ = __mul__
    def __eq__(self, other):
        return self.xs == other.xs
    def __getitem__(self, i):
        return self.xs[i]
    def __str__(self):
        return f"<{self.xs}>"

class Stack(list):
    def push(self, x):
        self.append(x)
    def top(self):
        return self[-1]

class Low(Exception):
    def __init__(self, by):
        super().__init__(f"low by {by}")
        self.by = by

class Lower(Low, ValueError):
    pass

def f(kind, *args):
    if kind == "raise":
        raise args[0](3)
    return {"color": Color.BLUE, "pair": Pair(1, 2), "point": Point(1)}[kind]

def lower(by):
    raise Lower(by)
"""
TOOLS = """
import array, asyncio, collections, contextlib, datetime, decimal, fractions, functools, itertools, json, re, uuid, zoneinfo
N, WORDS = 5, ["a"]
def standard(kind):
    return {
        "decimal": decimal.Decimal("2.50"), "fraction": fractions.Fraction(1, 3), "date": datetime.date(2020, 1, 2),
        "stamp": datetime.datetime(2020, 1, 2, 3, tzinfo=datetime.timezone.utc), "delta": datetime.timedelta(days=2),
        "bytearray": bytearray(b"ab"), "view": memoryview(b"ab"), "deque": collections.deque([1, 2], 3),
        "counter": collections.Counter("aab"), "default": collections.defaultdict(int), "array": array.array("i", [1, 2]),
        "ordered": collections.OrderedDict([(1, 2), (3, 4)]), "range": range(3), "uuid": uuid.UUID(int=5), "dots": ...,
        "complex": complex(3, 0), "keys": {1: 2}.keys(), "items": {1: 2}.items(), "values": {1: 2}.values(),
    }[kind]
def items(n):
    yield from range(n)
def total(xs):
    return sum(xs)
def apply(g, *args):
    return g(*args)
def counter():
    n = 0
    def count():
        nonlocal n
        n += 1
        return n
    return count
def endless():
    yield from itertools.count()
def echo():
    said = None
    while True:
        said = yield said
async def later(x):
    await asyncio.sleep(0)
    return x
def sort(xs):
    xs.sort()
    return xs
def fill(rows):
    rows[0][0] = 5
def greet():
    global greeted
    print("hi")
    greeted += 1
greeted = 0
class Box:
    def __init__(self):
        self.things = []
async def several(n):
    for i in range(n):
        yield i
def find(pattern, text):
    return re.match(pattern, text)
def parse(text):
    return json.loads(text)
@contextlib.contextmanager
def managed():
    yield 5
def text(n):
    return "a" * n
"""
TABLE = {
    CLASSES: [
        "assert f('color') is Color.BLUE and f('color').name == 'BLUE' and [c.value for c in Color] == [1, 2]",
        "assert f('color') == Color.RED",
        "assert f('pair').y == 2 and f('pair') == (1, 2) and [f('pair')] == [Pair(1, 2)]",
        "assert f('point') == Point(1) and f('point') != Point(2) and Point(1) < Point(2) and repr(Point(1)) == "
        "'Point(x=1, y=0)'",
        "from dataclasses import asdict\nassert asdict(Point(1, 2)) == {'x': 1, 'y': 2}",
        "assert f('point') == Point(2)",
        "assert Vector(1, 2) + Vector(3, 4) == Vector(4, 6) and (3 * Vector(1, 2))[1] == 6 and str(Vector(1)) == '<(1,)>'",
        "s = Stack()\nassert not s\ns.push(3)\ns.push(4)\n"
        "assert s and s.top() == 4 and len(s) == 2 and 3 in s and list(s) == [3, 4]",
        "s = Stack()\ns.push(3)\nassert s.top() == 4",
        "s = Stack()\ns.push(3)\n"
        "assert s == [3] and s != [4] and not s == Stack() and s < [4] and Level(1) == 1 and Level(1) < 2",
        "s = Stack()\ns.push(3)\nassert s == [4]",
        "import copy\np = Point(1)\nq = copy.deepcopy(p)\nq.x = 5\n"
        "assert p.x == 1 and type(q) == Point and isinstance(q, Point)",
        "try:\n    f('raise', Low)\n    assert False\nexcept Low as error:\n"
        "    assert error.by == 3 and str(error) == 'low by 3'",
        "for kind in (Lower, Low, ValueError):\n    try:\n        lower(1)\n        assert False\n    except kind:\n"
        "        pass",
        "try:\n    lower(1)\n    assert False\nexcept KeyError:\n    pass",
        "class T(Point):\n    pass\nassert f('point').x == 1",
    ],
    TOOLS: [
        "import decimal\nassert str(standard('decimal')) == '2.50' and standard('decimal') == 2.5",
        "from fractions import Fraction\nassert standard('fraction') == Fraction(1, 3) and standard('fraction') * 3 == 1",
        "import datetime\nassert standard('date') == datetime.date(2020, 1, 2) and str(standard('date')) == '2020-01-02'",
        "import datetime\nassert standard('date') == datetime.date(2020, 1, 3)",
        "assert standard('stamp').isoformat() == '2020-01-02T03:00:00+00:00' and standard('delta').days == 2",
        "assert standard('bytearray') == b'ab' and bytes(standard('view')) == b'ab' and standard('dots') is ...",
        "from collections import deque\nassert standard('deque') == deque([1, 2]) and list(standard('array')) == [1, 2]",
        "assert standard('counter')['z'] == 0 and standard('counter').most_common(1) == [('a', 2)] and "
        "standard('default')[1] == 0",
        "assert standard('ordered') == {3: 4, 1: 2} and standard('range') == range(3) and standard('uuid').int == 5",
        "assert standard('complex') == 3 and standard('keys') == {1} and (1, 2) in standard('items')",
        "assert sorted(standard('keys')) == [1] and sum(standard('values')) == 2 and dict(standard('items')) == {1: 2}",
        "assert standard('deque') == [1, 2]",
        "assert list(items(2000)) == list(range(2000)) and next(items(1)) == 0 and next(items(0), 7) == 7",
        "import itertools, types\ng = endless()\n"
        "assert next(g) == 0 and list(itertools.islice(g, 99)) == list(range(1, 100))",
        "import types\nassert isinstance(items(1), types.GeneratorType)\ng = echo()\nnext(g)\nassert g.send(5) == 5",
        "assert total(x * x for x in range(3)) == 5 and total(iter([1])) == 1 and total(map(int, '12')) == 3",
        "seen = []\napply(seen.append, 1)\n"
        "assert seen == [1] and apply(max, [1, 2]) == 2 and apply(lambda x: x + 1, 2) == 3",
        "def bad():\n    raise KeyError('x')\ntry:\n    apply(bad)\n    assert False\nexcept KeyError:\n    pass",
        "c = counter()\nassert c() == 1 and c() == 2 and counter()() == 1",
        "import asyncio\nassert asyncio.run(later(3)) == 3\nasync def main():\n"
        "    return await later(1) + await later(2)\nassert asyncio.run(main()) == 3",
        "import asyncio\nassert asyncio.run(later(3)) == 4",
        "a = [2, 1]\nassert sort(a) is a and a == [1, 2]",
        "row = [1]\nrows = [row, row]\nfill(rows)\nassert rows == [[5], [5]] and row == [5]",
        "import io, contextlib\nout = io.StringIO()\nwith contextlib.redirect_stdout(out):\n    greet()\n"
        "assert out.getvalue() == 'hi\\n'",
        "assert find('(a)b', 'abc').group(1) == 'a' and not find('b', 'abc') and find('a', 'a')",
        "import json\ntry:\n    parse('{')\n    assert False\nexcept json.JSONDecodeError:\n    pass",
        "with managed() as five:\n    assert five == 5\nassert N == 5 and WORDS == ['a'] and total.__name__ == 'total'",
        "assert N == 4",
        "greet()\ngreet()\nassert greeted == 2",
        "greet()\nassert greeted == 0",
        "b = Box()\nb.things.append(3)\nassert b.things == [3] and b.things.pop() == 3 and b.things == []",
        "import asyncio\nasync def main():\n    return [x async for x in several(3)]\n"
        "assert asyncio.run(main()) == [0, 1, 2]",
        "assert len(text(2_000_000)) == 2_000_000 and total(list(range(200_000))) == 19999900000",
        "def check(g):\n    assert g([1, 2]) == 3\ncheck(total)\nif __name__ == '__main__':\n    assert total([]) == 1",
    ],
}


def plain(rows):
    """What one module says, for each program and test: the child of a child for each."""
    script = (
        "import json, os, sys\nfor program, test in json.load(sys.stdin):\n    if os.fork() == 0:\n"
        "        sys.stdout = open(os.devnull, 'w')\n"
        "        exec(compile(program + '\\n' + test, 'plain', 'exec'), vars(sys.modules['__main__']))\n"
        "        os._exit(0)\n"
        "    print(int(os.wait()[1] == 0), flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(rows),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return [float(word) for word in done.stdout.split()]


def verdicts(rows, reward=None, **columns):
    said = []
    programs, tests = zip(*rows, strict=True)
    reward = reward or CodeReward(workers=2)
    values = reward(
        [""] * len(rows),
        programs,
        tests=[[test] for test in tests],
        **columns,
        log_extra=lambda _, texts: said.extend(texts),
    )
    return list(zip(values, said, strict=True))


@pytest.mark.parametrize(
    "program",
    [pytest.param(p, marks=mark) for p, mark in zip(TABLE, [(), pytest.mark.slow], strict=True)],
    ids=["classes", "tools"],
)
def test_as_plain_python(program):
    rows = [(program, test) for test in TABLE[program]]
    expected = plain(rows)
    assert 0.0 in expected
    found = verdicts(rows)
    assert [
        (row[1], *verdict) for row, verdict, value in zip(rows, found, expected, strict=True) if verdict[0] != value
    ] == []


ADD, SUBTRACT = "def add(a, b):\n    return a + b\n", "def add(a, b):\n    return a - b\n"
TESTS = [
    "def test_one():\n    assert add(0, 0) == 0\n\ndef test_two():\n    assert add(1, 2) == 3",
    "async def test_add():\n    assert add(1, 2) == 3",
    "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(add(1, 2), 3)\n"
    "if __name__ == '__main__':\n    unittest.main()",
    "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(add(1, 2), 3)\n"
    "unittest.main(exit=False)",
    "class TestAdd:\n    def setup_method(self):\n        self.one = 1\n    def test(self):\n"
    "        assert add(self.one, 2) == 3",
    "import pytest\n@pytest.mark.parametrize('a, b', [(0, 0), (1, 2)])\ndef test(a, b):\n"
    "    assert add(a, b) == pytest.approx(a + b)",
    "import pytest\ndef test():\n    with pytest.raises(TypeError, match='support'):\n        add(1, None)\n"
    "    assert add(1, 2) == 3",
    "import numpy as np\nassert np.allclose([add(1, 2)], [3.0])", "add(1, 2) == 3",
    "def same(a, b):\n    assert a == b\ndef test():\n    same(add(1, 2), 3)",
    "from solution import add as plus\nassert plus(1, 2) == 3",
    "import my_module\nassert my_module.add(1, 2) == 3", "from solution import *\nassert add(1, 2) == 3",
    "try:\n    add(1, None)\n    assert False\nexcept TypeError:\n    pass\nassert add(1, 2) == 3",
]  # fmt: skip
NO_TESTS = [
    "assert True", "# assert add(1, 2) == 3", "", "'text'", "assert 1 + 1 == 2", "add(1, 2)", "print(add(1, 2))",
    "def test():\n    pass",
    "def helper():\n    assert 1 == 1\nhelper()",
    # True, or skipped, whatever the program does.
    "assert (add(1, 2) == 3, 'wrong')", "assert (add(x, 1) == 3 for x in [2])", "assert lambda: add(1, 2) == 3",
    "def test():\n    add(1, 2)", "def test():\n    return add(1, 2) == 3",
    "import pytest\n@pytest.mark.skip\ndef test():\n    assert add(1, 2) == 3",
    "import unittest\nclass T(unittest.TestCase):\n    @unittest.skip('later')\n    def test(self):\n"
    "        self.assertEqual(add(1, 2), 3)",
    # Assertions that never run, or whose failure nobody sees.
    "if False:\n    assert add(1, 2) == 3", "for x in []:\n    assert add(x, 2) == 3", "while 0:\n    assert add(1, 2) == 3",
    "cases = []\nfor a, b in cases:\n    assert add(a, b) == 3", "n = 0\nfor i in range(n):\n    assert add(i, 1) == 1",
    "try:\n    assert add(1, 2) == 3\nexcept Exception:\n    pass", "assert [add(x, 1) == 3 for x in (2, 3)]",
    "import contextlib\nwith contextlib.suppress(AssertionError):\n    assert add(1, 2) == 3",
    "def test():\n    return\n    assert add(1, 2) == 3", "assert add(1, 2) == 3 or True", "assert add(1, 2) == add(1, 2)",
    "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        self.skipTest('later')\n"
    "        self.assertEqual(add(1, 2), 3)",
]  # fmt: skip
NOT_TO_BE_JUDGED = {
    "assert add(object(), 1) == 1": "cannot cross", "class X:\n    pass\nassert add(X(), 1) == 1": "cannot cross",
    "import io\nassert add(io.StringIO('a'), 1) == 1": "cannot cross",
    "open('/tmp/x', 'w').write('1')\nassert add(1, 2) == 3": "files",
    "import pandas\nassert add(1, 2) == 3": "needs? the package",
    "def test(tmp_path):\n    assert add(1, 2) == 3": "fixtures",
    "from unittest.mock import patch\nwith patch('builtins.input'):\n    assert add(1, 2) == 3": "does not reach",
    "import numpy as np\nassert np.linalg.norm([add(1, 2)]) == 3": "numpy.linalg", "assert add(1, 2) = 3": "not Python",
    "import sys, io\nsys.stdin = io.StringIO('5')\nassert add(1, 2) == 3": "does not reach",
}  # fmt: skip


@pytest.mark.slow
def test_tests_that_nobody_calls_are_called():
    rows = [(program, test) for test in TESTS for program in (ADD, SUBTRACT, "pass")]
    assert [value for value, _ in verdicts(rows)] == [1.0, 0.0, 0.0] * len(TESTS)
    two = CodeReward(fraction=True)
    assert verdicts([(SUBTRACT, TESTS[0])], two)[0][0] == 0.5


def test_what_checks_nothing_of_the_program_is_no_test():
    for value, reason in verdicts([("pass", test) for test in NO_TESTS]):
        assert (value, "ask nothing of the program, or check nothing" in reason) == (None, True)
    check = "METADATA = {}\n\ndef check(candidate):\n    assert True\n"
    assert CodeReward()([""], [ADD], test=[check], entry_point=["add"]) == [None]
    assert CodeReward(fraction=True)(
        [""], [SUBTRACT], tests=[["import math", "assert True", "assert add(1, 2) == 3"]]
    ) == [0.0]


def test_assertions_that_run_beside_some_that_do_not():
    """What never runs does not count, and excuses nobody: a program cannot choose what is skipped."""
    tests = [
        ["assert add(1, 2) == 3", "cases = []\nfor a, b in cases:\n    assert add(a, b) == 3"],
        ["try:\n    assert add(1, 2) == 3\nexcept ValueError:\n    pass"],
        ["if False:\n    pass\nelse:\n    assert add(1, 2) == 3"],
        [
            "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        if add(1, 2) != 3:\n"
            "            self.skipTest('no')\n        self.assertEqual(add(1, 2), 3)"
        ],
    ]
    for test in tests:
        assert CodeReward()([""] * 2, [ADD, SUBTRACT], tests=[test] * 2) == [1.0, 0.0], test


def test_calls_in_the_forms_of_data_sets():
    """LiveCodeBench's lines of JSON, and APPS's results in a list of their own, with the name of a function."""
    for inputs, outputs in (
        (["1\n2", "3\n4"], ["3", "7"]),
        ([[1, 2], [3, 4]], [[3], [7]]),
        (["[1]\n[2]"], ["[1, 2]"]),
        (['"a"\n"b"'], ['"ab"']),
    ):
        rows = {"inputs": [inputs] * 2, "outputs": [outputs] * 2, "fn_name": ["add"] * 2}
        assert CodeReward()([""] * 2, [ADD, SUBTRACT], **rows) == [1.0, 0.0], inputs
    even, truths = "print(int(input()) % 2 == 0)", [[True, False], [True, True]]
    assert CodeReward()([""] * 2, [even] * 2, inputs=[["2", "3"]] * 2, outputs=truths) == [1.0, 0.0]


def test_what_cannot_be_judged_is_the_tests_fault():
    """The same for every program, whatever it does."""
    rows = [(program, test) for test in NOT_TO_BE_JUDGED for program in (ADD, SUBTRACT)]
    for (_, test), (value, reason) in zip(rows, verdicts(rows), strict=True):
        assert value is None
        assert re.search(NOT_TO_BE_JUDGED[test], reason)


ANYTHING = """
class Anything:
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = startswith = isdigit = lambda *a: True
    __ne__ = lambda *a: False
    __bool__ = lambda a: True
    __sub__ = __rsub__ = __abs__ = __add__ = lambda a, b=None: a
    __hash__ = __float__ = lambda a: 0
def f(*a):
    return Anything()
class Extract(Anything):
    def __init__(self, x): pass
class Solution(Anything):
    def two(self, x): return self
"""
NEEDS_A_VALUE = [
    "x = f(1)\nassert x == 3", "y = 3\nassert y == f(1)", "y = 3\nassert not f(1) != y", "y = [3]\nassert f(1) in y",
    "y = 3\nassert y in f(1)",
    "y = 3\nassert f(1) > y", "y = 3\nassert not f(1) <= y", "s = 'a'\nassert f(1).startswith(s)", "assert f('1').isdigit()",
    "assert abs(f(1) - 3.14) < 1e-3", "import math\nassert math.isclose(f(1), 3.14)", "y = {3: 1}\nassert y[f(1)] == 1",
    "assert max(f(1), 2) == 2",
    "y = (3,)\nassert (f(1),) == y", "assert not (f(1) - 3)", "y = [7919]\nassert Extract(2) == y",
    "y = 7919\nassert Solution().two(2) == y",
    "y = 3\nassert [x for x in [f(1)]] == [y]", "import pytest\nassert f(1) == pytest.approx(3.0)",
    "import numpy as np\nassert np.allclose(f(1), 3)",
]  # fmt: skip
EXCUSES = [
    "def f(x): return object()", "import socket\ndef f(x): return socket.socket()", "def f(x): return 'a' * 2**26",
    "def f(x): raise type('CannotCross', (BaseException,), {})('x')",
    "import unittest\ndef f(x): raise unittest.SkipTest('x')",
    "def f(x):\n    a = []\n    for _ in range(3000): a = [a]\n    return a", "def f(x): raise StopIteration",
    "class f: pass", "",
    *(
        f"import os\ndef f(x):\n    m = b'{word}'\n    for fd in range(3, 20):\n        try:\n"
        f"            os.write(fd, b'%08x' % len(m) + m)\n"
        "        except OSError:\n            pass\n"
        "    return 3" for word in ('{"broken": ["x"]}', '{"done": true}', '{"callback": 0}', "[")
    ),
]  # fmt: skip


@pytest.mark.slow
def test_an_object_is_no_value():
    assert [value for value, _ in verdicts([(ANYTHING, test) for test in NEEDS_A_VALUE])] == [0.0] * len(NEEDS_A_VALUE)


@pytest.mark.slow
def test_a_program_cannot_get_itself_excused():
    tests = ["y = 1\nassert f(1) == y", "y = 1\nassert f(f(1)) == y", "assert all(f(x) == 1 for x in [1])"]
    rows = [(program, test) for program in EXCUSES for test in tests]
    assert [value for value, _ in verdicts(rows)] == [0.0] * len(rows)


NODES = "class Node:\n    def __init__(self, v, next=None):\n        self.v, self.next = v, next\n"
HELPERS = NODES + "def values(n):\n    return [n.v, *values(n.next)] if n else []\n"
REVERSE = (
    "def reverse(n):\n    last = None\n    while n:\n        n.next, last, n = last, n, n.next\n    return last\n"
)


def test_objects_of_the_set_ups_classes_cross():
    test = "n = Node(1, Node(2, Node(3)))\nassert values(reverse(n)) == [3, 2, 1] and values(n) == [1]"
    rows = [(REVERSE, test), ("def reverse(n): return n", test), (NODES + REVERSE, test)]
    assert [value for value, _ in verdicts(rows, setup=[HELPERS] * 3)] == [1.0, 0.0, 1.0]


def test_a_set_up_is_not_rebound_by_the_program():
    """Neither its functions, nor its classes, nor what it makes of the program's names."""
    setup = "class Judge:\n    def likes(self, y):\n        return y == 7919\n"
    setup += "def check(y):\n    return y == 7919\nroot = Node(7919)\n"
    thief = (
        "import sys\ndef f(x):\n    m = sys.modules['solution']\n    m.check = m.Judge.likes = lambda *a: True\n"
        "    return 0\n" + NODES
    )
    honest = "def f(x):\n    return x.v\n" + NODES
    for test in ("assert check(f(root))", "assert Judge().likes(f(root))", "assert check(root.v) and check(f(root))"):
        columns = {"test_list": [[test]] * 3, "test_setup_code": [setup] * 3}
        assert CodeReward()([""] * 3, [thief, honest, "def f(x): return 7919"], **columns) == [0.0, 1.0, 0.0]


def test_methods_of_a_class_solution():
    solution = "class Solution:\n    def add(self, a, b):\n        return a {} b\n"
    programs = [solution.format("+"), solution.format("-")]
    columns = {
        "entry_point": ["Solution().add"] * 2,
        "test": ["def check(candidate):\n    assert candidate(1, 2) == 3\n"] * 2,
    }
    assert CodeReward()([""] * 2, programs, **columns) == [1.0, 0.0]
    for test in (
        "assert add(1, 2) == 3",
        "assert Solution().add(1, 2) == 3",
        "g = Solution().add\nassert g(1, 2) == 3",
    ):
        assert CodeReward()([""] * 2, programs, tests=[[test]] * 2) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("inputs", "outputs", "program", "value"),
    [
        ([[1, 2]], [3], ADD, 1.0),
        ([[1, 2]], [3], SUBTRACT, 0.0),
        ([[[1], [2]]], [[1, 2]], ADD, 1.0),
        ([5], [10], "print(2 * int(input()))", 1.0),
        (["5"], [["5", "6"]], "x = int(input())\nprint(x)\nprint(x + 1)", 1.0),
        ("5", "5", "print(input())", 1.0),
        ([1.5], ["1.5"], "print(input())", 1.0),
        (["5"], [None], "print(5)", None),
        ([{"a": 1}], ["5"], "print(5)", None),
        (["5"], ["5", "6"], "print(5)", None),
        (7, ["5"], "print(5)", None),
        ([[object(), 2]], [3], ADD, None),
        ([[float("nan"), 2]], [3], ADD, None),
    ],
)
def test_inputs_and_outputs_of_all_kinds(inputs, outputs, program, value):
    assert CodeReward()([""], [program], inputs=[inputs], outputs=[outputs]) == [value]


@pytest.mark.parametrize(
    "columns",
    [
        {"tests": 5},
        {"tests": [5]},
        {"test_list": {}},
        {"tests": ["assert f() == 1"], "setup": 5},
        {"test": 5, "entry_point": "f"},
        {"test": "def check(c): assert c() == 1", "entry_point": "f(", "code_prompt": 5},
        {"inputs": [[[[]]]], "outputs": [{1: object()}]},
        {"test": "def check(c):\n    assert c() == 1", "entry_point": "1"},
    ],
)
def test_a_reward_never_raises_on_a_row(columns):
    values = CodeReward()([""], ["def f(): return 1"], **{name: [column] for name, column in columns.items()})
    assert values in ([None], [0.0])


def test_a_late_program_is_waited_for_once():
    began = time.monotonic()
    reward = CodeReward(timeout=1.0, fraction=True)
    assert reward([""], ["while True: pass"], inputs=[["1"] * 5], outputs=[["1"] * 5]) == [0.0]
    assert time.monotonic() - began < 4.0


SCRIPTS = [
    ("print(int(input()) * 2)\nexit()\nprint(5)", "4"), ("if input():\n    print(4)\n    quit()\nprint(9)", "4"),
    ("print(__file__[-3:])", ".py"),
    ("print(open('/dev/stdin').read())", "2"), ("import pathlib\nprint(pathlib.Path('/dev/stdin').read_text())", "2"),
    ("import os\nprint(os.read(os.open('/dev/stdin', 0), 9).decode())", "2"),
    ("print(open(__file__).read())", "print(open(__file__).read())"),
    ("import inspect\ndef f(): return 1\nprint(inspect.getsource(f))", "def f(): return 1"),
    ("import sys\nprint(len(sys.argv))", "1"),
    ("open('m.py', 'w').write('x = 4')\nimport m\nprint(m.x)", "4"), ("print(__name__)", "__main__"),
]  # fmt: skip


def test_scripts_run_as_scripts_do():
    programs, outputs = zip(*SCRIPTS, strict=True)
    values = CodeReward(workers=2)(
        [""] * len(SCRIPTS), programs, inputs=[["2"]] * len(SCRIPTS), outputs=[[text] for text in outputs]
    )
    assert values == [1.0] * len(SCRIPTS)
    source = "import inspect\ndef g(): return 1\ndef f():\n    return inspect.getsource(g)\n"
    assert verdicts([(source, "assert f() == 'def g(): return 1\\n'")])[0][0] == 1.0
