"""What counts as the same answer, and how tests are taken apart."""

import collections
import decimal
import enum
import fractions
import json
import math
import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lockstitch.rewards.programs.code_names import BadTest
from lockstitch.rewards.programs.code_tests import Case, Script, called_names, parse_check, parse_setup, parse_tests
from lockstitch.rewards.programs.judge import read_answer, verdict_on
from lockstitch.rewards.programs.same import is_same, longest_answer, same_output
from lockstitch.rewards.sandbox.launchers import Stopped
from lockstitch.rewards.sandbox.tagged import Other, decode, encode

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**62, 2**80)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.complex_numbers(allow_nan=False)
    | st.sampled_from([int, str, ValueError])
)
HASHABLE = SCALARS | st.lists(SCALARS, max_size=3).map(tuple) | st.frozensets(SCALARS, max_size=3)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(HASHABLE, inner, max_size=3) | st.sets(HASHABLE, max_size=3)
    ),
    max_leaves=6,
)


def exactly(value):
    """A value with the types of all its parts, as text; sets and dictionaries in an order of their own."""
    if isinstance(value, list | tuple):
        return type(value).__name__, [exactly(item) for item in value]
    if isinstance(value, set | frozenset):
        return type(value).__name__, sorted(map(repr, map(exactly, value)))
    if isinstance(value, dict):
        return "dict", sorted(repr((exactly(key), exactly(item))) for key, item in value.items())
    return type(value).__name__, repr(value)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(VALUES)
def test_values_cross_and_equal_themselves(value):
    data = json.loads(json.dumps(encode(value)))
    assert exactly(decode(data)) == exactly(value)
    assert is_same(encode(value), data)
    assert len(json.dumps(data)) <= longest_answer(encode(value))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.tuples(VALUES, VALUES))
def test_what_python_calls_different_is_different(pair):
    """Apart from floats that are close, and they are strategies' favourites: hence texts of the numbers as the oracle."""
    one, other = pair
    if is_same(encode(one), encode(other)) and one != other:
        assert all(
            math.isclose(*numbers, rel_tol=1e-9, abs_tol=1e-12) for numbers in zip(*map(floats_in, pair), strict=True)
        )


