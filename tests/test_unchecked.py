"""Stitching by the scorer alone, and chains that are read again once they are put together."""

import pytest
from lockstitch.rewards.steps import check_steps
from lockstitch.rewards.tasks.named import get_task
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loop import sample
from lockstitch.sampling.trajectory import Ledger
from lockstitch.stitching.config import StitchConfig
from lockstitch.stitching.loading import load_denoiser
from lockstitch.stitching.methods import Compare, StitchSettings
from lockstitch.stitching.pipeline import Sample
from lockstitch.stitching.pool import Pool
from lockstitch.stitching.rounds import rescored, stands, stitch_rounds
from lockstitch.stitching.score import Calculator, Custom, Scores, load_scorer
from lockstitch.stitching.stitch import best_path
from lockstitch.stitching.unchecked import unchecked

SUDOKU = get_task("sudoku")
QUESTION = "3102200002100320"
RIGHT = "3142\n2431\n4213\n1324"


def counted(scorer, bill):
    """The scorer, its calls kept, at so many tokens each."""

    def score(question, steps_KN, trajectories):
        bill.append([[step.text for step in steps] for steps in steps_KN])
        return Scores(scorer(question, steps_KN, trajectories).score_KN, 10)

    return Custom("counted", score)


def each_row_alone(question, steps_KN, trajectories):
    """Finds right whatever is a row of the solution, wherever it stands."""
    return [[1.0 if step.text in RIGHT.split() else 0.0 for step in steps] for steps in steps_KN]


def test_the_solver_reads_the_scores_that_the_chain_was_given_when_it_was_read_again():
    pool = Pool(QUESTION)
    pool.read(unchecked(SUDOKU), Custom("high", lambda question, steps, _: [[0.95] * len(one) for one in steps]),
              [RIGHT.replace("3142", "3124"), RIGHT.replace("1324", "1342")])  # fmt: skip
    chain = best_path(QUESTION, unchecked(SUDOKU).checker, pool.steps_KN, pool.score_KN, 0.9)
    low = Custom("low", lambda question, steps, _: [[0.1] * len(one) for one in steps])
    pool.score_KN = [[0.95, 0.95, 0.95, 0.9], [0.9, 0.95, 0.95, 0.95]]
    chain = best_path(QUESTION, unchecked(SUDOKU).checker, pool.steps_KN, pool.score_KN, 0.9)
    again = rescored(low, pool, chain)
    assert [clue.score for clue in again.chain] == pytest.approx([0.1] * 4)
    read = {(clue.step.index, clue.step.text): clue.score for clue in again.clues}
    assert all(read[clue.step.index, clue.step.text] == clue.score for clue in again.chain)
    assert set(read) == {(clue.step.index, clue.step.text) for clue in chain.clues}
    places = [(clue.step.index, -clue.score) for clue in again.clues]
    assert places == sorted(places)


def test_without_its_checker_every_step_is_as_sound_as_its_score():
    task = unchecked(SUDOKU)
    assert check_steps(task.checker, QUESTION, ["3142", "1111", "no row"]) == [1.0, 1.0, 1.0]
    state = task.checker.start(QUESTION)
    for row in RIGHT.split():
        assert not task.checker.is_complete(state)
        state, _ = task.checker.advance(state, row)
    assert task.checker.is_complete(state)
    assert task.rewards == SUDOKU.rewards
    sentences = unchecked(get_task("gsm8k")).checker
    assert sentences.is_complete(sentences.start("?"))


def test_with_a_scorer_that_is_right_about_rows_the_best_path_is_the_solution():
    task, pool = unchecked(SUDOKU), Pool(QUESTION)
    pool.read(task, Custom("rows", each_row_alone), ["3142\n2413\n4213\n9999", "1111\n2431\n4231\n1324"])
    chain = best_path(QUESTION, task.checker, pool.steps_KN, pool.score_KN, 0.9).chain
    assert [clue.step.text for clue in chain] == RIGHT.split()
    assert stands(task, QUESTION, chain, 0.9)


def test_a_chain_that_was_put_together_is_read_again_once():
    task, bill, pool = unchecked(SUDOKU), [], Pool(QUESTION)
    liked = ["3142", "2413", "4213", "1324"]  # the second and the third have a 1 in one column

    def likes(question, steps_KN, trajectories):
        return [[1.0 if step.text in liked else 0.0 for step in steps] for steps in steps_KN]

    pool.read(task, Custom("likes", likes), ["3142\n2413\n1111\n1111", "1111\n1111\n4213\n1324"])
    evidence = best_path(QUESTION, task.checker, pool.steps_KN, pool.score_KN, 0.9)
    assert [clue.step.text for clue in evidence.chain] == liked
    assert stands(task, QUESTION, evidence.chain, 0.9)
    scorer = counted(Calculator(SUDOKU), bill)
    again = rescored(scorer, pool, evidence)
    assert [clue.score for clue in again.chain] == check_steps(SUDOKU.checker, QUESTION, liked)
    assert not stands(task, QUESTION, again.chain, 0.9)
    assert bill == [[liked]]
    assert (pool.ledger.scorer_tokens, pool.ledger.sequential_steps) == (10, 1)
    assert rescored(scorer, pool, evidence) == again
    assert len(bill) == 1


