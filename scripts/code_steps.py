"""Programs as steps: noisy traces of programs, scored by running them on public tests, stitched, and judged on hidden ones.

    LOCKSTITCH_DATA=DIR python scripts/code_steps.py [--humaneval 82] [--mbpp 120] [--output runs/code]

No model that writes programs is small enough for two cores, so the traces are made of the benchmarks' own solutions: lines
are replaced by mutants (one operator, comparison, constant or name changed). Models err together, so errors are not
independent: of the lines that have mutants one in four is hard, and wrong in three of five traces, seven times in ten by
the same mutant; the others are wrong in one of ten. A step is a line; all traces of a task have the same lines. A trace is
worth the share of the public tests that it passes, and a line the mean worth of the traces that it stands in. Methods:

- single: the first trace. vote: the most frequent text of each line, without a run.
- best of n: the trace that is worth most.
- stitched: at every place the line that is worth most, run once; then, as long as public tests fail, single lines are filled
  in from other traces, the closest call first, and what is worth more is kept. N runs at most for that.
- best of 2n: what as many runs buy without stitching.

The public tests are the first two asserts of HumanEval's check and the first of MBPP's list; the hidden ones the rest, and a
task without enough of them is left out. Rows are written one by one, and a run that was interrupted goes on.
"""

import argparse
import ast
import json
import os
import random
from pathlib import Path

from lockstitch.rewards.code_rewards import CodeReward
from lockstitch.rewards.statistics import paired_difference, wilson

HARD, EASY_WRONG, HARD_WRONG, FAVOURITE = 0.25, 0.1, 0.6, 0.7
METHODS = ("single", "vote", "best_of_n", "stitched", "best_of_2n")
SWAPS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mod,
    ast.Mod: ast.FloorDiv,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}


class _Sites(ast.NodeTransformer):
    """Counts the places where a program can be mutated, or changes the one of that number."""

    def __init__(self, wanted, rng, names):
        self.wanted, self.rng, self.names, self.seen, self.lines = wanted, rng, names, -1, []

    def _is(self, node):
        self.seen += 1
        self.lines.append(node.lineno)
        return self.seen == self.wanted

    def visit_BinOp(self, node):
        self.generic_visit(node)
        if type(node.op) in SWAPS and self._is(node):
            node.op = SWAPS[type(node.op)]()
        return node

    def visit_BoolOp(self, node):
        self.generic_visit(node)
        if self._is(node):
            node.op = SWAPS[type(node.op)]()
        return node

    def visit_Compare(self, node):
        self.generic_visit(node)
        if type(node.ops[0]) in SWAPS and self._is(node):
            node.ops[0] = SWAPS[type(node.ops[0])]()
        return node

    def visit_Constant(self, node):
        if isinstance(node.value, int) and self._is(node):
            node.value = not node.value if isinstance(node.value, bool) else node.value + self.rng.choice((-1, 1))
        return node

    def visit_Name(self, node):
        if isinstance(node.ctx, ast.Load) and node.id in self.names and len(self.names) > 1 and self._is(node):
            node.id = self.rng.choice([name for name in self.names if name != node.id])
        return node


def variables(tree):
    """The names that a program binds itself."""
    found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    found |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    return sorted(found)


def mutants(program, rng):
    """For each line of a program as `ast` writes it the lines that mutants have there; the lines themselves."""
    tree = ast.parse(program)
    text = ast.unparse(tree)
    names, lines = variables(tree), text.split("\n")
    counter = _Sites(-1, rng, names)
    counter.visit(ast.parse(text))
    found = [set() for _ in lines]
    for site, line in enumerate(counter.lines):
        changed = ast.parse(text)
        _Sites(site, rng, names).visit(changed)
        other = ast.unparse(changed).split("\n")
        if len(other) == len(lines):
            found[line - 1] |= {other[line - 1]} - {lines[line - 1]}
    return lines, [sorted(one) for one in found]


def traces(lines, others, rng, n):
    """Noisy traces of a program, as lists of lines."""
    hard = [bool(other) and rng.random() < HARD for other in others]
    favourites = [rng.choice(other) if other else None for other in others]

    def line(place):
        if not others[place] or rng.random() >= (HARD_WRONG if hard[place] else EASY_WRONG):
            return lines[place]
        return favourites[place] if hard[place] and rng.random() < FAVOURITE else rng.choice(others[place])

    return [[line(place) for place in range(len(lines))] for _ in range(n)]


