"""Code rewards: which columns are read, how a program is found in a completion, and what it is paid."""

import os
import pickle
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lockstitch.rewards.code_rewards import CodeReward, code_fraction_reward, code_reward
from lockstitch.rewards.programs.code_extract import defines, extract_code, find_code, header_in, variants
from lockstitch.rewards.programs.code_names import BadTest
from lockstitch.rewards.programs.code_tests import parse_check, parse_tests

DOUBLE = "def double(x):\n    return 2 * x\n"
HALF_RIGHT = "def double(x):\n    return 2 * x if x < 3 else x\n"
ASSERTS = ["assert double(1) == 2", "assert double(2) == 4", "assert double(3) == 6", "assert double(4.5) == 9.0"]

sandboxed = pytest.mark.usefixtures("bubblewrap")


def both(completions, prompts=None, **columns):
    prompts = prompts or [""] * len(completions)
    return code_reward(prompts, completions, **columns), code_fraction_reward(prompts, completions, **columns)


@sandboxed
def test_asserts():
    rows = [DOUBLE, HALF_RIGHT, "def double(x): return x", "double =", DOUBLE, DOUBLE]
    tests = [*[ASSERTS] * 4, [], None]
    assert both(rows, test_list=tests) == ([1.0, 0.0, 0.0, 0.0, None, None], [1.0, 0.5, 0.0, 0.0, None, None])
    assert both(rows, tests=tests) == both(rows, test_list=tests)
    assert both([DOUBLE, HALF_RIGHT], tests=["\n".join(ASSERTS)] * 2) == ([1.0, 0.0], [1.0, 0.5])


@sandboxed
def test_set_up_and_what_tests_may_do():
    """Classes of the program in MBPP's set-up; names of a set-up, exceptions, several calls, loops in plain tests."""
    tree = "class Node:\n    def __init__(self, v): self.v = v\ndef value(n): return n.v\n"
    row = {"test_setup_code": ["root = Node(5)"], "test_list": [["assert value(root) == 5"]]}
    assert code_reward([""], [tree], **row) == [1.0]
    tests = [
        "assert double(limit) == 20",
        "assert double(double(1)) == double(2)",
        "for i in range(limit):\n    assert double(i) == i + i",
        "try:\n    double(None)\n    raise SystemExit\nexcept TypeError as error:\n    assert 'None' in str(error)",
        "assert sorted(double([3, 1])) == [1, 1, 3, 3]",
        "assert isinstance(double(1), int) and type(double((1,))) is tuple",
        "assert double({'a': 1}['a']) == 2",
        "x = [1]\nassert double(x) == [1, 1] and x == [1]",
    ]
    for setup in ("limit = 10", "import math\nlimit = math.floor(10.5)"):
        assert code_fraction_reward([""], [DOUBLE], tests=[tests], setup=[setup]) == [1.0]
    wrong = "def double(x):\n    return 3 * x"
    assert code_fraction_reward([""], [wrong], tests=[tests], setup=["limit = 10"]) == [pytest.approx(2 / 8)]


@sandboxed
def test_tests_that_cannot_be_run_leave_a_program_unscored(caplog):
    rows = [["assert double(object()) == 2"], ["assert double(1) =="], ["assert double(1) in missing(2)"]]
    values = code_reward([""] * 3, [DOUBLE] * 3, tests=rows)
    assert values == [None, None, 0.0]  # `missing` may have been the program's to define
    assert "cannot be run" in caplog.text
    assert "not Python" in caplog.text


HEADER = """
from typing import List

def helper(x):
    return x + 1

def total(xs: List[int]) -> int:
    '''The sum.'''
"""
CHECK = "METADATA = {}\n\ndef check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n"
BODIES = [
    "    return sum(xs)\n",
    "return sum(xs)",
    "    s = 0\n    for x in xs:\n        s += x\n    return s",
    "s = 0\n    for x in xs:\n        s += x\n    return s",
    "s = 0\nfor x in xs:\n    s += x\nreturn s",
    "\n\n    return sum(xs)",
    "```python\n    return sum(xs)\n```",
    "def total(xs: List[int]) -> int:\n    return sum(xs)",
    "Easy:\n```python\ndef total(xs):\n    return helper(sum(xs)) - 1\n```\nAs in:\n```python\nprint(total([1]))\n```",
    "```\n    def total(xs):\n        return sum(xs)\n```",
    "<answer>\ndef total(xs):\n    return sum(xs)\n</answer>",
    "class Solution:\n    def total(self, xs: List[int]) -> int:\n        return helper(sum(xs)) - 1",
    "```python\ndef total(xs):\n    return sum(xs)<|eot_id|>",
]