def floats_in(value):
    if isinstance(value, float | int):
        return [float(value)]
    if isinstance(value, complex):
        return [value.real, value.imag]
    if isinstance(value, dict):
        return [number for key in sorted(value, key=repr) for number in floats_in(value[key])]
    return [number for item in value for number in floats_in(item)] if isinstance(value, list | tuple) else []


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        (2, 2.0, True),
        (2.0, 2, True),
        (2, 2.0000001, False),
        (0.1 + 0.2, 0.3, True),
        (1.0, 1.00001, False),
        (0.0, 1e-13, True),
        (0.0, 5e-10, False),
        (5e-10, 0.0, False),
        (6.6e-34, -1e-9, False),
        (1e-12, 0, False),
        (3.0, 3.0000029, False),
        (3.0, 3.0 + 1e-12, True),
        (True, 1, False),
        (1, True, False),
        (True, True, True),
        (0, None, False),
        ([1], (1,), False),
        ((1,), (1,), True),
        ([1], [1, 2], False),
        ({1, 2}, {2, 1}, True),
        ({1, 2}, [1, 2], False),
        ({1}, frozenset({1}), True),
        ({1}, {1.0}, True),
        ({1}, {True}, False),
        ({1: "a"}, {1.0: "a"}, True),
        ({1: 0.3}, {1: 0.1 + 0.2}, True),
        ({"1": 1}, {1: 1}, False),
        ({}, set(), False),
        ("a", b"a", False),
        (b"a", b"a", True),
        (1j, 1j, True),
        (1j, (0, 1), False),
        ([[1, (2.0,)]], [[1, (2,)]], True),
        (math.inf, math.inf, True),
        (math.inf, -math.inf, False),
        (1.0, math.nan, False),
        (math.nan, 1.0, False),
        (10**30, 10**30, True),
        (10**30, 10**30 + 1, False),
        (int, int, True),
        (int, str, False),
        ([], None, False),
        ({"a": 1}, collections.OrderedDict(a=1), True),
        ({"a": 1}, collections.Counter("a"), True),
        ((1, 2), collections.namedtuple("P", "x y")(1, 2), True),
        (1, enum.IntEnum("E", "A").A, True),
        (0.5, fractions.Fraction(1, 2), True),
        (0.1, fractions.Fraction(1, 10), False),
        (3, decimal.Decimal("3.00"), True),
        (0.5, decimal.Decimal("0.5"), True),
        (3, decimal.Decimal("1E+999999"), False),
        (3, 3 + 0j, True),
        (3, 3 + 1j, False),
        (3, decimal.Decimal("sNaN"), False),
        (2**70, float(2**70), True),
        (b"a", bytearray(b"a"), True),
        (b"a", memoryview(b"a"), True),
        ([1], collections.deque([1]), False),
        ([0], range(1), False),
        ({1}, {1: 2}.keys(), True),
        ({(1, 2)}, {1: 2}.items(), True),
        ({"a": 1}, collections.defaultdict(int, a=1), True),
        ([1], iter([1]), False),
        ([1], {1: 1}.values(), False),
        ([(1, 2)], [collections.namedtuple("P", "x y")(1, 2)], True),
        ({(1, 2)}, {collections.namedtuple("P", "x y")(1, 2)}, True),
        (object, object(), False),
        ({(1, 2): [3]}, {(1, 2): [3]}, True),
        ({(1, 2): [3]}, {(2, 1): [3]}, False),
    ],
)
def test_same(expected, found, same):
    verdict = verdict_on(Case("f()", encode(expected)), {"value": json.loads(json.dumps(encode(found)))})
    assert (verdict == "") is same
    assert not same or expected == found or (expected, found) in NEARLY


NEARLY = ((0.1 + 0.2, 0.3), ({1: 0.3}, {1: 0.1 + 0.2}), (0.0, 1e-13), (3.0, 3.0 + 1e-12))


def test_a_subclass_arrives_as_what_it_holds_and_an_object_as_nothing():
    class Seven(int):
        __eq__ = __ne__ = __int__ = __index__ = lambda *a: 7
        __hash__ = int.__hash__

    class Liar:
        __class__ = property(lambda self: int)

    assert encode(Seven(3)) == 3
    (other,) = encode(Liar()).items()
    assert other[0] == "other"
    assert not is_same(encode(Liar()), encode(Liar()))
    assert isinstance(decode(encode(Liar())), Other)


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
def test_a_path_crosses_from_every_python(module, monkeypatch):
    """The classes of paths are in a module of their own in Python 3.13."""
    for kind in (pathlib.PurePath, pathlib.PurePosixPath, pathlib.PosixPath, pathlib.Path):
        monkeypatch.setattr(kind, "__module__", module)
    data = encode({"at": [pathlib.Path("a/b"), pathlib.PurePosixPath("c")]})
    assert data == {"dict": [["at", [{"pathlib.PurePath": "a/b"}, {"pathlib.PurePath": "c"}]]]}
    assert decode(data) == {"at": [pathlib.Path("a/b"), pathlib.Path("c")]}
    assert is_same(data, encode({"at": [pathlib.Path("a/b"), pathlib.PurePosixPath("c")]}))


FORGED = [
    "[[", {"int": 7}, {"set": 3}, {"set": [{}]}, {"dict": [[1]]}, {"dict": [1]}, {}, {"a": 1, "b": 2}, {"tuple": None},
    {"dict": [[{"set": [{}]}, 1]]}, {"complex": [1]}, {"other": "x"}, [[]] * 3, 10**400, {"decimal.Decimal": []},
    {"fractions.Fraction": [1, 0]}, {"fractions.Fraction": [[], 1]}, {"namedtuple": 3}, {"namedtuple": ["P", [], 3]},
    {"builtins.dict_items": [3]}, {"collections.Counter": 3}, {"same": 0}, {"ref": 0}, {"builtins.bytearray": 3},
]  # fmt: skip


