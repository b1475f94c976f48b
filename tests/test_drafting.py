"""Draft and verify in one pass: the causal model's own text in fewer passes, and nothing seen that must not be."""

import itertools
import math
from collections import Counter

import pytest
import torch
from lockstitch.rl.lora import lora_config
from lockstitch.sampling.canvases import Canvases
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.draft_passes import DraftPasses
from lockstitch.sampling.families import BLOCK_CAUSAL, CONTEXT_CAUSAL, IDLM, TIDAR
from lockstitch.sampling.loop import make_rows, sample
from lockstitch.sampling.mask_gate import gated
from lockstitch.sampling.noise import uniform
from lockstitch.sampling.presets import preset
from models import random_denoiser

PROMPTS = ["12, +27, -15\n", "3102\n2000\n0210\n0320\n", "Ann has 12 apples. How many?\n", " 30 100  93 =  23\n"]
G = 12
FAMILIES = [CONTEXT_CAUSAL, TIDAR, IDLM]
named = {"ids": lambda value: getattr(value, "name", None)}


def config(block=4, **settings):
    settings = {"canvas_length": G, "policy": "verify", "cache": "block", "stop_at_eos": False, **settings}
    return SamplerConfig(block_length=block, **settings)


def tokens(drawn):
    return [t.canvas_ids for t in drawn]


def parent_of(denoiser):
    """Greedy `generate` of the causal model, prompt by prompt."""
    written = []
    for prompt in PROMPTS:
        ids = torch.tensor(denoiser.encode([prompt]))
        out = denoiser.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=G,
            eos_token_id=None,
            pad_token_id=denoiser.pad_id,
            suppress_tokens=denoiser.never_drawn,
        )
        written.append(tuple(out[0, ids.shape[1] :].tolist()))
    return written


def of_few_tokens(denoiser, count=3):
    """The model with a head that has so many likely tokens, so that a random draft is right now and then."""
    bias = torch.full((denoiser.model.config.vocab_size,), -1e4)
    bias[5 : 5 + count] = 0.0
    denoiser.model.lm_head.bias = torch.nn.Parameter(bias)
    return denoiser


class Counted:
    """The forward passes of a model, and the rows in them."""

    def __init__(self, model):
        self.passes, self.rows = 0, 0
        model.register_forward_hook(self.count, with_kwargs=True)

    def count(self, _module, _args, kwargs, _output):
        self.passes += 1
        self.rows += len(kwargs["input_ids"])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, **named)
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_greedy_text_is_the_parent_s_whatever_the_adapter_says(family, kind):
    """With and without a cache, drafts after each token or the last, by agreement and by ratio."""
    denoiser = of_few_tokens(random_denoiser(kind, family=family))
    expected = parent_of(denoiser)
    denoiser.model = gated(denoiser.model, lora_config(denoiser, 2, 4, gated=True)).eval()
    for name, weight in denoiser.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(1))
    for cache, drafts, acceptance in itertools.product(("block", "none"), ("each", "last"), ("agreement", "ratio")):
        drawn = sample(denoiser, PROMPTS, config(cache=cache, drafts=drafts, acceptance=acceptance))
        assert tokens(drawn) == expected
        assert sum(t.ledger.nfe for t in drawn) < len(PROMPTS) * G  # some drafts were right


@pytest.mark.parametrize("family", FAMILIES, **named)
def test_a_block_of_one_is_plain_autoregressive_decoding(family):
    denoiser = random_denoiser(family=family)
    counted = Counted(denoiser.model)
    drawn = sample(denoiser, PROMPTS, config(1))
    assert tokens(drawn) == parent_of(random_denoiser(family=family))
    assert (counted.passes, counted.rows) == (G, len(PROMPTS) * G)
    for prompt, t in zip(PROMPTS, drawn, strict=True):
        assert t.commit_step == tuple(range(1, G + 1))
        assert t.block == tuple(range(G))
        ids = denoiser.encode([prompt])[0]
        assert t.ledger.tokens_forwarded == len(ids) + G - 1  # every token is read once, but the last


