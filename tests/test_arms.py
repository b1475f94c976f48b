"""The arms beside the plain ones: walks against enumeration, opened canvases, width, budgets, plans."""

import itertools
import math
import random
from collections import Counter

import pytest
import torch
from lockstitch.rewards.puzzles import countdown
from lockstitch.rewards.puzzles.checkers import SudokuChecker
from lockstitch.rewards.steps import partial_soundness
from lockstitch.rewards.tasks.named import get_task
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.trajectory import Ledger
from lockstitch.stitching.arms import Arms, stitched, vgb_momentum
from lockstitch.stitching.guided import guided_rounds, opened
from lockstitch.stitching.method_names import ASKED_FOR, METHODS
from lockstitch.stitching.methods import Compare, StitchSettings
from lockstitch.stitching.pipeline import Sample
from lockstitch.stitching.plans import AnswerPlanner, Plan, TextPlanner, planned
from lockstitch.stitching.refine import Answered
from lockstitch.stitching.score import Calculator, Custom, Scores
from lockstitch.stitching.steps import Clue, Step
from lockstitch.stitching.values import HOLE, Values
from lockstitch.stitching.walk_law import DOWN, UP, children_law, keeps_on
from lockstitch.stitching.walks import Proposals, Walk, Walker, run_momentum, run_reveals

SUDOKU = get_task("sudoku")
QUESTION = "3102200002100320"
RIGHT = "3142\n2431\n4213\n1324"
CONFIG = SamplerConfig(canvas_length=20, steps=5, temperature=0.7)

# --- the law of the walk, enumerated ---------------------------------------------------------------------------------

L = 3
STATES = list(itertools.product((0, 1, None), repeat=L))


def toy(seed, zero=()):
    """A law over three positions of two tokens, and values of all canvases; full ones in `zero` are worth nothing."""
    rng = random.Random(seed)
    weight = {full: rng.random() for full in itertools.product((0, 1), repeat=L)}
    p = {x: sum(w for full, w in weight.items() if agrees(x, full)) / sum(weight.values()) for x in STATES}
    value = {x: 0.0 if x in zero else rng.uniform(0.1, 1) for x in STATES}
    return p, value


def agrees(x, full):
    return all(token in (None, other) for token, other in zip(x, full, strict=True))


def children(x):
    for i in (i for i in range(L) if x[i] is None):
        for token in (0, 1):
            yield (*x[:i], token, *x[i + 1 :])


def parents(x):
    return [(*x[:i], None, *x[i + 1 :]) for i in range(L) if x[i] is not None]


def chain_of(p, value):
    """Where the walk goes from each canvas and direction, with which probability."""
    law = {}
    for x, direction in itertools.product(STATES, (UP, DOWN)):
        masked = x.count(None)
        share = {child: p[child] / p[x] / masked for child in children(x)}
        up = sum(part * value[child] for child, part in share.items())
        on = keeps_on(direction, up, value[x] if parents(x) else 0.0)
        if direction == UP:
            ahead = children_law(share, value) if share else {}
        else:
            ahead = {parent: 1 / len(parents(x)) for parent in parents(x)}
        moves = {(y, direction): on * part for y, part in ahead.items()}
        law[x, direction] = {**moves, (x, -direction): 1 - on}
    return law


def stationary(law):
    index = {state: i for i, state in enumerate(law)}
    move = torch.zeros(len(law), len(law), dtype=torch.float64)
    for state, to in law.items():
        for other, probability in to.items():
            move[index[state], index[other]] += probability
    torch.testing.assert_close(move.sum(1), torch.ones(len(law), dtype=torch.float64))
    # pi P = pi with sum 1, solved directly, as a walk with momentum may be periodic.
    system = torch.cat(
        [move.T - torch.eye(len(law), dtype=torch.float64), torch.ones(1, len(law), dtype=torch.float64)]
    )
    right = torch.zeros(len(law) + 1, dtype=torch.float64)
    right[-1] = 1
    found = torch.linalg.lstsq(system, right[:, None], driver="gelsd").solution[:, 0]
    torch.testing.assert_close(found @ move, found)
    return {state: float(found[i]) for state, i in index.items()}


