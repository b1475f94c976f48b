"""What the tests of own tasks share: a directory with rows, a reward, and a task said in every way."""

import json
import sys

import pytest

ROWS = [{"problem": f"{a}, +{a}", "solution": str(2 * a)} for a in (12, 30, 4, 9)]
TASK = """
dataset: sums.jsonl
columns: {question: problem}
prompt: "{question}\\n"
answer: solution
reward: my_reward.py:says
step_unit: my_reward:pieces
canvas_length: 16
"""
REWARD = '''
def says(completions, answer, **columns):
    """1 where the answer stands at the end."""
    return [float(text.strip().endswith(right)) for text, right in zip(completions, answer)]


def pieces(text):
    return [line for line in text.split("\\n") if "=" in line]
'''
MODULE = """
from my_reward import pieces, says
from lockstitch.rewards.tasks.task import Source, Task

def question(columns):
    return columns["question"]

def read(row):
    return {**row, "question": row["problem"] + "\\n", "answer": row.get("solution", row.get("answer"))}

task = Task("sums", ((says, 1.0),), {"train": Source(data="sums.jsonl")}, read, question, unit=pieces, canvas_length=16)

def make():
    return task
"""


TINY = ["--max_steps", "2", "--report_to", "none", "--use_cpu", "true", "--bf16", "false", "--output_dir", "out"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with rows, a reward and a task in YAML and in Python, and an installed package that offers it."""
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "my_reward.py").write_text(REWARD)
    (tmp_path / "sums.yaml").write_text(TASK)
    (tmp_path / "my_task.py").write_text(MODULE)
    info = tmp_path / "site" / "acme_sums-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-sums\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[lockstitch.tasks]\nacme_sums = acme_sums:make\nacme_value = acme_sums:task\n"
    )
    (tmp_path / "site" / "my_reward.py").write_text(REWARD)
    (tmp_path / "site" / "acme_sums.py").write_text(
        MODULE.replace("def make():", 'def make():\n    """Sums of two."""')
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.chdir(tmp_path)
    for name in ("my_reward", "acme_sums", "my_task"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield tmp_path
    for name in ("my_reward", "acme_sums", "my_task"):
        sys.modules.pop(name, None)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