@sandboxed
@pytest.mark.parametrize("where", ["column", "prompt", "conversation", "fence"])
def test_a_header_and_its_body(where):
    columns = {"test": [CHECK] * len(BODIES), "entry_point": ["total"] * len(BODIES)}
    prompt = {
        "column": "Sum them up!",
        "prompt": HEADER,
        "conversation": [{"role": "user", "content": HEADER}],
        "fence": f"Complete this:\n```python\n{HEADER}```\nThe function is `total`.",
    }[where]
    if where == "column":
        columns["code_prompt"] = [HEADER] * len(BODIES)
    completions = [[{"role": "assistant", "content": body}] for body in BODIES]
    assert code_reward([prompt] * len(BODIES), completions, **columns) == [1.0] * len(BODIES)


@sandboxed
def test_what_the_header_defines_is_not_for_the_program_to_redefine():
    """A round trip through a helper of the prompt: the program replaces the helper, and does nothing itself."""
    header = "def encode(s):\n    return s[::-1]\n\ndef decode(s):\n    '''Undo `encode`.'''\n"
    check = "def check(candidate):\n    for s in ('abc', 'xy'):\n        assert candidate(encode(s)) == s\n"
    direct = "def check(candidate):\n    assert candidate(encode('abc')) == 'abc'\n"
    cheat = "def encode(s):\n    return s\n\ndef decode(s):\n    return s\n"
    completions = ["    return s[::-1]", cheat]
    for test in (check, direct):
        values = code_reward(
            [""] * 2, completions, test=[test] * 2, entry_point=["decode"] * 2, code_prompt=[header] * 2
        )
        assert values == [1.0, 0.0]


@sandboxed
def test_reference_functions_of_the_tests_stay_with_them():
    check = (
        "def reference(x):\n    return 7919 * x\n\ndef check(candidate):\n    assert candidate(2) == reference(2)\n"
    )
    thief = "def f(x):\n    return reference(x)"
    honest = "def f(x):\n    return 7919 * x"
    assert code_reward([""] * 2, [thief, honest], test=[check] * 2, entry_point=["f"] * 2) == [0.0, 1.0]


@sandboxed
def test_inputs_and_outputs():
    adds = "```python\nimport sys\nfor line in sys.stdin:\n    print(sum(map(int, line.split())))\n```"
    inputs, outputs = ["1 2\n", "3 4\n5 6\n", ""], ["3\n", "7\n11", ""]
    first_only = "print(sum(map(int, input().split())))"
    values = both([adds, first_only], inputs=[inputs] * 2, outputs=[outputs] * 2)
    assert values == ([1.0, 0.0], [1.0, pytest.approx(1 / 3)])
    late = adds.replace("import sys", "import sys, time\ntime.sleep(5)")
    assert CodeReward(timeout=0.5)([""], [late], inputs=[inputs], outputs=[outputs]) == [0.0]


@sandboxed
def test_what_is_logged():
    extra, metrics = {}, {}
    completions = [DOUBLE, "def double(x): return 0", "def double(x): return y", DOUBLE]
    values = code_reward(
        [""] * 4,
        completions,
        tests=[*[ASSERTS] * 3, None],
        log_extra=extra.__setitem__,
        log_metric=metrics.__setitem__,
    )
    assert values == [1.0, 0.0, 0.0, None]
    assert metrics == {"rewards/code_reward/none": 0.25}
    passed, wrong, raised, unscored = extra["code_result"]
    assert (passed, wrong, unscored) == ("passed", "double(1) returns 0", "[not scored: no tests in the row]")
    assert raised.startswith("double(1) raises NameError: name 'y'")


@sandboxed
def test_rewards_are_pickled_with_their_settings():
    reward = CodeReward(backend="unsafe", fraction=True, timeout=3.0, workers=1, name="mine")
    assert repr(pickle.loads(pickle.dumps(reward))) == repr(reward)
    assert pickle.loads(pickle.dumps(reward))([""], [HALF_RIGHT], tests=[ASSERTS]) == [0.5]
    assert (reward.__name__, CodeReward().__name__) == ("mine", code_reward.__name__)
    assert pickle.loads(pickle.dumps(code_reward)) is code_reward


@sandboxed
def test_a_hung_program_costs_its_own_time():
    began = time.monotonic()
    hung = "def double(x):\n    while True: pass"
    values = CodeReward(timeout=1.0, workers=2)([""] * 5, [hung, *[DOUBLE] * 4], tests=[ASSERTS] * 5)
    assert values == [0.0, 1.0, 1.0, 1.0, 1.0]
    assert time.monotonic() - began < 5.0