@pytest.mark.parametrize("zero", [(), ((0, 1, 0), (1, 1, 1))])
def test_full_canvases_are_visited_by_probability_times_value(zero):
    for seed in range(5):
        p, value = toy(seed, zero)
        visits = stationary(chain_of(p, value))
        full = [x for x in STATES if None not in x]
        found = {x: visits[x, UP] + visits[x, DOWN] for x in full}
        wanted = {x: p[x] * value[x] for x in full}
        for x in full:
            assert found[x] / sum(found.values()) == pytest.approx(wanted[x] / sum(wanted.values()), abs=1e-9)


def test_with_true_values_the_walk_turns_at_the_ends_alone():
    p, value = toy(3)
    reward = {x: value[x] for x in STATES if None not in x}
    true = {x: sum(p[f] * r for f, r in reward.items() if agrees(x, f)) / p[x] for x in STATES}
    for (x, direction), to in chain_of(p, true).items():
        at_an_end = (direction == UP and None not in x) or (direction == DOWN and x.count(None) == L)
        assert to.get((x, -direction), 0.0) == pytest.approx(float(at_an_end), abs=1e-12)


TOKENS = (17, 18)


class Told(Walker):
    """A walker whose model is a law over three places: each token is drawn exactly as often as it is likely."""

    def __init__(self, denoiser, weight, value, only_falls):
        super().__init__(denoiser, SamplerConfig(canvas_length=L, temperature=1), self)
        self.weight, self.value, self.only_falls, self.values = weight, value, only_falls, self

    def __call__(self, problem, question, prompt_ids, partials):
        return [self.value[self.state(partial.ids_G)] for partial in partials], Ledger()

    def state(self, ids):
        return tuple(None if one is None else TOKENS.index(one) for one in ids)

    def proposals(self, walks):
        found = []
        for walk in walks:
            walk.moves, walk.passes = walk.moves + 1, walk.passes + 1
            x = self.state(walk.ids_G)
            draws = [
                [TOKENS[f[i]] for f, w in self.weight.items() if agrees(x, f) for _ in range(w)] for i in range(L)
            ]
            found.append(Proposals(draws, [[0.5] * len(of) for of in draws], [TOKENS[0]] * L, [0.5] * L))
        return found


@pytest.mark.parametrize("only_falls", [False, True])
def test_walks_visit_full_canvases_by_probability_times_value(denoiser, only_falls):
    """What `run_momentum` and its walker do, not only the law that they ask: thousands of visits against enumeration."""
    rng = random.Random(1)
    weight = {full: rng.randint(1, 6) for full in itertools.product((0, 1), repeat=L)}
    value = {x: rng.uniform(0.1, 1) for x in STATES}
    if only_falls:  # worth the product of what its tokens are worth, each less than 1
        worth = {(i, token): rng.uniform(0.3, 1) for i in range(L) for token in (0, 1)}
        value = {x: math.prod(worth[i, token] for i, token in enumerate(x) if token is not None) for x in STATES}
    walker = Told(denoiser, weight, value, only_falls)
    visits = Counter()

    def accept(_, trajectory):
        visits[walker.state(trajectory.canvas_ids)] += 1
        return False

    walks = [Walk.start(0, "", [5], seed, [None] * L) for seed in range(10)]
    run_momentum(walker, walks, [2000] * len(walks), accept)
    wanted = {full: w * value[full] for full, w in weight.items()}
    assert sum(visits.values()) > 2500
    for full, share in wanted.items():
        assert visits[full] / sum(visits.values()) == pytest.approx(share / sum(wanted.values()), abs=0.045)


def test_a_reveal_goes_by_share_times_value_and_by_share_where_nothing_is_worth_anything():
    assert children_law({"a": 0.5, "b": 0.5}, {"a": 0.2, "b": 0.6}) == pytest.approx({"a": 0.25, "b": 0.75})
    assert children_law({"a": 0.25, "b": 0.75}, {"a": 0.0, "b": 0.0}) == {"a": 0.25, "b": 0.75}
    assert keeps_on(UP, 0.0, 0.0) == 0.0
    assert keeps_on(DOWN, 0.0, 0.0) == 1.0


# --- what a partly known text is worth -------------------------------------------------------------------------------


