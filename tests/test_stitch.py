"""Stitching rules against enumeration, votes and intervals against closed forms, rounds against their limits."""

import itertools
import math
import random
from dataclasses import replace

import pytest
from lockstitch.rewards.statistics import paired_difference, wilson
from lockstitch.rewards.steps import check_steps
from lockstitch.rewards.tasks.named import get_task
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loop import sample
from lockstitch.sampling.trajectory import Ledger, Trajectory
from lockstitch.stitching.canvas import pin_chain
from lockstitch.stitching.method_names import absent
from lockstitch.stitching.methods import Compare, StitchSettings
from lockstitch.stitching.pipeline import Sample
from lockstitch.stitching.pool import Pool
from lockstitch.stitching.rounds import _blame, stands, stitch_rounds
from lockstitch.stitching.score import Scores, load_scorer
from lockstitch.stitching.steps import Clue, Step
from lockstitch.stitching.stitch import FLOOR, best_path, best_trajectory, geometric_mean, paper_rule, public_rule
from lockstitch.stitching.unchecked import unchecked
from lockstitch.stitching.vote import best_of_n, majority_vote, weighted_vote

ARITHMETIC = get_task("arithmetic")


def trajectories(texts_KN):
    return [[Step(k, i, text, (0, len(text))) for i, text in enumerate(texts)] for k, texts in enumerate(texts_KN)]


def random_case(rng, K, N):
    """Chains over a few values, so that steps of different trajectories often fit together."""
    texts, scores = [], []
    for _ in range(K):
        value, lines = 20, []
        for t in range(N):
            operand = (11, 12, 13, 14)[t]
            result = value + operand + rng.choice((0, 0, 0, 1))
            lines.append(f"{value + rng.choice((0, 0, 0, 1))}+{operand}={result}")
            value = result
        texts.append(lines)
        scores.append([rng.choice((0.2, 0.5, 0.8, 0.95, 1.0)) for _ in range(N)])
    question = ", ".join(["20", *[f"+{operand}" for operand in (11, 12, 13, 14)[:N]]])
    return question, trajectories(texts), scores


def test_best_path_is_the_best_of_all_chains():
    rng = random.Random(0)
    for _ in range(60):
        K, N = rng.randint(1, 4), rng.randint(1, 4)
        question, steps, scores = random_case(rng, K, N)
        evidence = best_path(question, ARITHMETIC.checker, steps, scores, 0.9)

        def value(choice, question=question, steps=steps, scores=scores):
            texts = [steps[k][t].text for t, k in enumerate(choice)]
            # A text that stands in several trajectories counts with its best score.
            own = [
                max(
                    s
                    for line, row in zip(steps, scores, strict=True)
                    for step, s in zip(line, row, strict=True)
                    if step.index == t and step.text == texts[t]
                )
                for t in range(len(choice))
            ]
            sound = check_steps(ARITHMETIC.checker, question, texts)
            state = ARITHMETIC.checker.start(question)
            for text in texts:
                state, _ = ARITHMETIC.checker.advance(state, text)
            total = sum(math.log(max(s * o, FLOOR)) for s, o in zip(sound, own, strict=True))
            return ARITHMETIC.checker.is_complete(state), total / len(choice)

        best = max(value(choice) for choice in itertools.product(range(K), repeat=N))
        found = [clue.score for clue in evidence.chain]
        assert len(found) == N
        assert sum(math.log(max(score, FLOOR)) for score in found) / N == pytest.approx(best[1])