# --- extraction ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "x = 1"),
        ("a\n```python\nx = 1\n```\nb", "x = 1"),
        ("```py\nx = 1\n```\n```text\n5\n```", "x = 1"),
        ("```python\nx = 1\n```\n```\n5\n```", "x = 1"),
        ("```\nx = 1\n```\nand\n```\nx = 2\n```", "x = 2"),
        ("```Python\nx = 1", "x = 1"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''"),
        ("~~~python\nx = 1\n~~~", "x = 1"),
        ("```python title='a'\nx = 1\n```", "x = 1"),
        ("```bash\nls\n```", "```bash\nls\n```"),
        ("<answer>x = 1</answer>", "x = 1"),
        ("``` ```", "``` ```"),
        ("", ""),
    ],
)
def test_extract_code(text, code):
    assert extract_code(text) == code


F = "def f(x):\n    return x"
FORMS = [
    "{}\n```",
    "{}\n```\nIt gives x.",
    "{}\n```\nAs in:\n```python\nf(1)\n```",
    "{}```",
    "Here: ```python\n{}\n```",
    "\ufeff{}",
    "1. So:\n    ```python\n    def f(x):\n        return x\n    ```",
    "```python\r\ndef f(x):\r\n    return x\r\n```",
    *(
        f"```{label}\n{{}}\n```\nThis prints:\n```\n5\n```"
        for label in (
            "python3.11",
            "py",
            "ipython",
            "Python",
            "python\u200b",
            "{{.python}}",
            "python title='a.py'",
            "",
            "text",
            "plaintext",
            "code",
        )
    ),
    "<think>\n```python\ndef f(x):\n    return -x\n```\n</think>\n```python\n{}\n```",
    "<think>hm</think>```python\n{}\n```",
    "<think>\n```python\ndef f(x):\n    return -x\n</think>\n```python\n{}\n```",
    "<think>f?</think>\n{}",
    "<answer>```python\n{}\n```</answer>",
    "<answer>\n{}\n</answer>",
    "<answer>{}",
    "{}\n</answer>",
    "<reasoning>\n```\nf = 1\n```\n</reasoning>\n<answer>\n{}\n</answer>",
    "```python\n{}\n```\n<answer>See above.</answer>",
    "[BEGIN]\n{}\n[DONE]",
    "[BEGIN]\n{}",
    "{}\n[DONE]",
    "[PYTHON]\n{}\n[/PYTHON]",
    "[BEGIN]\n```python\n{}\n```\n[DONE]",
    "<pre><code class='python'>\n{}\n</code></pre>",
    "<code>\n{}\n</code>",
    "\\begin{{lstlisting}}[language=Python]\n{}\n\\end{{lstlisting}}",
    "~~~~\n{}\n~~~~",
    "> ```python\n> def f(x):\n>     return x\n> ```",
    "```python def f(x):\n    return x\n```",
    *(
        f"{{}}\n{token}"
        for token in ("</s>", "[EOS]", "<pad><pad>", "<|endoftext", "<|", "<|eot_id|>", "<|mdm_mask|>", "<eos>")
    ),
    "{}\n<|endoftext|>def f(x):\n    return -x",
    "```python\n{}<|im_end|>",
    "```pycon\n>>> def f(x):\n...     return x\n```",
]


@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_customary_forms(form):
    assert extract_code(form.format(F), ["f"]).strip().replace("    def", "def").replace("        ", "    ") == F


def test_fences_that_are_the_programs_own():
    docstring = "def f(x):\n    '''As in\n    ```\n    f(1)\n    ```\n    '''\n    return x"
    writes = "def f(x):\n    # don't\n    return '```' + x + '```'"
    asks = 'def f(x):\n    if x.startswith("```python"):\n        return """\n```\n"""'
    for code in (docstring, writes, asks):
        for form in (
            "```python\n{}\n```",
            "So:\n```\n{}\n```\nand\n```\n1\n```",
            "<think>hm</think>```py\n{}\n```",
            "```python\n{}",
        ):
            assert extract_code(form.format(code), ["f"]) == code
    assert extract_code("```python\ndef f(x):\n    return x  # ```\n```", ["f"]) == "def f(x):\n    return x  # "
    assert extract_code("```python\ns = '<|im_end|>'\n```") == "s = ''"
    assert extract_code("`def f(x): return x`", ["f"]) == "def f(x): return x"
    assert extract_code("Call `f` as in ```f(1)```.\n\ndef f(x): return x", ["f"]).endswith("def f(x): return x")


