"""Scorers that ask the diffusion model itself, or a causal one: closed cases, equivalences, and what they cost."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lockstitch.rewards.tasks.named import get_task
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.families import FAMILIES
from lockstitch.sampling.loop import sample
from lockstitch.sampling.remote import Calling
from lockstitch.stitching.consistency import Consistency, agreement, remasked
from lockstitch.stitching.likelihood import Bound, Likelihood, StepLikelihood, paired_masks, step_bound
from lockstitch.stitching.pool import Pool
from lockstitch.stitching.rounds import stitch_rounds
from lockstitch.stitching.score import Scores, load_scorer
from lockstitch.stitching.segment import steps_of, token_spans
from lockstitch.stitching.unchecked import unchecked
from models import random_denoiser, tokenizer
from toy_lines import TASK
from transformers import AutoModelForCausalLM, AutoTokenizer

from lockstitch import embedded_model

TOK = tokenizer()
PROMPT = 2  # tokens of "1\n"


class Fixed(torch.nn.Module):
    """Says the same of every place whatever the canvas holds: each of the given tokens with its probability."""

    def __init__(self, text, canvas, probability=0.8):
        super().__init__()
        inner = random_denoiser()
        self.config, self.generation_config = inner.model.config, inner.model.generation_config
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.ids = [*TOK(text, add_special_tokens=False)["input_ids"]]
        self.ids += [TOK.eos_token_id] * (canvas - len(self.ids))
        self.probability, self.passes = probability, 0

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=None):
        self.passes += 1
        B, L = input_ids.shape
        rest = (1 - self.probability) / (self.config.vocab_size - 1)
        logits = torch.full((B, L, self.config.vocab_size), math.log(rest) if rest > 0 else -1e4)
        for j, token in enumerate(self.ids):
            if PROMPT + j < L:
                logits[:, PROMPT + j, token] = math.log(self.probability)
        return SimpleNamespace(logits=logits)


def fixed(text, canvas=8, probability=0.8):
    return Denoiser(Fixed(text, canvas, probability), TOK, calling=Calling(True, False, False))


def traced(denoiser, canvas=8, prompt="1\n", n=1, **settings):
    """Trajectories of a prompt with their steps."""
    settings = {"temperature": 0.7, **settings}
    trajectories = sample(denoiser, [prompt], SamplerConfig(canvas, **settings), n=n, seed=3)
    steps_KN = [
        steps_of(t.text, "line", k, token_spans(denoiser.tokenizer, t.completion_ids))
        for k, t in enumerate(trajectories)
    ]
    return trajectories, steps_KN


# --- mask consistency ------------------------------------------------------------------------------------------------


def test_a_step_that_comes_back_whole_agrees_in_everything():
    whole = agreement([1, 2, 3], [1, 2, 3], [True, False, True], [1.0, 0.0, 1.0], "1+2=3", "1+2=3", True)
    assert whole.score == 1.0


def test_a_step_of_which_nothing_comes_back_agrees_in_nothing():
    nothing = agreement([1, 2], [3, 4], [True, True], [0.0, 0.0], "12", "ab", False)
    assert nothing.score == pytest.approx(0.0, abs=1e-9)


def test_each_part_of_the_agreement():
    one = agreement(
        [1, 2, 3, 4], [1, 9, 3, 9], [True, True, False, True], [0.5, 0.25, 0.0, 0.5], "3+4=7", "3+5=8", True
    )
    assert one.tokens == pytest.approx(1 / 3)  # of the masked ones
    assert one.characters == pytest.approx(2 * 3 / 10)  # "3+" and "=" of five and five
    assert one.numbers == pytest.approx(1 / 5)  # 3 of 3, 4, 7, 5, 8
    assert one.answer == 1.0
    assert one.confidence == pytest.approx((0.5 * 0.25 * 0.5) ** (1 / 3))
    assert one.score == pytest.approx((1 / 3 + 0.6 + 0.2 + 1 + one.confidence) / 5)
    assert agreement([1], [2], [False], [0.0], "a", "a", True).tokens == 1.0  # nothing was asked


def test_a_model_that_is_sure_of_its_trace_puts_it_back():
    denoiser = fixed("12\n34", probability=1.0)
    trajectories, steps_KN = traced(denoiser)
    scores = Consistency(denoiser, TASK)("1", steps_KN, trajectories)
    assert scores.score_KN == [[pytest.approx(1.0), pytest.approx(1.0)]]


def test_a_trace_that_the_model_does_not_believe_in_does_not_come_back():
    trajectories, steps_KN = traced(fixed("12\n34", probability=1.0))
    scores = Consistency(fixed("77\n88", probability=1.0), TASK)("1", steps_KN, trajectories)
    assert max(scores.score_KN[0]) < 0.5


def test_rebuilding_costs_the_passes_that_it_makes():
    denoiser = fixed("12\n34", canvas=20)
    trajectories, steps_KN = traced(denoiser, canvas=20)
    before = denoiser.model.passes
    scores = Consistency(denoiser, TASK)("1", steps_KN, trajectories)
    assert scores.cost().nfe == denoiser.model.passes - before == scores.cost().sequential_steps
    assert 1 < scores.cost().nfe <= 16
    assert scores.cost().scorer_passes == 0
    assert scores.cost().tokens_forwarded > 0


def test_consistency_depends_on_nothing_beside_a_trace():
    denoiser = random_denoiser()
    trajectories, steps_KN = traced(denoiser, canvas=12, n=4)
    scorer = Consistency(denoiser, TASK)
    together = scorer("1", steps_KN, trajectories).score_KN
    assert any(together)
    alone = [scorer("1", [steps], [t]).score_KN[0] for steps, t in zip(steps_KN, trajectories, strict=True)]
    for row, other in zip(together, alone, strict=True):
        assert row == pytest.approx(other, abs=1e-5)


def test_what_is_masked_and_what_is_given():
    trajectories, _ = traced(fixed("12\n34"), canvas=8)
    trace = replace(
        trajectories[0],
        commit_step=(*trajectories[0].commit_step[:-1], -1),
        canvas_ids=(*trajectories[0].canvas_ids[:-1], TOK.mask_token_id),
    )
    end = TOK.eos_token_id
    opened = [remasked(trace, end, 0.9, seed) for seed in range(300)]
    share = sum(one is None for canvas in opened for one in canvas[: trace.length]) / (300 * trace.length)
    assert abs(share - 0.9) < 4 * math.sqrt(0.09 / (300 * trace.length))
    for canvas in opened:
        assert len(canvas) == 8
        assert all(one in (None, token) for one, token in zip(canvas, trace.canvas_ids[: trace.length], strict=False))
        assert canvas[-1] == end  # where the trace never came to
    assert remasked(trace, end, 0.9, 5) == opened[5]
    with pytest.raises(ValueError, match=r"share=1\.0 of the tokens"):
        Consistency(fixed("12"), TASK, share=1.0)


# --- likelihoods -----------------------------------------------------------------------------------------------------


def test_every_token_is_masked_in_exactly_one_of_a_pair():
    masks = paired_masks(9, 4, seed=2)
    assert len(masks) == 8
    for (t, one), (u, other) in zip(masks[::2], masks[1::2], strict=True):
        assert t + u == pytest.approx(1.0)
        assert [a + b for a, b in zip(one, other, strict=True)] == [1] * 9
    assert sorted(t for t, _ in masks[::2]) == pytest.approx([0.125, 0.375, 0.625, 0.875])


def test_a_step_s_bound_weighs_masks_by_the_inverse_of_t():
    masks = [(0.25, [True, False]), (0.75, [False, True]), (0.5, [True, True])]
    logp = [[-1.0, 0.0], [0.0, -2.0], [-3.0, -4.0]]
    total = -1.0 / 0.25 - 2.0 / 0.75 + (-3.0 - 4.0) / 0.5
    weight = 1 / 0.25 + 1 / 0.75 + 2 / 0.5
    assert step_bound(masks, logp, [0, 1]) == pytest.approx(math.exp(total / weight))
    assert step_bound(masks, logp, [1]) == pytest.approx(math.exp((-2.0 / 0.75 - 4.0 / 0.5) / (1 / 0.75 + 1 / 0.5)))


def test_where_the_canvas_says_nothing_the_bound_is_the_likelihood():
    denoiser = fixed("12\n34", probability=0.6)
    trajectories, steps_KN = traced(denoiser, temperature=0.0)
    before = denoiser.model.passes
    scores = Bound(denoiser, TASK)("1", steps_KN, trajectories)
    assert denoiser.model.passes - before == 1  # all masks side by side
    assert scores.score_KN == [[pytest.approx(0.6, abs=1e-5)] * 2]
    assert (scores.cost().nfe, scores.cost().sequential_steps) == (8, 1)
    before = denoiser.model.passes
    assert Bound(denoiser, TASK, batch_size=3)("1", steps_KN, trajectories).score_KN == scores.score_KN
    assert denoiser.model.passes - before == 3


def test_the_bound_depends_on_nothing_beside_a_trace():
    denoiser = random_denoiser()
    (longer, more_KN), (shorter, steps_KN) = traced(denoiser, canvas=12, n=2), traced(denoiser, canvas=9, n=2)
    trajectories, steps_KN = longer + shorter, more_KN + steps_KN
    score = Bound(denoiser, TASK)
    together = score("1", steps_KN, trajectories).score_KN
    alone = [score("1", [steps], [t]).score_KN[0] for steps, t in zip(steps_KN, trajectories, strict=True)]
    assert any(together)
    maskless = Denoiser(denoiser.model, denoiser.tokenizer, calling=Calling(honours_mask=False))
    apart = Bound(maskless, TASK)("1", steps_KN, trajectories).score_KN  # its code would read padding
    for row, other, third in zip(together, alone, apart, strict=True):
        assert row == pytest.approx(other, abs=1e-5)
        assert row == pytest.approx(third, abs=1e-5)


def test_a_causal_model_s_likelihood_is_that_of_one_pass_per_step():
    path = embedded_model("solver")
    model, tok = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    task = get_task("arithmetic")
    texts_KN = [["12+7=19", "19-5=14"], [], ["12+7=3"]]
    steps_KN = [steps_of("\n".join(texts), "line", k) for k, texts in enumerate(texts_KN)]
    scores = Likelihood(model, tok, task)("12, +7, -5", steps_KN)
    for texts, row in zip(texts_KN, scores.score_KN, strict=True):
        ids = tok("12, +7, -5\n", add_special_tokens=False)["input_ids"]
        for text, score in zip(texts, row, strict=True):
            own = tok(text + "\n", add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                logp = model(torch.tensor([ids + own])).logits.log_softmax(-1)[0]
            mean = sum(float(logp[len(ids) + i - 1, token]) for i, token in enumerate(own)) / len(own)
            assert score == pytest.approx(math.exp(mean), abs=1e-5)
            ids = ids + own
    assert (scores.cost().scorer_passes, scores.cost().sequential_steps) == (2, 1)
    assert scores.score_KN[0][0] > scores.score_KN[2][0]


def test_a_text_that_is_longer_than_the_model_reads_is_named():
    path = embedded_model("solver")
    model, tok = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    model.config.max_position_embeddings = 12
    score = Likelihood(model, tok, get_task("arithmetic"))
    assert score("1, +2", [steps_of("1+2=3", "line", 0)]).score_KN
    with pytest.raises(ValueError, match=r"a question with its steps has [0-9]+ tokens, .* reads 12 at most"):
        score("1, +2", [steps_of("1+2=3\n3+2=5", "line", 0)])
    denoiser = random_denoiser()
    denoiser.model.config.max_position_embeddings = 20
    with pytest.raises(ValueError, match=r"a question with its steps has [0-9]+ tokens, .* reads 20 at most"):
        StepLikelihood(denoiser, get_task("arithmetic"))("1, +2", [steps_of("1+2=3", "line", 0)])


def test_a_chain_that_is_longer_than_the_canvas_forbids_nothing_beyond_it():
    """Steps of different trajectories may be longer together than either."""

    def judge(question, steps_KN, trajectories):
        return Scores([[0.4 if step.index else 1.0 for step in steps] for steps in steps_KN])

    denoiser, task = fixed("12\n34"), unchecked(TASK)
    trajectories, _ = traced(denoiser, temperature=0.0)
    pool = Pool("1")
    pool.draw(denoiser, task, judge, trajectories)
    short = SamplerConfig(3, steps=3)
    stitch_rounds(denoiser, task, [pool], judge, short, budgets=[20], width=3, delta=0.9, seeds=[0], ahead=True)
    assert [len(t.canvas_ids) for t in pool.trajectories[1:4]] == [3, 3, 3]


def test_rounds_pay_for_the_passes_of_their_judge():
    """Canvases beside the first are drawn where the budget still pays for them and for their scoring."""
    task, denoiser = unchecked(get_task("sudoku")), Denoiser.from_pretrained(str(embedded_model("sudoku-early")))
    scorer = load_scorer("bmc", task, denoiser=denoiser)
    config = SamplerConfig(20, steps=5, temperature=0.7, batch_size=64)
    pools = [Pool(question) for question in ("3102200002100320", "0140432014020000")]
    for i, pool in enumerate(pools):
        pool.draw(denoiser, task, scorer, sample(denoiser, [task.prompt(pool.question)], config, seed=i))
        assert pool.head(9).ledger.nfe == pool.ledger.nfe  # of one there are no nine
        assert 8 <= pool.scoring_nfe() == pool.ledger.nfe - pool.trajectories[0].ledger.nfe
    first = [pool.ledger.nfe for pool in pools]
    budgets = [3 * nfe for nfe in first]
    stitch_rounds(denoiser, task, pools, scorer, config, budgets=budgets, width=8, delta=2.0, seeds=[0, 1])
    for pool, budget, one in zip(pools, budgets, first, strict=True):
        assert pool.ledger.nfe <= budget + one


def test_a_step_that_was_pinned_keeps_its_confidence():
    from lockstitch.stitching.pool import is_given

    task, denoiser = unchecked(get_task("sudoku")), Denoiser.from_pretrained(str(embedded_model("sudoku-early")))
    scorer = load_scorer("confidence", task)
    config = SamplerConfig(20, steps=5, temperature=0.7, batch_size=64)
    pools = [Pool(question) for question in ("3102200002100320", "0140432014020000", "4310010000303420")]
    for i, pool in enumerate(pools):
        pool.draw(denoiser, task, scorer, sample(denoiser, [task.prompt(pool.question)], config, seed=i))
    stitch_rounds(denoiser, task, pools, scorer, config, budgets=[40] * 3, width=1, delta=0.7, seeds=[0, 1, 2])
    pinned = 0
    for pool in pools:
        for k, (steps, trajectory) in enumerate(zip(pool.steps_KN, pool.trajectories, strict=True)):
            for step, score in zip(steps, pool.score_KN[k], strict=True):
                if is_given(step, trajectory):
                    pinned += 1
                    before = [
                        pool.score_KN[j][other.index]
                        for j in range(k)
                        for other in pool.steps_KN[j]
                        if (other.index, other.text) == (step.index, step.text)
                    ]
                    assert score == pytest.approx(max(before))
                    assert 0.7 <= score < 1
    assert pinned


def test_a_diffusion_model_s_likelihood_of_a_step_is_read_off_a_canvas_masked_from_it_on():
    task = replace(get_task("arithmetic"), canvas_length=30)
    denoiser = random_denoiser()
    texts_KN = [["12+7=19", "19-5=14"], [], ["12+7=3"], ["12+7=19", "19-5=4"], ["12+7=19", "19-5=14" * 6]]
    steps_KN = [steps_of("\n".join(texts), "line", k) for k, texts in enumerate(texts_KN)]
    scores = StepLikelihood(denoiser, task)("12, +7, -5", steps_KN)
    prompt = denoiser.encode([task.prompt("12, +7, -5")])[0]
    for texts, row in zip(texts_KN, scores.score_KN, strict=True):
        before = []
        room = max(30, sum(len(denoiser.encode([text + "\n"])[0]) for text in texts))
        for text, score in zip(texts, row, strict=True):
            own = denoiser.encode([text + "\n"])[0]
            ids = torch.tensor([[*prompt, *before, *[denoiser.mask_id] * (room - len(before))]])
            with torch.inference_mode():
                logp = denoiser.model(input_ids=ids).logits[0].log_softmax(-1)
            places = range(len(prompt) + len(before), len(prompt) + len(before) + len(own))
            mean = sum(float(logp[i, token]) for i, token in zip(places, own, strict=True)) / len(own)
            assert score == pytest.approx(math.exp(mean), abs=1e-5)
            before = before + own
    assert scores.score_KN[0][0] != scores.score_KN[4][0]  # the same step, on a canvas that has room for what follows
    assert (scores.cost().scorer_passes, scores.cost().sequential_steps) == (6, 1)  # the first step of two is one
    backwards = StepLikelihood(denoiser, task, batch_size=1)("12, +7, -5", steps_KN[::-1]).score_KN[::-1]
    assert backwards == [pytest.approx(row, abs=1e-5) for row in scores.score_KN]


def test_the_embedded_model_knows_a_wrong_sum():
    task = get_task("arithmetic")
    score = load_scorer("likelihood:embedded:arithmetic", task)
    right, wrong = ["12+7=19", "19-5=14"], ["12+7=17", "17-5=12"]
    steps_KN = [steps_of("\n".join(texts), "line", k) for k, texts in enumerate((right, wrong))]
    good, bad = score("12, +7, -5", steps_KN).score_KN
    assert min(good) > 0.9 > bad[0]
    assert score("12, +7, -5", [steps_KN[1]]).score_KN == [pytest.approx(bad)]


def test_who_can_be_asked():
    task = get_task("sudoku")
    for spec in ("bmc", "bound"):
        with pytest.raises(ValueError, match=f"the scorer '{spec}' asks the diffusion model"):
            load_scorer(spec, task)
        with pytest.raises(ValueError, match=f"the scorer '{spec}' .* completions from elsewhere"):
            load_scorer(spec, task, denoiser=random_denoiser())("1", [[]], None)
    blocks = next(family for family in FAMILIES.values() if family.layout == "block_causal")
    with pytest.raises(ValueError, match="denoise block by block: bmc, or likelihood:MODEL"):
        Bound(random_denoiser(family=blocks), task)
    with pytest.raises(
        ValueError, match=r"scorer 'likelihood' masks a canvas from a step on; .* models denoise block by block"
    ):
        StepLikelihood(random_denoiser(family=blocks), task)
    with pytest.raises(ValueError, match=r"likelihood:\./no_such_model_here cannot be loaded"):
        load_scorer("likelihood:./no_such_model_here", task)