@pytest.mark.parametrize("rule", ["paper", "public", "path"])
def test_order_of_trajectories_does_not_matter(rule):
    rng = random.Random(1)
    for _ in range(30):
        question, steps, scores = random_case(rng, 4, 3)
        scores = [[score + rng.random() * 1e-3 for score in row] for row in scores]  # no ties
        order = rng.sample(range(4), 4)
        texts = [[step.text for step in steps[k]] for k in order]
        moved_steps, moved_scores = trajectories(texts), [scores[k] for k in order]
        one = apply_rule(rule, question, steps, scores)
        other = apply_rule(rule, question, moved_steps, moved_scores)
        assert one.render() == other.render()
        assert [clue.step.text for clue in one.chain] == [clue.step.text for clue in other.chain]
        back = dict(enumerate(order))
        assert [sorted(clue.sources) for clue in one.clues] == [
            sorted((back[k], i) for k, i in clue.sources) for clue in other.clues
        ]


def apply_rule(rule, question, steps, scores, delta=0.9):
    if rule == "path":
        return best_path(question, ARITHMETIC.checker, steps, scores, delta)
    return (paper_rule if rule == "paper" else public_rule)(steps, scores, delta)


@pytest.mark.parametrize("rule", ["paper", "path"])
def test_one_trajectory_is_its_own_evidence(rule):
    question, steps, scores = random_case(random.Random(2), 1, 4)
    evidence = apply_rule(rule, question, steps, scores)
    assert [clue.step for clue in evidence.clues] == steps[0]
    assert [clue.step for clue in evidence.chain] == steps[0]


def test_a_delta_above_one_leaves_the_anchor_alone():
    question, steps, scores = random_case(random.Random(3), 4, 3)
    anchor = best_trajectory(scores)
    evidence = apply_rule("paper", question, steps, scores, 1.01)
    assert evidence.anchor == anchor
    assert [clue.step for clue in evidence.clues] == steps[anchor]
    assert [clue.step for clue in apply_rule("public", question, steps, scores, 1.01).clues] == [steps[anchor][-1]]


def test_the_paper_keeps_the_anchor_whole_and_the_public_code_its_last_step():
    steps = trajectories([["1+1=2", "2+1=3"], ["1+1=9", "2+2=4"]])
    scores = [[0.95, 0.6], [0.1, 0.9]]
    assert paper_rule(steps, scores, 0.9).render() == "[c=0.950] 1+1=2\n[c=0.900] 2+2=4\n[c=0.600] 2+1=3"
    assert public_rule(steps, scores, 0.9).render() == "[c=0.950] 1+1=2\n[c=0.600] 2+1=3"  # 0.9 is not more than 0.9


def test_equal_steps_become_one_clue_with_every_source():
    steps = trajectories([["1+1=2"], ["1+1=2"], ["1+1=3"]])
    clues = paper_rule(steps, [[0.9], [1.0], [0.95]], 0.0).clues
    assert [(clue.step.text, clue.score, clue.sources) for clue in clues] == [
        ("1+1=2", 1.0, ((1, 0), (0, 0))),
        ("1+1=3", 0.95, ((2, 0),)),
    ]


def test_a_path_keeps_every_source_of_its_clues():
    steps = trajectories([["20+11=31"], ["20+11=31"], ["20+11=30"]])
    evidence = best_path("20, +11", ARITHMETIC.checker, steps, [[0.8], [1.0], [0.95]], 0.9)
    assert [clue.sources for clue in evidence.chain] == [((1, 0), (0, 0))]
    assert [(clue.step.text, clue.sources) for clue in evidence.clues] == [
        ("20+11=31", ((1, 0), (0, 0))),
        ("20+11=30", ((2, 0),)),
    ]


def test_nothing_in_nothing_out():
    assert paper_rule([[], []], [[], []], 0.9).clues == ()
    assert best_path("1, +1", ARITHMETIC.checker, [[]], [[]], 0.9).clues == ()
    assert best_trajectory([[], []]) is None


def test_a_right_step_that_does_not_follow_is_not_stitched_in():
    question = "20, +11, +12"
    steps = trajectories([["20+11=31", "31+12=44"], ["20+11=32", "32+12=44"], ["20+11=33", "31+12=43"]])
    scores = [[1.0, 0.0], [0.0, 1.0], [0.0, 0.5]]  # the second trajectory's last step is right about a wrong number
    chain = best_path(question, ARITHMETIC.checker, steps, scores, 0.9).chain
    assert [clue.step.text for clue in chain] == ["20+11=31", "31+12=43"]