def test_several_blocks_are_one_program():
    helpers, main = "import re\ndef half(x):\n    return x / 2", "def f(x):\n    return half(x)"
    text = "```python\n{}\n```\nthen\n```python\n{}\n```\nas in\n```python\nprint(f(1))\n```"
    for order in ((helpers, main), (main, helpers)):
        assert extract_code(text.format(*order), ["f"]) == f"{helpers}\n\n{main}"
    draft, final = "def f(x):\n    return half(x) + g(x)\ndef half(x):\n    return x", "def f(x):\n    return x"
    assert extract_code(text.format(draft, final), ["f"]) == final
    script = (
        "```python\nprint(int(input()) * 2)\n```\nSince\n```python\nint('21') * 2  # 42\n```\nIt prints\n```\n42\n```"
    )
    assert extract_code(script, reads=True) == "print(int(input()) * 2)"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("Here is the function:\n\ndef f(x):\n    return x\n\nIt returns x, always.", F),
        ("def f(x):\n    return x\n\ndef g(", F),
        ("def f(x):\n    return x\n\nif __name__ ==", F),
        ("def f(x):\n    return x\n\nprint(f(1", F),
    ],
)
def test_prose_and_what_is_cut_off(text, meant):
    code = find_code(text, ["f"])
    compiling = [way for way in variants(code.text, is_whole=code.is_whole) if compiles(way)]
    assert compiling[0].strip() == meant
    body = [
        way for way in variants(text.replace("def f(x):\n", ""), "def f(x):\n", "f", is_whole=False) if compiles(way)
    ]
    assert body[0].strip() == meant


@pytest.mark.parametrize(
    "code", ["print(\u201chi\u201d)\ndef f(x):\n    return x", "def f(x):\n    return x\n\nprint(\u201chi\u201d)"]
)
def test_what_is_no_python_is_not_mended(code):
    for text in (code, f"```python\n{code}\n```"):
        found = find_code(text, ["f"])
        assert not any(map(compiles, variants(found.text, is_whole=found.is_whole)))
    cut = find_code("```python\ndef f(x):\n    return x\n\ndef g(\n```", ["f"])
    assert not any(map(compiles, variants(cut.text, is_whole=cut.is_whole)))  # its end was marked


def compiles(source):
    try:
        compile(source, "x", "exec")
    except SyntaxError:
        return False
    return True


def test_the_block_that_defines_what_is_called():
    text = "```python\ndef f(x): pass\n```\n```python\nf(1)\n```"
    assert (extract_code(text), extract_code(text, ["f"])) == ("def f(x): pass\n\nf(1)", "def f(x): pass")
    assert all(defines(source, "f") for source in ("async def f(", " class f:", "f = 1", "x\ndef f (x)"))
    assert not any(defines(source, "f") for source in ("def g(f):", "def ff():", "#def f", "f == 1"))
    assert header_in("What is f(x)?", "f") is None
    assert header_in("Write it:\n\nimport re\ndef f(x):\n", "f") == "import re\ndef f(x):\n"
    assert variants("x = 1") == ("x = 1",)


PIECES = [
    "```", "```python\n", "~~~", "\n", " ", "    ", "def f(x):", "return x", "\n```\n", "<answer>", "</answer>", "assert ",
    "f(1)", " == ", "2", "(", ")", "[", "]", "{", "}", "'", '"', "'''", "\\", "#", ":", ",", "check", "candidate",
    "def check(candidate):\n", "lambda", "f'{", "set([1])", "is None", "\u2028", "\ud800", "\0", "<|eot_id|>", "9" * 50,
    "__import__('os').system('true')",
]  # fmt: skip
SOUP = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)
RUNS = st.builds(lambda a, b, n: (a + b) * n, st.sampled_from(PIECES), st.sampled_from(PIECES), st.integers(2, 3000))
TEXTS = st.one_of(SOUP, RUNS, st.text(max_size=200), st.builds(lambda a, b, c: a + b + c, SOUP, RUNS, SOUP))


def timed(function, *arguments):
    for _ in range(3):  # a pause of the collector does not repeat
        began = time.thread_time()
        result = function(*arguments)
        if time.thread_time() - began < 1.0:
            return result
    raise AssertionError(f"{function.__name__} takes over a second on {arguments!r}")


def check_readers(text):
    code = timed(extract_code, text, ["f"])
    assert isinstance(code, str)
    assert all(isinstance(way, str) for way in timed(variants, code, "def f(x):\n", "f"))
    assert isinstance(timed(header_in, text, "f"), str | None)
    for parse in (lambda: parse_tests([text]), lambda: parse_check(text, "f")):
        try:
            timed(parse)
        except BadTest:
            continue


def fuzz(count):
    options = settings(
        max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    options(given(TEXTS)(check_readers))()


@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_fuzzed_texts():
    fuzz(100)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_fuzzed_texts_long():
    fuzz(10_000)


def test_reading_runs_nothing():
    text = "```python\nimport os; os.environ['FUZZED'] = '1'\n```"
    check_readers(text)
    check_readers("assert f(__import__('os').environ.update(FUZZED='1')) == set([1])")
    assert "FUZZED" not in os.environ