@pytest.mark.parametrize("value", FORGED, ids=repr)
def test_forged_data_is_wrong(value):
    for expected in (7, 0.5, {1}, {1: 2}, (1,), "x", [], 10**30, 1j):
        assert verdict_on(Case("f()", encode(expected)), {"value": value})
    for answer in ({}, {"done": True}, {"raised": 1}, {"raised": ["E", "text"]}):
        assert verdict_on(Case("f()", None), answer)
    for frame in (b"", b"7", b"[1]", b"\xff", b"[" * 100_000, b"{'value': 7}", b"9" * 5000):
        with pytest.raises(Stopped):
            read_answer(frame)


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        ("1\n2\n", "1\n2", True),
        ("1\n2", "1 \n2\n\n\n", True),
        ("1\n2\n", "1\n", False),
        ("1\n", "1\n2\n", False),
        ("1 2", "1  2", False),
        ("", "\n", True),
        ("a\n\nb", "a\nb", False),
        ("x", "X", False),
        ("a\r\nb\r\n", "a\nb", True),
        ("0.333333333", "0.3333333333333333", True),
        ("0.66666667", "0.666667", True),
        ("0.333333", "0.34", False),
        ("x=0.3, y", "x=0.30000000000000004, y", True),
        ("0.000000", "-0.000000", True),
        ("0.0000000005", "0.000000", False),
        ("0.123456712", "0.123457", True),
        ("0.012346", "0.012345678", True),
        ("0.012345678", "0.012347", False),
        ("0.012345678", "0.01235", False),
        ("0.123456", "0.123457", False),
        ("0.0000014", "0.000001", True),
        ("0.0000005", "0.0000001", False),
        ("0.00000000", "0.0000001", True),
        ("0.000000", "0.0000006", False),
        ("1.4e-7", "1e-7", False),
        ("0.3333333333", "0.33", False),
        ("1.10", "1.1", False),
        ("v1.10.2", "v1.1.2", False),
        ("4", "4.0", False),
        ("1e-7", "1.0e-07", True),
        ("2.5", "2.500001", True),
        ("3.14159265358979323846", "3.14159265358979", False),
        ("\ufffd", "\udcff", False),
        ("1.5 2", "1.5 3", False),
    ],
)
def test_same_output(expected, found, same):
    assert same_output(expected, found) is same


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("assert f(1) == 2", [Case("f(1)", 2)]),
        ("assert f(1, k=[2]) == (3, None), 'wrong'", [Case("f(1, k=[2])", {"tuple": [3, None]})]),
        ("assert 2 == f(1)", [Case("f(1)", 2)]),
        ("assert f() is None\nassert f(-1) is True", [Case("f()", None), Case("f(-1)", True)]),
        ("assert f(0) == set([1])", [Case("f(0)", {"set": [1]})]),
        ("assert f(Pair(1), root) == 1", [Case("f(Pair(1), root)", 1)]),  # its own class, its own variable
        ("assert True\nassert f(1) == 2", [Case("f(1)", 2)]),
        ("assert f(1)", [Script("assert f(1)", ("f",))]),
        ("assert set(f(1)) == {1}", [Script("assert set(f(1)) == {1}", ("f",))]),
        ("assert f(1) == g(1)", [Script("assert f(1) == g(1)", ("f", "g"))]),
        ("assert f(1) is 5", [Script("assert f(1) is 5", ("f",))]),
        (
            "assert f(range(3)) == 3",
            [Script("assert f(range(3)) == 3", ("f",))],
        ),  # `range` is not for the program to say
        ("assert f(1) != 2", [Script("assert f(1) != 2", ("f",))]),
        ("assert Solution().f(1) == 2", [Case("Solution().f(1)", 2)]),
        ("assert f(1)(2)[0].x == 2", [Case("f(1)(2)[0].x", 2)]),
        ("assert N == 2", [Case("N", 2)]),
        (
            "assert f(1) - 2 == 0",
            [Script("assert f(1) - 2 == 0", ("f",))],
        ),  # the difference is not for the program to say
        (
            "assert math.isclose(f(1), 2) == True",
            [Script("import math\nassert math.isclose(f(1), 2) == True", ("f",))],
        ),
        ("assert type(f(1)) == int", [Script("assert f(1).__class__ == int", ("f",))]),
        ("f(1) == 2", [Case("f(1)", 2)]),
        ("from solution import f\nassert f(1)", [Script("from solution import f\nassert f(1)", ("f",))]),
        ("assert f(1) == 2 == 2", [Script("assert f(1) == 2 == 2", ("f",))]),
        ("x = 1\nassert f(x) == 1", [Script("x = 1\nassert f(x) == 1", ("f",))]),
        ("assert f(1) == math.pi", [Script("import math\nassert f(1) == math.pi", ("f",))]),
        ("assert True", []),
    ],
)
def test_parse_tests(source, expected):
    assert list(parse_tests([source]).tests) == expected