def test_votes():
    answers = ["5", None, "7", "7", "5", "5.0"]
    assert majority_vote(answers) == 0
    assert majority_vote(answers, ["5", None, "7", "7", "5", "5"]) == 0
    assert weighted_vote(answers, [0.1, 9.0, 0.5, 0.6, 0.2, 0.3]) == 2
    assert best_of_n(answers, [0.1, 9.0, 0.5, 0.6, 0.2, 0.3]) == 3
    assert best_of_n(["1", "2", "2", "3"], [1.0, 1.0, 1.0, 0.5]) == 1  # equals vote
    assert majority_vote([None, None]) is None
    assert best_of_n([None], [1.0]) is None


def test_geometric_mean():
    assert geometric_mean([0.5, 0.5]) == pytest.approx(0.5)
    assert geometric_mean([0.0, 1.0]) == pytest.approx(math.sqrt(FLOOR))
    assert geometric_mean([]) == 0.0


def test_intervals():
    low, high = wilson(8, 10)  # the worked example of Newcombe (1998) has these bounds to four places
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert wilson(0, 0) == (0.0, 1.0)
    found = paired_difference([True, True, False, True], [False, True, False, False])
    assert found["difference"] == 0.5
    assert found["standard_error"] == pytest.approx(math.sqrt((4 * 0.25) / 3 / 4))
    # Of one problem, or where all differences are the same, nothing is known of how they vary.
    assert paired_difference([True], [False])["ci95"] == pytest.approx(
        [1 / 3 - 1.95996 * 5**0.5 / 27**0.5, 1.0], abs=1e-4
    )
    low, high = paired_difference([True] * 5, [False] * 5)["ci95"]
    assert 0.2 < low < 0.4
    assert high == 1.0
    low, high = paired_difference([True] * 500, [True] * 500)["ci95"]
    assert -0.01 < low < 0 < high < 0.01
    with pytest.raises(ValueError, match="2 and 1 outcomes"):
        paired_difference([True, True], [True])


# --- with the embedded sudoku model ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sudoku():
    from lockstitch import embedded_model

    return get_task("sudoku"), Denoiser.from_pretrained(str(embedded_model("sudoku")))


def pools_of(sudoku, questions, n, config, seed=0):
    task, denoiser = sudoku
    scorer = load_scorer("calculator", task)
    batch = {"question": questions, "seed": [seed + i for i in range(len(questions))], "completions": None}
    return Sample(task, scorer, n, denoiser, config)(batch)["pool"]


def questions(count, holes=10, seed=0):
    from lockstitch.rewards.puzzles import sudoku as puzzles

    rng = random.Random(seed)
    out = []
    while len(out) < count:
        grid = list(rng.choice(puzzles.all_grids()))
        for i in rng.sample(range(16), holes):
            grid[i] = "0"
        out.append("".join(grid))
    return out


CONFIG = SamplerConfig(canvas_length=20, steps=4, temperature=1.0)


def test_a_pinned_chain_is_kept_and_only_the_rest_denoised(sudoku):
    task, denoiser = sudoku
    rows = ["3142", "2431", "4213", "1324"]
    chain = [Clue(Step(0, i, row, (0, 4)), 1.0 if i != 2 else 0.0, ()) for i, row in enumerate(rows)]
    canvas = pin_chain(denoiser, task, chain, {0, 1, 3}, 20)
    assert [i for i, token in enumerate(canvas) if token is None] == [10, 11, 12, 13, 19]
    drawn = sample(denoiser, [task.prompt("3102200002100320")], CONFIG, canvases=[canvas])[0]
    lines = drawn.text.split("\n")
    assert [lines[i] for i in (0, 1, 3)] == [rows[i] for i in (0, 1, 3)]