def test_a_partly_known_grid_is_sound_until_a_unit_a_clue_or_the_form_is_violated():
    checker = SudokuChecker()
    assert checker.partial(QUESTION, HOLE * 20, HOLE) == 1.0
    assert checker.partial(QUESTION, RIGHT, HOLE) == 1.0
    rng = random.Random(0)
    for _ in range(200):
        cells = list(RIGHT + HOLE)
        for i in rng.sample(range(19), 12):
            cells[i] = HOLE
        assert checker.partial(QUESTION, "".join(cells), HOLE) == 1.0
        i = rng.choice([i for i in range(19) if cells[i] != HOLE])
        cells[i] = rng.choice([c for c in "1234\n" if c != cells[i]])
        full = [cell if cell != HOLE else other for cell, other in zip(cells, RIGHT + HOLE, strict=True)]
        assert checker.partial(QUESTION, "".join(full), HOLE) == 0.0
    assert checker.partial(QUESTION, RIGHT[:10], HOLE) == 0.0  # an end before its time


def test_lines_are_judged_up_to_the_first_one_with_a_hole():
    task = get_task("arithmetic")
    question = "12, +7, -5"
    for text, worth in {
        "12+7=19\n19-5=14\n#### 14": 1.0,
        "12+7=19\n19-5=1?\n#### 14": 1.0,
        "12+7=18\n19-5=1?": 0.0,
        "12+?=18\n19-5=13": 1.0,
        "12+7=19": 0.0,
    }.items():
        assert partial_soundness(task.checker, question, text, "?") == worth, text


# --- walks of the embedded model -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def denoiser():
    from lockstitch import embedded_model

    return Denoiser.from_pretrained(str(embedded_model("sudoku-early")))


def walks_of(denoiser, questions, seeds):
    prompts = denoiser.encode_prompts([SUDOKU.prompt(question) for question in questions])
    return [
        Walk.start(i, question, prompt, seed, [None] * 20)
        for i, (question, prompt, seed) in enumerate(zip(questions, prompts, seeds, strict=True))
    ]


def test_reveals_cost_what_a_trajectory_costs_and_do_not_depend_on_the_walks_beside(denoiser):
    walker = Walker(denoiser, CONFIG, Values(denoiser, SUDOKU, Calculator(SUDOKU)))
    together = walks_of(denoiser, [QUESTION, "0140432014020000", QUESTION], [1, 2, 3])
    run_reveals(walker, together)
    alone = walks_of(denoiser, ["0140432014020000"], [2])
    run_reveals(walker, alone)
    assert alone[0].ids_G == together[1].ids_G
    for walk in together:
        trajectory = walk.trajectory(denoiser)
        assert trajectory.ledger.nfe == trajectory.ledger.sequential_steps <= 5
        assert all(since > 0 for since in trajectory.commit_step[: trajectory.length])


def test_a_scorer_that_reads_whole_texts_reads_the_canvas_filled_up(denoiser):
    read = []

    def score(question, steps_KN, trajectories):
        read.extend(t.text for t in trajectories)
        return [[0.5 for _ in steps] for steps in steps_KN]

    walker = Walker(denoiser, CONFIG, Values(denoiser, SUDOKU, Custom("mine", score)))
    (walk,) = walks_of(denoiser, [QUESTION], [1])
    (proposed,) = walker.proposals([walk])
    share, value = walker.children(walk, proposed)
    assert sum(share.values()) == pytest.approx(1.0)
    assert len({place for place, _ in share}) == 8
    assert set(value.values()) <= {0.5**k for k in range(21)}
    assert len(read) == len(share)
    assert all(len(text) >= 8 for text in read)


def test_a_problem_pays_for_its_own_scores_whatever_is_asked_beside_it(denoiser):
    """The same question twice in one portion costs each what it costs alone."""
    scorer = Custom("counted", lambda question, steps, _: Scores([[0.5] * len(one) for one in steps], len(steps)))
    scorer.reads_text_alone = True
    bills = {}
    for asked in ([QUESTION], [QUESTION, QUESTION]):
        walks = walks_of(denoiser, asked, [1] * len(asked))
        run_reveals(Walker(denoiser, CONFIG, Values(denoiser, SUDOKU, scorer)), walks)
        bills[len(asked)] = [walk.ledger.scorer_tokens for walk in walks]
    assert bills[2] == bills[1] * 2


# --- opening in proportion, width, budgets ---------------------------------------------------------------------------


def test_tokens_open_in_proportion_to_the_score(denoiser):
    rows = RIGHT.split("\n")
    scores = [1.0, 0.0, 0.7, 1.0]
    chain = [Clue(Step(0, i, row, (0, 4)), score, ()) for i, (row, score) in enumerate(zip(rows, scores, strict=True))]
    canvases = [opened(denoiser, SUDOKU, chain, 20, seed) for seed in range(400)]
    for canvas in canvases:
        assert None not in (*canvas[:5], canvas[9], canvas[14], *canvas[15:19])
        assert canvas[5:9] == [None] * 4
        assert canvas[19] is None
    kept = sum(token is not None for canvas in canvases for token in canvas[10:14]) / 1600
    assert kept == pytest.approx(0.7, abs=0.05)
    assert opened(denoiser, SUDOKU, chain, 20, 0, released=1)[15:] == [None] * 5


