"""The benchmarks' own solutions are right, and the same with one step too many are wrong."""

import ast
import copy
import json
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
from lockstitch.rewards.code_rewards import CodeReward
from lockstitch.rewards.sandbox.launchers import Bubblewrap, Limits, Stopped, input_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("bubblewrap"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of escapes in the benchmarks' regular expressions
]
EVERY = 4  # of MBPP's solutions off by one; with 1 it holds as well, and takes minutes


def rows_of(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.split("\n") if line]


def columns_of(rows, *names):
    return {name: [row[name] for row in rows] for name in names}


def not_right(values):
    return [i for i, value in enumerate(values) if value != 1.0]


def test_humaneval_solutions_are_right(data_dir):
    """As the body of the function whose header the prompt is, and as a whole program in a fenced block."""
    rows = rows_of(data_dir / "humaneval/HumanEval.jsonl")
    columns = columns_of(rows, "test", "entry_point")
    bodies = CodeReward()([row["prompt"] for row in rows], [row["canonical_solution"] for row in rows], **columns)
    whole = [f"Here it is:\n```python\n{row['prompt']}{row['canonical_solution']}\n```\nDone." for row in rows]
    assert (len(rows), not_right(bodies)) == (82, [])
    assert not_right(CodeReward(fraction=True)([""] * len(rows), whole, **columns)) == []


@pytest.mark.parametrize(
    ("file", "count", "more"), [("mbpp.jsonl", 474, "test_setup_code"), ("sanitized-mbpp.json", 170, "test_imports")]
)
def test_mbpp_solutions_are_right(data_dir, file, count, more):
    rows = rows_of(data_dir / "mbpp" / file)
    values = CodeReward()([""] * len(rows), [row["code"] for row in rows], **columns_of(rows, "test_list", more))
    assert (len(rows), not_right(values)) == (count, [])


WHOLE = [
    "{}",
    "{}\n```",
    "{}\n```\nThis solves it, as was asked.",
    "```python3.11\n{}\n```",
    "```py\n{}\n```",
    "```text\n{}\n```",
    "```\n{}",
    "<answer>```python\n{}\n```</answer>",
    "<think>Hm.</think>```python\n{}\n```",
    "[BEGIN]\n{}\n[DONE]",
    "{}\n[DONE]",
    "\ufeff{}",
    "Here it is:\n\n{}\n\nIt works, as you see.",
    "```python\n{}\n```\nOutput:\n```\n5\n```",
    "{}\n</s>",
    "{}\n<|endoftext",
    "{}\n\n\ndef more(",
    "<think>\n```python\nx = (\n</think>\n```python\n{}\n```",
    "```python\n{}\n```\nAs in:\n```python\nprint(1 +\n```",
]
BODIES = [
    "{}",
    "{}\n```",
    "{}\n```\nThis solves it.",
    "```python\n{}\n```",
    "<answer>\n{}\n</answer>",
    "{}\n\nThe function is done.",
    "{}\n\n\ndef more(x):\n    retu",
    "{}\n\n\nif __name__ ==",
    "{}\n<|endoftext|><|endoftext|>",
    "{}\n[EOS]",
    "{}\n\n# Test\nprint(1)\n",
    "```\n{}",
    "{}\n\nprint(f(1",
]


@pytest.mark.parametrize("form", WHOLE, ids=repr)
def test_whole_solutions_are_right_in_every_form(data_dir, form):
    """Thirty of each benchmark."""
    rows = rows_of(data_dir / "humaneval/HumanEval.jsonl")[:30]
    texts = [form.replace("{}", row["prompt"] + row["canonical_solution"]) for row in rows]
    assert (
        not_right(CodeReward()([row["prompt"] for row in rows], texts, **columns_of(rows, "test", "entry_point")))
        == []
    )
    rows = rows_of(data_dir / "mbpp/mbpp.jsonl")[:30]
    texts = [form.replace("{}", row["code"]) for row in rows]
    columns = columns_of(rows, "test_list", "test_setup_code")
    assert not_right(CodeReward()([""] * len(rows), texts, **columns)) == []