@pytest.mark.parametrize("family", FAMILIES, **named)
@pytest.mark.parametrize("drafts", ["each", "last"])
def test_a_block_beyond_the_canvas_is_the_canvas(family, drafts):
    """In text and in cost: masks for places that there are not would be many, as their number grows with the square."""
    whole, beyond = (
        sample(of_few_tokens(random_denoiser(family=family)), PROMPTS, config(block, drafts=drafts))
        for block in (G, 5 * G)
    )
    assert tokens(beyond) == tokens(whole)
    assert [t.ledger.tokens_forwarded for t in beyond] == [t.ledger.tokens_forwarded for t in whole]


@torch.no_grad()
def drafted_by_hand(denoiser, ids, width, both_ways):
    """What masks behind `ids` draft: a pass of its own, under a mask written out."""
    length, total = len(ids), len(ids) + width
    seen = torch.ones(total, total, dtype=torch.bool).tril()
    if both_ways:
        seen[length:, length:] = True
    mask = torch.zeros(1, 1, total, total).masked_fill_(~seen, torch.finfo(torch.float32).min)
    logits = denoiser.model(
        input_ids=torch.tensor([[*ids, *[denoiser.mask_id] * width]]),
        attention_mask=mask,
        position_ids=torch.arange(total)[None],
    ).logits[0]
    logits[:, denoiser.never_drawn] = -1e30
    return logits[length - 1 :]


@pytest.mark.parametrize("drafts", ["each", "last"])
@pytest.mark.parametrize(
    ("family", "trust"), [(CONTEXT_CAUSAL, 1), (TIDAR, 1), (TIDAR, 0.5), (TIDAR, 0), (IDLM, 1)], **named
)
def test_a_pass_is_separate_passes(family, trust, drafts):
    """Token by token and draft by draft, each by a pass of its own: the same text, kept in the same passes."""
    if trust < 1 and drafts == "last":
        return
    denoiser, block = of_few_tokens(random_denoiser("qwen3", family=family)), 4
    skip = int(not family.shifted)
    drawn = sample(denoiser, PROMPTS, config(block, trust=trust, drafts=drafts))
    for prompt, t in zip(PROMPTS, drawn, strict=True):
        ids, draft, steps, step = denoiser.encode([prompt])[0], [], [], 0
        start = len(ids)
        while len(ids) < start + G:
            step += 1
            kept = 0
            while len(ids) < start + G:
                both = drafted_by_hand(denoiser, ids, block - 1 + skip, family.layout != "causal")
                token = int((trust * both[0] + (1 - trust) * both[1]).argmax())
                right = kept < len(draft) and draft[kept] == token
                ids.append(token)
                steps.append(step)
                if not right:
                    break
                kept += 1
            after = [int(row.argmax()) for row in both[1 + skip :]]
            draft = after if drafts == "each" or kept == len(draft) else []
            draft = draft[: start + G - len(ids)]
        assert t.canvas_ids == tuple(ids[start:])
        assert t.commit_step == tuple(steps)
        assert t.ledger.nfe == t.ledger.sequential_steps == steps[-1]
    assert sum(t.ledger.nfe for t in drawn) < len(PROMPTS) * G


@pytest.mark.parametrize("family", FAMILIES, **named)
@torch.inference_mode()
def test_masks_see_nothing_behind_the_token_that_they_stand_after(family):
    """Another third drafted token: nothing changes but what comes from it on, neither causal logits nor masks."""
    denoiser = random_denoiser(family=family)
    settings = config(4)
    rows = make_rows(denoiser, PROMPTS[:1], settings, 1, 0)
    canvases = Canvases(denoiser, rows, G, G)
    answers = []
    for third in (7, 9):
        passes = DraftPasses(denoiser, canvases, settings)
        ids_AL = canvases.ids_BL.clone()
        ids_AL[0, canvases.width : canvases.width + 3] = torch.tensor([5, 6, third])
        rows_A = torch.tensor([0])
        answers.append(passes.ask(rows_A, torch.tensor([canvases.width + 3]), ids_AL, torch.tensor([4])))
    one, other = answers
    assert torch.equal(one.causal_ADV[:, :3], other.causal_ADV[:, :3])
    assert torch.equal(one.hidden_ANWH[:, :3], other.hidden_ANWH[:, :3])
    assert not torch.equal(one.causal_ADV[:, 3], other.causal_ADV[:, 3])
    assert bool((one.hidden_ANWH[:, 3] != other.hidden_ANWH[:, 3]).any(-1).all())