def pools_of(denoiser, questions, n, scorer):
    batch = {"question": questions, "seed": list(range(len(questions))), "completions": None}
    return Sample(SUDOKU, scorer, n, denoiser, CONFIG)(batch)["pool"]


PUZZLES = ["3102200002100320", "0140432014020000", "4310010000303420", "2004001203201003", "0000012000411432"]


def arms_of(denoiser, scorer, n=4):
    pools = pools_of(denoiser, PUZZLES, n, scorer)
    return Arms(SUDOKU, scorer, denoiser, CONFIG, CONFIG, 0.9, n, pools, list(range(len(PUZZLES))))


def test_one_canvas_a_round_is_the_same_ahead_or_not_and_several_are_not(denoiser):
    arms = arms_of(denoiser, Calculator(SUDOKU), 8)
    texts = {}
    for width, ahead in itertools.product((1, 3), (False, True)):
        pools, _ = stitched(arms, width, rescore=False, ahead=ahead)
        texts[width, ahead] = [pool.texts_K for pool in pools]
    assert texts[1, False] == texts[1, True]
    assert texts[3, False] != texts[3, True]


def test_every_arm_keeps_to_the_budget(denoiser):
    arms = arms_of(denoiser, Calculator(SUDOKU))
    outcomes = {"vgb_momentum": vgb_momentum(arms)}
    pools, _ = stitched(arms, 3, rescore=False, ahead=True)
    found = {name: [outcome.ledger for outcome in of] for name, of in outcomes.items()}
    found["stitched_wide"] = [pool.ledger for pool in pools]
    heads = [pool.head(1) for pool in arms.pools]
    guided_rounds(denoiser, SUDOKU, heads, arms.scorer, CONFIG, budgets=arms.budgets, delta=0.9, seeds=arms.noise(7))
    found["guided_remask"] = [pool.ledger for pool in heads]
    for name, ledgers in found.items():
        for ledger, budget in zip(ledgers, arms.budgets, strict=True):
            assert 0 < ledger.nfe <= budget + CONFIG.total_steps - 1, name
            assert ledger.sequential_steps <= ledger.nfe
    assert all(ledger.nfe <= budget for ledger, budget in zip(found["vgb_momentum"], arms.budgets, strict=True))


def test_the_remasked_text_is_what_the_scorer_read_as_it_was_put_together(denoiser):
    calls = []
    exact = Calculator(SUDOKU)

    def score(question, steps_KN, trajectories):
        if trajectories is None:
            calls.append([step.text for step in steps_KN[0]])
            return [[0.95] * len(steps_KN[0])]  # all stand, whatever they were worth apart
        return [[0.5 * one for one in row] for row in exact(question, steps_KN).score_KN]

    scorer = Custom("mine", score)
    pools = [pool.head(1) for pool in pools_of(denoiser, PUZZLES[:1], 2, scorer)]
    pools[0].rescored.clear()
    (result,) = guided_rounds(denoiser, SUDOKU, pools, scorer, CONFIG, budgets=[25], delta=0.9, seeds=[0])
    stitched_texts = [tuple(step.text for step in steps) for steps in pools[0].steps_KN]
    assert calls
    for call in calls:
        assert tuple(call) not in stitched_texts[:1]  # a trajectory's own chain has its scores already
    # What is put together is judged by the scores of the whole: it stands as soon as there is one, long before the budget.
    assert result.complete
    assert [clue.score for clue in result.evidence.chain] == [0.95] * len(result.evidence.chain)
    assert [clue.step.text for clue in result.evidence.chain] == calls[-1]
    assert pools[0].ledger.nfe < 25


# --- plans -----------------------------------------------------------------------------------------------------------