def test_known_names_are_not_the_programs():
    assert parse_tests(["assert f(limit) == 1"], known={"limit"}).tests == (Script("assert f(limit) == 1", ("f",)),)
    read = parse_tests(["assert limit(1) == 1", "x = f(1)", "assert x == 1"], known={"limit"})
    assert read.setup == (Script("assert limit(1) == 1"), Script("x = f(1)", ("f",)))  # neither is a test
    assert read.tests == (Script("assert x == 1"),)
    assert parse_setup(["import math as m\ndef a(b): return m.pi\nfor c in [1]: pass"])
    assert not parse_setup(["root = Node(1)"])
    with pytest.raises(BadTest):
        parse_setup(["def f("])
    read = parse_tests(
        ["import your_code\nimport pytest\nassert your_code.f()"], setup=["class Node: pass\nclass E(Exception): pass"]
    )
    assert (read.modules, read.stand_ins, read.classes) == (("your_code",), ("pytest",), ("Node",))


def test_parse_check():
    source = "KEY = {'author': 'x'}\n\ndef check(candidate):\n    'Tests.'\n"
    source += "    assert candidate(1) == 2\n    assert abs(candidate(2) - 1) < 1\n"
    read = parse_check(source + "\ncheck(f)\n", "f")
    assert read.tests == (Case("f(1)", 2), Script("assert abs(f(2) - 1) < 1", ("f",)))
    assert read.setup == (Script("KEY = {'author': 'x'}"),)
    assert called_names(read.tests) == {"f"}
    looped = "def check(c):\n    for i in range(3):\n        assert c(i) == helper(i)\n"
    (script,) = parse_check(looped, "f", header="def helper(x): return x\ndef f(x):\n    'What?'\n").tests
    assert (script.names, script.source.endswith("check(f)")) == (("f",), True)
    (private,) = parse_check("def ref(x): return x\ndef check(c):\n    assert c(ref(1)) == 1\n", "f").tests
    assert private == Script("assert f(ref(1)) == 1", ("f",))  # `ref` stays with the tests
    assert parse_check("def check(c): assert c(1) == 2", "Solution().two").tests == (Case("Solution().two(1)", 2),)
    assert parse_check("def test_f():\n    assert f(1) == 2", "f").tests == (Script("run_test_(test_f)", ("f",)),)


BAD = ["assert f(1) ==", "def check(): pass", "x = 1", "(" * 10_000, "-" * 100_000 + "1", "a\0b"]


@pytest.mark.parametrize("source", BAD)
def test_bad_tests(source):
    with pytest.raises(BadTest):
        parse_check(source, "f")