@pytest.mark.parametrize("family", FAMILIES, **named)
@pytest.mark.parametrize("acceptance", ["agreement", "ratio"])
def test_a_batch_is_its_rows_one_by_one(family, acceptance):
    denoiser = random_denoiser(family=family)
    settings = config(temperature=1.0, top_p=0.9, acceptance=acceptance)
    together = sample(denoiser, PROMPTS, settings, n=2, seed=3)
    apart = [one for i, prompt in enumerate(PROMPTS) for one in sample(denoiser, [prompt], settings, n=2, seed=3)]
    assert tokens(together) == tokens(apart)
    assert [t.commit_step for t in together] == [t.commit_step for t in apart]
    assert [t.ledger.nfe for t in together] == [t.ledger.nfe for t in apart]
    assert [t.ledger.tokens_forwarded for t in together] == [t.ledger.tokens_forwarded for t in apart]


def test_agreement_draws_what_token_by_token_decoding_draws():
    """The same noise, so the same tokens, in fewer passes."""
    denoiser = of_few_tokens(random_denoiser(family=IDLM), 4)
    plain = sample(denoiser, PROMPTS, config(1, temperature=0.8), n=3)
    drawn = sample(denoiser, PROMPTS, config(4, temperature=0.8), n=3)
    assert tokens(drawn) == tokens(plain)
    assert len(set(tokens(plain))) > len(PROMPTS)
    assert sum(t.ledger.nfe for t in drawn) < sum(t.ledger.nfe for t in plain)


@pytest.fixture
def toy():
    """A model of which three tokens are likely, with its distribution over texts of three, enumerated."""
    denoiser = of_few_tokens(random_denoiser("llama", sharpness=0.5, family=IDLM))
    ids = denoiser.encode(["12"])[0]
    expected = {}
    for text in itertools.product((5, 6, 7), repeat=3):
        with torch.no_grad():
            logp = denoiser.model(input_ids=torch.tensor([[*ids, *text]])).logits[0].log_softmax(-1)
        expected[text] = math.exp(sum(float(logp[len(ids) - 1 + i, token]) for i, token in enumerate(text)))
    assert sum(expected.values()) == pytest.approx(1, abs=1e-5)
    return denoiser, expected


def chi_square(drawn, expected):
    """Per degree of freedom, against the enumerated distribution."""
    counts = Counter(tokens(drawn))
    assert set(counts) <= set(expected)
    total = sum(counts.values())
    return sum((counts[text] - total * p) ** 2 / (total * p) for text, p in expected.items()) / (len(expected) - 1)


@pytest.mark.slow
@pytest.mark.parametrize("acceptance", ["agreement", "ratio"])
@pytest.mark.parametrize("drafts", ["each", "last"])
def test_sampled_texts_have_the_parent_s_distribution(toy, acceptance, drafts):
    denoiser, expected = toy
    settings = config(3, canvas_length=3, temperature=1.0, acceptance=acceptance, drafts=drafts, batch_size=2000)
    drawn = sample(denoiser, ["12"], settings, n=2000, seed=1)
    assert chi_square(drawn, expected) < 1.9  # of 26 degrees: the 99.6th percentile
    assert sum(t.ledger.nfe for t in drawn) < 2.9 * len(drawn)  # some drafts are kept