def test_rounds_keep_to_their_budget_and_only_improve(sudoku):
    task, denoiser = sudoku
    scorer = load_scorer("calculator", task)
    asked = questions(12)
    full = pools_of(sudoku, asked, 8, CONFIG)
    pools = [pool.head(4) for pool in full]
    before = [best_path(p.question, task.checker, p.steps_KN, p.score_KN, 0.9).chain for p in pools]
    results = stitch_rounds(
        denoiser,
        task,
        pools,
        scorer,
        CONFIG,
        budgets=[p.ledger.nfe for p in full],
        width=2,
        delta=0.9,
        seeds=list(range(12)),
    )
    for start, result, pool, whole in zip(before, results, pools, full, strict=True):
        assert geometric_mean([c.score for c in result.evidence.chain]) >= geometric_mean([c.score for c in start])
        assert pool.ledger.nfe <= whole.ledger.nfe + CONFIG.total_steps
        assert result.complete == stands(task, pool.question, result.evidence.chain, 0.9)
        if result.complete:
            answer = task.conclude([clue.step.text for clue in result.evidence.chain])
            assert task.is_correct(pool.question, None, answer)
    assert any(result.complete for result in results)


def test_rounds_do_not_depend_on_the_problems_beside(sudoku):
    task, denoiser = sudoku
    scorer = load_scorer("calculator", task)
    asked = questions(6)

    def texts(chosen, memory, width):
        pools = pools_of(sudoku, [asked[i] for i in chosen], 2, CONFIG)
        for pool, i in zip(pools, chosen, strict=True):
            # The noise of the first trajectories is the caller's; draw it the same whoever is beside.
            fresh = pools_of(sudoku, [asked[i]], 2, CONFIG, seed=i)[0]
            pool.__dict__.update(fresh.__dict__)
        stitch_rounds(
            denoiser,
            task,
            pools,
            scorer,
            CONFIG,
            budgets=[24] * len(pools),
            width=width,
            delta=0.9,
            seeds=[100 + i for i in chosen],
            memory=memory,
        )
        return {i: pool.texts_K for i, pool in zip(chosen, pools, strict=True)}

    for memory, width in ((True, 2), (True, 1), (False, 1)):
        together = texts(range(6), memory, width)
        for i in (0, 3, 5):
            assert texts([i], memory, width)[i] == together[i]


def test_the_loop_is_one_canvas_a_round(sudoku):
    task, denoiser = sudoku
    scorer = load_scorer("calculator", task)
    pools = [pool.head(1) for pool in pools_of(sudoku, questions(6), 8, CONFIG)]
    stitch_rounds(
        denoiser,
        task,
        pools,
        scorer,
        CONFIG,
        budgets=[20] * 6,
        width=1,
        delta=0.9,
        seeds=[0] * 6,
        memory=False,
        tabu=0,
    )
    for pool in pools:
        assert pool.ledger.sequential_steps == pool.ledger.nfe
        assert pool.ledger.nfe <= 20 + CONFIG.total_steps


def test_methods_without_a_solver_or_a_model_are_absent(sudoku):
    task, denoiser = sudoku
    scorer = load_scorer("calculator", task)
    settings = StitchSettings(2, "path", 0.9, rounds=True)
    without_solver = Compare(task, scorer, settings, None, denoiser, CONFIG)
    assert set(absent(samples=True, solves=False)) == {"all_traces", "solver_alone"}
    assert set(absent(samples=False, solves=True)) == {"greedy", "remask_loop", "best_of_n_refine"}
    asked = questions(2)
    batch = {"question": asked, "seed": [0, 1], "completions": None}
    sampled = Sample(task, scorer, 2, denoiser, CONFIG)(batch)
    found = without_solver(sampled)["compared"]
    names = {"greedy", "single", "majority_vote", "best_of_n", "weighted_vote", "best_of_n_refine", "remask_loop",
             "stitched"}  # fmt: skip
    assert set(found[0].outcomes) == names


