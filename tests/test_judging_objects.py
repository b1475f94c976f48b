"""Objects, generators and exceptions of programs, as tests handle them: the verdict is what plain Python says."""

import pytest
from lockstitch.rewards.code_rewards import CodeReward
from test_judging import plain, verdicts

pytestmark = pytest.mark.usefixtures("bubblewrap")

PROGRAM = """
class Point:
    def __init__(self, x):
        self.x = x
    def __eq__(self, other):
        return self.x == other.x

class Bare:
    only = None
    @classmethod
    def one(cls):
        cls.only = cls.only or Bare()
        return cls.only
    @staticmethod
    def of(x):
        return [x]

log = []
def steps():
    try:
        yield 1
        yield 2
    except ValueError as error:
        yield str(error)
    finally:
        log.append("closed")
    return 7

def wrapped():
    try:
        {}["a"]
    except KeyError as error:
        raise ValueError("wrapped") from error

def circle():
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    raise first

def group():
    raise ExceptionGroup("several", [ValueError("a"), KeyError("b")])

def text(error):
    return f"{type(error).__name__}: {error}"
"""
TESTS = [
    "assert Point(1) == Point(1)",
    "assert Bare() == Bare()",
    "assert Bare.one() is Bare.one()",
    "b = Bare()\nassert Bare.of(b)[0] is b and Bare.of(Bare())[0] is not b",
    "b = Bare()\nassert Bare.of(Bare())[0] is b",
    "g = steps()\nnext(g)\ng.close()\nassert log == ['closed'] and list(g) == []",
    "g = steps()\nnext(g)\nassert log == ['closed']",
    "g = steps()\nnext(g)\nassert g.throw(ValueError('x')) == 'x'",
    "g = steps()\nnext(g)\ntry:\n    g.throw(KeyError('x'))\n    assert False\nexcept KeyError:\n    pass",
    "def all_of():\n    last = yield from steps()\n    yield last\nassert list(all_of()) == [1, 2, 7]",
    "g = steps()\nassert [*g] == [1, 2]\ntry:\n    next(g)\n    assert False\nexcept StopIteration:\n    pass",
    "try:\n    wrapped()\n    assert False\nexcept ValueError as e:\n    assert isinstance(e.__cause__, KeyError)",
    "try:\n    wrapped()\nexcept ValueError as e:\n    assert e.__cause__ is None",
    "try:\n    circle()\n    assert False\nexcept ValueError as e:\n    assert str(e) == 'first'",
    "try:\n    group()\n    assert False\nexcept ExceptionGroup as e:\n    assert len(e.exceptions) == 2",
    "assert text(ValueError('x')) == 'ValueError: x'",
]


@pytest.mark.slow
def test_as_plain_python():
    rows = [(PROGRAM, test) for test in TESTS]
    expected = plain(rows)
    assert set(expected) == {0.0, 1.0}
    for (_, test), want, (value, reason) in zip(rows, expected, verdicts(rows), strict=True):
        assert value == want, (test, reason)


def test_two_objects_that_are_equal_are_a_test_and_two_calls_are_none():
    judge = CodeReward(workers=1)
    assert judge([""], ["def f(x):\n    return x"], tests=[["assert f(1) == f(1)"]]) == [None]
    method = "class Solution:\n    def f(self, x):\n        return x"
    assert judge([""], [method], tests=[["assert Solution().f(1) == Solution().f(1)"]]) == [None]


def test_a_test_that_is_indented_as_a_whole():
    rows = [("def f(x):\n    return x", "    assert f(1) == 1"), ("def f(x):\n    return 2", "    assert f(1) == 1")]
    assert [value for value, _ in verdicts(rows)] == [1.0, 0.0]


def test_names_of_typing_need_no_import_in_calls_of_a_named_function():
    program = (
        "class Solution:\n    def add(self, a: List[int], b: Any) -> List[int]:\n        return [x {} b for x in a]"
    )
    programs = [program.format("+"), program.format("-")]
    rows = {"inputs": [["[1]\n2"]] * 2, "outputs": [["[3]"]] * 2, "fn_name": ["add"] * 2}
    values = CodeReward(workers=1)([""] * 2, programs, **rows)
    assert values == [1.0, 0.0]


STANDARD = """
class Solution:
    def f(self, xs: List[int]) -> int:
        heapify(xs)
        by_size = defaultdict(list)
        return gcd(*nsmallest(2, xs)) + math.ceil(0.5) + len(by_size) + pow(2, 3, 5) + bisect_left(xs, 0)
"""


def test_names_of_the_standard_library_need_no_import_there():
    rows = {"inputs": [["[6, 4]"]], "outputs": [["6"]], "fn_name": ["f"]}
    assert CodeReward()([""], [STANDARD], **rows) == [1.0]
    assert CodeReward()([""], ["def f(xs):\n    return gcd(*xs) + 4"], tests=[["assert f([6, 4]) == 6"]]) == [0.0]


def test_what_is_asked_for_is_the_programs():
    """`operator.add` is neither the program's function nor in the way of its method."""
    programs = [
        "def other(a, b):\n    return a + b",
        "class Solution:\n    def add(self, a, b):\n        return a + b + 0",
    ]
    rows = {"inputs": [["1\n2"]] * 2, "outputs": [["3"]] * 2, "fn_name": ["add"] * 2}
    assert CodeReward()([""] * 2, programs, **rows) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("inputs", "outputs", "returned", "value"),
    [
        (["1"], ["[1, 1]"], "a, a", 1.0),
        ([[1]], [[[1, 1]]], "(a, a)", 1.0),
        (["1"], ["[[1, 1]]"], "[(a, a)]", 1.0),
        (["1"], ["[[1, 2]]"], "[namedtuple('P', 'x y')(a, 2)]", 1.0),
        (["1"], ['{"1": [1]}'], "{a: (a,)}", 1.0),
        (["1"], ['{"1": 2}'], "Counter([a, a])", 1.0),
        ([[1]], [{1: 2}], "{str(a): 2}", 1.0),
        (["1"], ["[1, 1]"], "{a}, a", 0.0),
        (["1"], ["[1, 1]"], "a, a, a", 0.0),
        (["1"], ['{"1": 1}'], "{True: 1}", 0.0),
        (["1"], ['{"1": 1}'], "{1.0: 1}", 0.0),
        (["1"], ["1"], "(a,)", 0.0),
        (["1"], ['"1"'], "a", 0.0),
    ],
)
def test_results_that_are_json(inputs, outputs, returned, value):
    program = f"def f(a):\n    return {returned}"
    assert CodeReward()([""], [program], inputs=[inputs], outputs=[outputs], fn_name=["f"]) == [value]