@pytest.mark.slow
def test_lenience_keeps_more_and_changes_the_distribution(toy):
    denoiser, expected = toy
    settings = {"canvas_length": 3, "temperature": 1.0, "acceptance": "ratio", "batch_size": 2000}
    exact, lenient = (sample(denoiser, ["12"], config(3, lenience=a, **settings), n=2000, seed=1) for a in (None, 0.2))
    assert sum(t.ledger.nfe for t in lenient) < sum(t.ledger.nfe for t in exact)
    assert chi_square(lenient, expected) > 3


def test_pins_and_bans_hold_and_an_end_stops_a_row():
    denoiser = random_denoiser(family=TIDAR)
    plain = sample(denoiser, PROMPTS[:1], config(1))[0].canvas_ids
    canvas = [None, None, 9, None, *[None] * 4, 9, 9, None, None]
    bans = [(0, plain[0])]
    one, several = (
        sample(denoiser, PROMPTS[:1], config(block), canvases=[canvas], bans=[bans])[0] for block in (1, 4)
    )
    assert one.canvas_ids == several.canvas_ids
    assert one.canvas_ids[0] != plain[0]
    assert [one.canvas_ids[i] for i in (2, 8, 9)] == [9, 9, 9]
    assert [several.commit_step[i] for i in (2, 8, 9)] == [0, 0, 0]
    eos = denoiser.eos_ids[0]
    ended = [None] * 5 + [eos] + [None] * 6
    for block in (1, 4):
        (t,) = sample(denoiser, PROMPTS[:1], config(block, stop_at_eos=True), canvases=[ended])
        assert (t.finished, t.length) == (True, 6)
        assert set(t.commit_step[6:]) == {-1}


def test_noise_of_a_place_is_the_noise_of_its_seed():
    from lockstitch.sampling.drafting import _noise

    seeds, places = torch.tensor([3, 4, 3, 9]), torch.tensor([0, 0, 5, 5])
    found = _noise(seeds, places, 3)
    expected = [float(uniform(s[None], 0, 0, p[None], 3)) for s, p in zip(seeds, places, strict=True)]
    assert found.tolist() == expected


@pytest.mark.parametrize("name", ["tidar", "idlm"])
def test_the_presets_run(name):
    denoiser = random_denoiser(family=IDLM)
    settings = {"stop_at_eos": False, "temperature": 1.0}
    (t,) = sample(denoiser, PROMPTS[:1], preset(name, G, **settings))
    assert denoiser.mask_id not in t.canvas_ids
    assert t.ledger.nfe <= G


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"trust": 0.5, "acceptance": "ratio"}, "trust=0.5 would be ignored by acceptance='ratio'"),
        ({"lenience": 0.5}, "lenience=0.5 would be ignored by acceptance='agreement'; it is for ratio"),
        ({"lenience": 0.0, "acceptance": "ratio"}, "must be above 0"),
        ({"trust": 2.0}, r"trust=2.0 must be in \[0, 1\]"),
        ({"trust": 0.5, "drafts": "last"}, "drafts='each'"),
        ({"cfg_scale": 1.0}, "cfg_scale=1.0 does not go with policy='verify'"),
        ({"speculate": 2}, "speculate=2 does not go with policy='verify'"),
        ({"cache": "dual"}, "cache='dual' is not for policy='verify'"),
        ({"steps": 4}, "steps=4 would be ignored"),
        ({"policy": "quota", "drafts": "last"}, "drafts='last' would be ignored"),
    ],
)
def test_what_would_be_ignored_is_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        config(**settings)


def test_models_that_cannot_are_refused():
    with pytest.raises(ValueError, match="which block_causal models do not have"):
        sample(random_denoiser(family=BLOCK_CAUSAL), PROMPTS[:1], config())
    with pytest.raises(ValueError, match=r"trust=0.5: masks of idlm models"):
        sample(random_denoiser(family=IDLM), PROMPTS[:1], config(trust=0.5))
    with pytest.raises(ValueError, match="needs the number of tokens"):
        sample(random_denoiser(family=IDLM), PROMPTS[:1], config(None))