def test_a_chain_that_is_a_trajectory_s_own_is_not_read_again():
    task, bill, pool = unchecked(SUDOKU), [], Pool(QUESTION)
    scorer = counted(Calculator(SUDOKU), bill)
    pool.read(task, scorer, [RIGHT])
    evidence = best_path(QUESTION, task.checker, pool.steps_KN, pool.score_KN, 0.9)
    assert rescored(scorer, pool, evidence) == evidence
    assert len(bill) == 1


def stitched(task, scorer, rescore):
    denoiser = Denoiser.from_pretrained("embedded:sudoku-early")
    config = SamplerConfig(20, steps=5, temperature=0.7, batch_size=256)
    questions = [QUESTION, "0312003002011003", "4320004330100004"]
    pools = [Pool(question) for question in questions]
    drawn = sample(denoiser, [task.prompt(question) for question in questions], config, seed=[1, 2, 3])
    for pool, trajectory in zip(pools, drawn, strict=True):
        pool.draw(denoiser, task, scorer, [trajectory])
    results = stitch_rounds(
        denoiser, task, pools, scorer, config, budgets=[40] * 3, width=1, delta=0.9, seeds=[4, 5, 6], rescore=rescore
    )
    return pools, results


def test_an_exact_scorer_that_reads_chains_again_needs_no_checker():
    for task, rescore in ((SUDOKU, False), (unchecked(SUDOKU), True)):
        pools, results = stitched(task, Calculator(SUDOKU), rescore)
        for pool, result in zip(pools, results, strict=True):
            texts = [clue.step.text for clue in result.evidence.chain]
            sound = check_steps(SUDOKU.checker, pool.question, texts)
            assert result.complete == (len(texts) == 4 and min(sound) == 1.0)
        assert any(result.complete for result in results)


def test_what_the_diffusion_model_does_to_score_is_on_the_bill():
    denoiser = Denoiser.from_pretrained("embedded:sudoku-early")
    config = SamplerConfig(20, steps=5, temperature=0.7, batch_size=256)
    scorer = load_scorer("bmc", SUDOKU, denoiser=denoiser)
    batch = Sample(SUDOKU, scorer, 4, denoiser, config)({"question": [QUESTION], "seed": [0]})
    (pool,) = batch["pool"]
    drawing = sum(t.ledger.nfe for t in pool.trajectories)
    scoring = pool.ledger.nfe - drawing
    assert drawing == 20
    assert 4 * 10 <= scoring <= 4 * 16
    assert pool.head(4).ledger == pool.ledger
    assert pool.head(2).ledger.nfe == 10 + scoring // 2
    settings = StitchSettings(4, "path", 0.9, rounds=True)
    (compared,) = Compare(SUDOKU, scorer, settings, None, denoiser, config)(batch)["compared"]
    assert compared.outcomes["majority_vote"].ledger.nfe == drawing
    assert compared.outcomes["best_of_n"].ledger.nfe == pool.ledger.nfe
    assert compared.outcomes["stitched"].ledger.nfe <= pool.ledger.nfe + 5 + 16
    assert isinstance(compared.outcomes["stitched"].ledger, Ledger)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"checker": "some"}, "checker='some' is not one of exact, none"),
        ({"policy": "factor"}, "policy='factor' is not one of quota, random, threshold"),
        ({"rescore": True, "scorer": "confidence"}, "scorer='confidence' reads a sampler's trace"),
        ({"rescore": True, "scorer": "calculator+bmc"}, "scorer='bmc' reads a sampler's trace"),
        ({"rescore": True, "rule": "paper"}, "rule='paper' puts no chain together"),
        ({"generate": None, "trajectories": "t", "scorer": "bound+calculator"}, "which --trajectories do not have"),
    ],
)
def test_settings_that_do_not_go_together(settings, says):
    with pytest.raises(ValueError, match=says):
        StitchConfig(task="sudoku", **{"generate": 1, "output": "o", **settings})


@pytest.mark.parametrize(
    ("settings", "temperature"),
    [
        ({"preset": "llada", "block_length": 20}, 0.7),
        ({"preset": "dream"}, 0.2),
        ({"preset": "dream", "temperature": 1.3}, 1.3),
        ({}, 0.7),
    ],
)
def test_a_preset_without_a_temperature_leaves_that_of_the_command(settings, temperature):
    config = StitchConfig(task="sudoku", generate=1, output="x", model="embedded:sudoku-early", **settings)
    _, sampler = load_denoiser(config, get_task("sudoku"))
    assert sampler.temperature == temperature


def test_trajectories_that_would_all_be_the_same_are_refused():
    config = StitchConfig(task="sudoku", generate=1, output="x", temperature=0.0)
    with pytest.raises(ValueError, match="temperature=0: the 8 trajectories of a problem would all be the same"):
        load_denoiser(config, get_task("sudoku"))
    alone = StitchConfig(task="sudoku", generate=1, output="x", temperature=0.0, num_trajectories=1)
    assert load_denoiser(alone, get_task("sudoku"))[1].temperature == 0.0