def problems(data, humaneval, mbpp):
    """(name, solution, columns of the public tests, columns of the hidden ones)."""
    with (data / "humaneval/HumanEval.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:humaneval]
    for row in rows:
        check = next(node for node in ast.parse(row["test"]).body if isinstance(node, ast.FunctionDef))
        if len(check.body) < 4 or not all(isinstance(node, ast.Assert) for node in check.body):
            continue
        tests = {}
        for side, body in (("public", check.body[:2]), ("hidden", check.body[2:])):
            inner = "\n".join("    " + ast.unparse(node) for node in body)
            tests[side] = {"test": f"def check(candidate):\n{inner}\n", "entry_point": row["entry_point"]}
        yield row["task_id"], row["prompt"] + row["canonical_solution"], tests["public"], tests["hidden"]
    rows = json.loads((data / "mbpp/sanitized-mbpp.json").read_text(encoding="utf-8"))[:mbpp]
    for row in rows:
        if len(row["test_list"]) >= 2:
            shared = {"test_imports": row["test_imports"]}
            public, hidden = row["test_list"][:1], row["test_list"][1:]
            name = f"MBPP/{row['task_id']}"
            yield name, row["code"], {**shared, "test_list": public}, {**shared, "test_list": hidden}


class Bench:
    """Runs programs of one task on its tests, each once."""

    def __init__(self, reward, public, hidden):
        self.reward, self.public, self.hidden, self.known, self.runs = reward, public, hidden, {}, 0

    def _ask(self, program, columns):
        listed = {name: [value] for name, value in columns.items()}
        (value,) = self.reward(prompts=[""], completions=[f"```python\n{program}\n```"], **listed)
        return 0.0 if value is None else value

    def worth(self, lines):
        """The share of the public tests that it passes; every text is run once, and counted."""
        program = "\n".join(lines)
        if program not in self.known:
            self.known[program] = self._ask(program, self.public)
            self.runs += 1
        return self.known[program]

    def is_right(self, lines):
        """Whether it passes all hidden tests."""
        return self._ask("\n".join(lines), self.hidden) == 1.0


def stitched(bench, drawn):
    """The stitched program: see the module's first lines."""
    worth = [bench.worth(one) for one in drawn]
    ranked = []
    for place in range(len(drawn[0])):
        of = {}
        for lines, value in zip(drawn, worth, strict=True):
            of.setdefault(lines[place], []).append(value)
        mean = {text: sum(values) / len(values) for text, values in of.items()}
        ranked.append(sorted(mean, key=lambda text, mean=mean, of=of: (-mean[text], -len(of[text]), text)))
        ranked[-1] = [(text, mean[text]) for text in ranked[-1]]
    best = [one[0][0] for one in ranked]
    value, left = bench.worth(best), len(drawn) - 1
    fills = [(one[0][1] - worth, place, text) for place, one in enumerate(ranked) for text, worth in one[1:]]
    for _, place, text in sorted(fills):
        if value == 1.0 or left <= 0:
            break
        trial = [*best[:place], text, *best[place + 1 :]]
        found = bench.worth(trial)
        left -= 1
        if found > value:
            best, value = trial, found
    return best


def solve(name, solution, public, hidden, n, seed, reward):
    """Every method on one task, or None where the solution itself cannot be judged, or not mutated."""
    rng = random.Random(f"{seed} {name}")
    lines, others = mutants(solution, rng)
    bench = Bench(reward, public, hidden)
    if not any(others) or bench.worth(lines) < 1.0 or not bench.is_right(lines):
        return None
    drawn = traces(lines, others, rng, 2 * n)
    found, runs = {}, {}

    def note(method, chosen, count):
        found[method], runs[method] = bench.is_right(chosen), count

    note("single", drawn[0], 0)
    places = range(len(lines))
    columns = [[one[i] for one in drawn[:n]] for i in places]
    note("vote", [max(column, key=column.count) for column in columns], 0)
    bench.known, bench.runs = {}, 0
    note("best_of_n", max(drawn[:n], key=bench.worth), bench.runs)
    note("stitched", stitched(bench, drawn[:n]), bench.runs)
    bench.known, bench.runs = {}, 0
    note("best_of_2n", max(drawn, key=bench.worth), bench.runs)
    intact = sum(one == lines for one in drawn[:n])
    return {"task": name, "lines": len(lines), "intact": intact, "right": found, "runs": runs}


def table(rows, n):
    """The figures as Markdown."""
    print(
        f"{len(rows)} tasks, N = {n}; a trace is whole in {100 * sum(r['intact'] for r in rows) / n / len(rows):.1f} %\n"
    )
    print("| method | right on hidden tests | 95 % interval | runs on public tests | stitched minus it |")
    print("|---|---|---|---|---|")
    mine = [row["right"]["stitched"] for row in rows]
    for method in METHODS:
        right = [row["right"][method] for row in rows]
        low, high = wilson(sum(right), len(right))
        runs = sum(row["runs"][method] for row in rows) / len(rows)
        paired = ""
        if method != "stitched":
            found = paired_difference(mine, right)
            paired = (
                f"{100 * found['difference']:+.1f} ({100 * found['ci95'][0]:+.1f} to {100 * found['ci95'][1]:+.1f})"
            )
        mean = 100 * sum(right) / len(right)
        print(f"| {method} | {mean:.1f} | {100 * low:.1f} to {100 * high:.1f} | {runs:.1f} | {paired} |")


def main():
    """Solves the tasks that are not solved yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--humaneval", type=int, default=82)
    parser.add_argument("--mbpp", type=int, default=120)
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/code"))
    arguments = parser.parse_args()
    if "LOCKSTITCH_DATA" not in os.environ:
        raise SystemExit(__doc__)
    path = arguments.output / f"n{arguments.n}-seed{arguments.seed}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    done = {row["task"]: row for row in map(json.loads, filter(None, text.split("\n")))}
    reward = CodeReward(fraction=True, timeout=5.0, workers=1)
    wanted = list(problems(Path(os.environ["LOCKSTITCH_DATA"]), arguments.humaneval, arguments.mbpp))
    with path.open("a", encoding="utf-8") as file:
        for name, solution, public, hidden in wanted:
            if name not in done:
                found = solve(name, solution, public, hidden, arguments.n, arguments.seed, reward)
                done[name] = found or {"task": name, "right": None}
                file.write(json.dumps(done[name]) + "\n")
                file.flush()
    rows = [done[name] for name, *_ in wanted if done[name]["right"] is not None]
    for kind in ("HumanEval", "MBPP", ""):
        print(f"\n{kind or 'both'}: ", end="")
        table([row for row in rows if row["task"].startswith(kind)], arguments.n)


if __name__ == "__main__":
    main()