def test_head_costs_what_its_trajectories_cost(sudoku):
    pool = pools_of(sudoku, questions(1), 4, CONFIG)[0]
    assert pool.head(4).ledger.nfe == pool.ledger.nfe == sum(t.ledger.nfe for t in pool.trajectories)
    assert pool.head(1).ledger.nfe == pool.trajectories[0].ledger.nfe
    assert isinstance(pool.head(2), Pool)


def test_the_least_certain_token_of_the_first_failing_step_is_blamed():
    rows = ["3142", "2431", "4213", "1324"]
    scores = [1.0, 0.0, 1.0, 0.0]
    chain = [
        Clue(Step(0, i, row, (0, 4), (5 * i, 5 * i + 4)), score, ())
        for i, (row, score) in enumerate(zip(rows, scores, strict=True))
    ]
    # Row 1 stands at positions 5 to 8; position 6 was given, 8 is the least certain that was written, 16 more so elsewhere.
    confidence = [0.9] * 20
    confidence[6], confidence[8], confidence[16] = 0.1, 0.4, 0.2
    commit_step = [1] * 20
    commit_step[6] = 0
    t = Trajectory(
        0,
        0,
        (1,),
        tuple(range(100, 120)),
        20,
        "",
        True,
        tuple(commit_step),
        tuple(confidence),
        (0.0,) * 20,
        (0,) * 20,
        (),
        Ledger(),
    )
    assert _blame(chain, t, 0.9) == (8, 108)
    assert _blame(chain[:1], t, 0.9) is None
    doubted = [chain[0], replace(chain[1], score=0.5), *chain[2:]]
    assert _blame(doubted, t, 0.9) == (8, 108)
    likely = [chain[0], replace(chain[1], score=0.51), *chain[2:]]  # it does not stand, and is not blamed
    assert _blame(likely, t, 0.9) is None


@pytest.mark.parametrize("ahead", [False, True])
def test_a_judge_that_finds_all_steps_more_likely_right_than_not_forbids_nothing(ahead, sudoku):
    task, denoiser = unchecked(sudoku[0]), sudoku[1]
    still = SamplerConfig(canvas_length=20, steps=4)

    def attempts(score, tabu):
        def judge(question, steps_KN, trajectories):
            return Scores([[score] * len(steps) for steps in steps_KN])

        pools = Sample(task, judge, 1, denoiser, still)({"question": questions(4), "seed": [0] * 4})["pool"]
        spent = {"budgets": [24] * 4, "width": 2, "delta": 0.9, "seeds": [0] * 4}
        stitch_rounds(denoiser, task, pools, judge, still, **spent, tabu=tabu, ahead=ahead)
        return [pool.texts_K for pool in pools]

    assert attempts(0.6, 3) == attempts(0.6, 0)
    assert attempts(0.4, 3) != attempts(0.4, 0)


def test_what_failed_is_not_written_again(sudoku):
    # Without noise a canvas around the same pins comes out the same for ever, unless its failure is banned.
    task, denoiser = sudoku
    scorer = load_scorer("calculator", task)
    still = SamplerConfig(canvas_length=20, steps=4)

    def attempts(tabu):
        pools = pools_of(sudoku, questions(8), 1, still)
        stitch_rounds(
            denoiser,
            task,
            pools,
            scorer,
            still,
            budgets=[24] * 8,
            width=1,
            delta=0.9,
            seeds=[0] * 8,
            memory=False,
            tabu=tabu,
        )
        return [pool.texts_K for pool in pools]

    assert any(len(set(texts)) < len(texts) for texts in attempts(0))
    varied = attempts(3)
    assert sum(len(set(texts)) for texts in varied) > sum(len(set(texts)) for texts in attempts(0))