def test_an_expression_is_spelt_out_as_the_steps_that_amount_to_it():
    rng = random.Random(0)
    for _ in range(100):
        numbers = tuple(rng.randint(1, 30) for _ in range(3))
        target = rng.randint(1, 60)
        question = f"{','.join(map(str, numbers))}={target}"
        for steps in itertools.islice(countdown.solutions(numbers, target), 3):
            written = countdown.write_solution(steps).split("\n")
            expression = countdown.conclude(written)
            spelt = countdown.spell_out(question, expression)
            assert countdown.conclude(spelt) is not None
            assert spelt[-1].endswith(f"={target}")
            assert [countdown.write_step(step) for step in spelt][-1] == written[-1]
    assert countdown.spell_out("1,2,3=7", "1+2*3") == ["2*3=6", "1+6=7"]
    assert countdown.spell_out("1,2,3=7", "(1-2)*3") == []


class Answers:
    def __init__(self, text):
        self.text = text

    def __call__(self, questions, evidences):
        assert set(evidences) == {""}
        return [Answered(self.text, 30, 17, 0.0) for _ in questions]


def test_a_plan_pins_the_steps_that_the_scorer_finds_sound(denoiser):
    plan, *_ = AnswerPlanner(Answers("#### 3142241342131324"), SUDOKU)([QUESTION])
    assert plan.steps == ("3142", "2413", "4213", "1324")
    canvas, cost = planned(denoiser, SUDOKU, Calculator(SUDOKU), QUESTION, plan, 20, 0.9)
    assert cost == Ledger(solver_tokens=30, sequential_steps=17, solver_passes=17)
    assert cost.passes == 17
    assert denoiser.decode([canvas[:5]]) == ["3142\n"]
    assert canvas[5:9] == [None] * 4  # 2413 leaves no row below it for the clue under its 1
    text, _ = planned(denoiser, SUDOKU, Calculator(SUDOKU), QUESTION, Plan((), "12", Ledger()), 20, 0.9)
    assert denoiser.decode([text[:3]]) == ["12\n"]
    assert text[3:] == [None] * 17


def test_a_language_model_plans_in_words(denoiser):
    from lockstitch import embedded_model

    planner = TextPlanner.from_pretrained(str(embedded_model("solver")), SUDOKU)
    planner.tokens = 5
    (plan,) = planner([QUESTION])
    assert plan.ledger.sequential_steps == 5
    assert plan.steps == ()


def test_all_methods_that_are_asked_for_run_and_nothing_else(denoiser):
    from lockstitch.stitching.refine import load_solver

    from lockstitch import embedded_model

    solver = load_solver(str(embedded_model("solver")), SUDOKU)
    scorer = Calculator(SUDOKU)
    sampled = Sample(SUDOKU, scorer, 2, denoiser, CONFIG)({"question": PUZZLES[:2], "seed": [0, 1]})
    for methods in (METHODS, ASKED_FOR):
        settings = StitchSettings(2, "path", 0.9, rounds=True, methods=methods)
        compare = Compare(SUDOKU, scorer, settings, solver, denoiser, CONFIG, AnswerPlanner(solver, SUDOKU))
        assert set(compare(sampled)["compared"][0].outcomes) == set(methods)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"methods": ["nothing"]}, "must be of greedy, single"),
        ({"methods": []}, "must be of greedy, single"),
        ({"methods": ["single", "single"]}, "each once"),
        ({"methods": ["guided_remask"], "scorer": "confidence"}, "no sampler's trace"),
        ({"methods": ["vgb_momentum"], "scorer": "bmc"}, "asks the diffusion model again"),
        ({"methods": ["stitched_wide"], "rounds": False}, "denoises in rounds by the rule path"),
        ({"methods": ["stitched"], "planner": "embedded"}, "would be ignored"),
        ({"methods": ["all_traces"], "solver": "none"}, "no solver was given"),
    ],
)
def test_methods_that_cannot_run_are_refused_before_anything_is_loaded(settings, said):
    from lockstitch.stitching.config import StitchConfig

    with pytest.raises(ValueError, match=said):
        StitchConfig("sudoku", generate=1, output="out", **settings).settle(SUDOKU)


def test_a_solver_s_answer_is_a_plan_where_it_can_be_spelt_out():
    from lockstitch.stitching.config import StitchConfig

    settings = {"generate": 1, "output": "out", "methods": ["plan_then_diffuse"]}
    StitchConfig("countdown", **settings).settle(get_task("countdown"))
    StitchConfig("arithmetic", planner="some/model", **settings).settle(get_task("arithmetic"))
    with pytest.raises(ValueError, match="needs a --planner: no embedded model plans arithmetic"):
        StitchConfig("arithmetic", **settings).settle(get_task("arithmetic"))