@pytest.mark.parametrize("form", BODIES, ids=repr)
def test_bodies_are_right_in_every_form(data_dir, form):
    """Thirty of HumanEval's, with their indentation and without."""
    rows = rows_of(data_dir / "humaneval/HumanEval.jsonl")[:30]
    columns = columns_of(rows, "test", "entry_point")
    for body in (lambda text: text, textwrap.dedent):
        texts = [form.replace("{}", body(row["canonical_solution"].rstrip("\n"))) for row in rows]
        assert not_right(CodeReward()([row["prompt"] for row in rows], texts, **columns)) == []


# --- off by one ------------------------------------------------------------------------------------------------------

OTHER = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
OFF = """
def off_by_one(x):
    if isinstance(x, bool) or x is None:
        return not x
    return x + 1 if isinstance(x, (int, float)) else x[:-1] if isinstance(x, (str, list, tuple)) and x else None
"""


def mutants(source):
    """The source with another number or limit in one place; at the end, with another result."""
    tree = ast.parse(source)
    for i, node in enumerate(ast.walk(tree)):
        changed = copy.deepcopy(tree)
        place = list(ast.walk(changed))[i]
        if isinstance(node, ast.Constant) and type(node.value) is int:
            place.value += 1
            yield ast.unparse(changed)
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in OTHER:
            place.ops[0] = OTHER[type(node.ops[0])]()
            yield ast.unparse(changed)
    for node in ast.walk(tree):
        if isinstance(node, ast.Return) and node.value is not None:
            node.value = ast.Call(ast.Name("off_by_one", ast.Load()), [node.value], [])
    yield OFF + ast.unparse(ast.fix_missing_locations(tree))


def fails(launcher, source):
    """Whether a plain script of program and tests ends in an error, within its time."""
    stdin = input_file("")
    with launcher.start(Limits(seconds=1.0), stdin) as process:
        process.send({"kind": "program", "variants": [source]})
        try:
            return process.output(2**20)[1] != 0
        except Stopped:
            return False


def wrong_programs(sources, tests):
    """For each program the first mutant, of the first few, that its tests can tell."""
    launcher = Bubblewrap()

    def first(source, test):
        *few, last = mutants(source)
        return next((mutant for mutant in [*few[:2], last] if fails(launcher, f"{mutant}\n\n{test}")), None)

    with ThreadPoolExecutor(2) as executor:
        return list(executor.map(first, sources, tests))


def test_humaneval_solutions_off_by_one_are_wrong(data_dir):
    rows = rows_of(data_dir / "humaneval/HumanEval.jsonl")
    found = wrong_programs(
        [row["prompt"] + row["canonical_solution"] for row in rows],
        [f"{row['test']}\n\ncheck({row['entry_point']})" for row in rows],
    )
    rows, wrong = zip(*[(row, mutant) for row, mutant in zip(rows, found, strict=True) if mutant], strict=True)
    assert len(rows) >= 80
    assert set(CodeReward()([""] * len(rows), wrong, **columns_of(rows, "test", "entry_point"))) == {0.0}


def test_mbpp_solutions_off_by_one_are_wrong(data_dir):
    rows = rows_of(data_dir / "mbpp/mbpp.jsonl")[::EVERY]
    found = wrong_programs(
        [row["code"] for row in rows],
        ["\n".join([row["test_setup_code"], *row["test_list"]]) for row in rows],
    )
    rows, wrong = zip(*[(row, mutant) for row, mutant in zip(rows, found, strict=True) if mutant], strict=True)
    values = CodeReward()([""] * len(rows), wrong, **columns_of(rows, "test_list", "test_setup_code"))
    assert len(rows) >= 460 // EVERY
    assert [(row["task_id"], value) for row, value in zip(rows, values, strict=True) if value != 0.0] == []
