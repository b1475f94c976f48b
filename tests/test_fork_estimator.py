"""The estimator of forks alone against the chain rule, plain logits, an enumeration of all runs, and sampled frequencies."""

import itertools
import math
from collections import Counter

import pytest
import torch
from grpo_runs import make_trainer, weights
from likelihoods import close, gradients, plain_logp
from lockstitch.rl.estimator_config import EstimatorConfig
from lockstitch.rl.estimators import estimate, estimate_channels
from lockstitch.rl.grpo_config import DiffusionGRPOConfig
from lockstitch.rl.scoring import Canvases, Scorer
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.families import BLOCK_CAUSAL, BLOCK_CAUSAL_SHIFTED, CONTEXT_CAUSAL
from lockstitch.sampling.loop import sample
from models import dream_like, random_denoiser

FORKS, CHAIN = EstimatorConfig("forks"), EstimatorConfig("autoregressive")
KINDS = {
    "full": lambda: random_denoiser(sharpness=3.0),
    "dream": lambda: dream_like(random_denoiser(sharpness=3.0)),
    "block_causal": lambda: random_denoiser("qwen3", sharpness=3.0, family=BLOCK_CAUSAL),
    "block_causal_shifted": lambda: random_denoiser("qwen3", sharpness=3.0, family=BLOCK_CAUSAL_SHIFTED),
    "context_causal": lambda: random_denoiser("qwen3", sharpness=3.0, family=CONTEXT_CAUSAL),
}
PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4], [11, 12, 13, 14]]


def rollouts(denoiser, threshold, block=4, pins=True, **settings):
    cache = "none" if denoiser.family.layout == "full" else "block"
    config = SamplerConfig(
        canvas_length=8,
        block_length=block,
        temperature=0.8,
        policy="threshold",
        fallback="leftmost",
        threshold=threshold,
        cache=cache,
        **{"stop_at_eos": False, **settings},
    )
    pinned = [None, None, 33, None, None, None, None, None]
    drawn = sample(denoiser, PROMPTS, config, n=2, canvases=[[None] * 8, pinned if pins else [None] * 8, [None] * 8])
    return drawn, Canvases.from_trajectories(drawn, denoiser)


def scorer_of(denoiser, block=4, **more):
    blocks = None if denoiser.family.layout == "full" else block
    return Scorer(denoiser, denoiser.model, 0.8, blocks, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_where_every_step_is_a_fork_it_is_the_chain_rule_to_the_last_digit(kind):
    """Values and gradients; a threshold above 1 is the left-to-right sampler (tests/test_forks.py)."""
    denoiser = KINDS[kind]()
    drawn, c = rollouts(denoiser, 1.01, pins=False)
    assert all(len(t.forks) == sum(step > 0 for step in t.commit_step) for t in drawn)
    found, expected = (estimate(config, scorer_of(denoiser), c) for config in (FORKS, CHAIN))
    assert torch.equal(found, expected)
    assert found[c.valid_BG & (c.commit_step_BG > 0)].all()
    pull = torch.linspace(-1, 1, found.numel()).view(found.shape)
    assert torch.equal(gradients(denoiser, (pull * found).sum()), gradients(denoiser, (pull * expected).sum()))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_fork_is_scored_at_the_canvas_that_it_was_drawn_from_and_nothing_else_is_passed(kind):
    denoiser, rows = KINDS[kind](), []
    drawn, c = rollouts(denoiser, 0.6)
    body = next(m for m in denoiser.model.modules() if type(m).__name__ in ("LlamaModel", "Qwen3Model"))
    handle = body.register_forward_pre_hook(
        lambda module, _, given: rows.append(len(given["input_ids"])), with_kwargs=True
    )
    found = estimate(EstimatorConfig("forks", scope="canvas"), scorer_of(denoiser, shares_prompts=False), c)
    handle.remove()
    forks = sum(len(t.forks) for t in drawn)
    assert 0 < forks < (c.commit_step_BG > 0).sum()
    assert len(rows) == max(len(t.forks) for t in drawn)
    assert sum(rows) <= forks
    assert torch.equal(found != 0, c.fork_BG)
    for b, t in enumerate(drawn):
        for k in t.forks:
            shown = [token is not None for token in t.canvas_at(t.commit_step[k] - 1)]
            plain = plain_logp(denoiser, list(t.prompt_ids), list(t.canvas_ids), shown, 4, 0.8)
            close(found[b, k], plain[k], atol=1e-4)


def test_without_forks_it_is_zero_and_so_is_its_gradient():
    denoiser = random_denoiser()
    drawn, c = rollouts(denoiser, 0.0)
    assert not any(t.forks for t in drawn)
    found = estimate(FORKS, scorer_of(denoiser), c)
    assert not found.any()
    assert not gradients(denoiser, found.sum()).any()


def test_a_run_without_forks_has_no_loss_and_stays_where_it_was(tmp_path):
    settings = {
        "estimator": "forks",
        "steps": None,
        "policy": "threshold",
        "threshold": 0.0,
        "fallback": "leftmost",
        "loss_type": "grpo",
        "max_steps": 2,
    }
    trainer = make_trainer(settings, tmp_path)
    before = weights(trainer)
    trainer.train()
    assert all(torch.equal(before[name], after) for name, after in weights(trainer).items())
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [(entry["loss"], entry["grad_norm"]) for entry in losses] == [(0.0, 0.0)] * 2
    assert not any(isinstance(v, float) and math.isnan(v) for entry in losses for v in entry.values())


class Loss:
    """The mean over a row's forks, then over rows, of what the clipped ratio pays; written out."""

    @staticmethod
    def of(logp_BG, old_BG, fork_BG, advantage_B, epsilon):
        total = torch.zeros(())
        for logp_G, old_G, fork_G, advantage in zip(logp_BG, old_BG, fork_BG, advantage_B, strict=True):
            terms = []
            for k in fork_G.nonzero()[:, 0].tolist():
                ratio = (logp_G[k] - old_G[k]).exp()
                terms.append(torch.min(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage))
            total = total - (sum(terms) / len(terms) if terms else 0)
        return total / len(logp_BG)


def test_the_trainer_s_loss_is_the_paper_s(tmp_path):
    """On a batch whose rows have different numbers of forks, one of them none, at ratios that are clipped and not."""
    settings = {
        "estimator": "forks",
        "steps": None,
        "policy": "threshold",
        "threshold": 0.25,
        "fallback": "leftmost",
        "loss_type": "grpo",
        "max_steps": 1,
        "temperature": 0.8,
        "num_iterations": 2,
        "drop_zero_variance": False,
    }
    trainer = make_trainer(settings, tmp_path)
    trainer.model.train()
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    inputs["fork"][0], inputs["tool_mask"][0], inputs["active"][0] = False, 0, False
    fork_BG = inputs["tool_mask"].bool()
    assert len(set(fork_BG.sum(1).tolist())) > 2
    trainer._step, trainer.current_gradient_accumulation_steps = 1, 1  # in the second inner iteration
    logp_BG = trainer._new_likelihoods(trainer.model, inputs, 1)[..., 0]
    shift = 0.3 * torch.randn(logp_BG.shape, generator=torch.Generator().manual_seed(0))
    inputs["old_logp"] = (logp_BG.detach() + shift)[:, None]
    plain = Loss.of(logp_BG, inputs["old_logp"][:, 0], fork_BG, inputs["advantages"], 0.2)
    assert plain.abs() > 1e-3
    torch.testing.assert_close(trainer._compute_loss(trainer.model, inputs), plain)


# The policy's own gradient, and its own frequencies


WORDS = [7, 9]


def two_words(denoiser, margin=None):
    """The model over two words alone; with a margin, log-odds beyond it are certain and those within are no more than .4."""
    head = denoiser.model.lm_head
    project = head.forward

    def forward(hidden):
        logits = project(hidden)
        odds = logits[..., WORDS[0]] - logits[..., WORDS[1]]
        if margin is not None:
            odds = torch.where(odds.abs() > margin, 1e3 * odds.sign().detach() + 0 * odds, 0.4 * torch.tanh(odds))
        kept = torch.full_like(logits, -1e9)
        kept[..., WORDS[0]], kept[..., WORDS[1]] = odds / 2, -odds / 2
        return kept

    head.forward = forward
    return denoiser


def enumerated(denoiser, prompt, length, threshold, temperature):
    """Every run of the fork policy: its probability, with gradient, and its canvas, commit steps and forks."""
    runs = []

    def go(canvas, steps, forks, weight, step):
        open_ = [i for i, word in enumerate(canvas) if word is None]
        if not open_:
            runs.append((weight, canvas, steps, forks))
            return
        ids = [*prompt, *(denoiser.mask_id if word is None else word for word in canvas)]
        logits = denoiser.model(input_ids=torch.tensor([ids])).logits[0, -length:, WORDS]
        sure, drawn = logits.softmax(-1), (logits / temperature).softmax(-1)
        ways = {}
        for picks in itertools.product(range(2), repeat=len(open_)):
            p = math.prod(drawn[i, pick] for i, pick in zip(open_, picks, strict=True))
            made = tuple((i, pick) for i, pick in zip(open_, picks, strict=True) if sure[i, pick] >= threshold)
            way = (made or ((open_[0], picks[0]),), not made)
            ways[way] = ways.get(way, 0) + p
        for (made, forked), p in ways.items():
            if p.item() > 1e-9:
                commits = dict(made)
                go(
                    tuple(WORDS[commits[i]] if i in commits else word for i, word in enumerate(canvas)),
                    tuple(step if i in commits else since for i, since in enumerate(steps)),
                    forks + ((open_[0],) if forked else ()),
                    weight * p,
                    step + 1,
                )

    go((None,) * length, (-1,) * length, (), torch.ones(()), 1)
    return runs


@pytest.mark.parametrize(("threshold", "margin"), [(1.01, None), (0.7, 2.0)])
def test_the_gradient_is_the_policy_s_own(threshold, margin):
    """`sum over runs of P(run) R grad sum of log p(fork)` is the gradient of the mean reward, where whatever reaches the
    threshold is certain: then forks alone are drawn."""
    denoiser, length, prompt = two_words(random_denoiser(sharpness=3.0), margin), 3, PROMPTS[0]
    runs = enumerated(denoiser, prompt, length, threshold, 0.8)
    P = torch.stack([run[0] for run in runs])
    close(P.sum(), torch.ones(()))
    forks = sum(p * len(run[3]) for p, run in zip(P.tolist(), runs, strict=True))
    assert forks == pytest.approx(length) if threshold > 1 else 0.5 < forks < length - 0.5
    reward = torch.tensor([sum((i + 1) * (word == 7) for i, word in enumerate(run[1])) / 3.0 for run in runs])
    exact = gradients(denoiser, (P * reward).sum())

    fork_BG = torch.tensor([[i in run[3] for i in range(length)] for run in runs])
    c = Canvases(
        torch.tensor([prompt] * len(runs)),
        torch.ones(len(runs), len(prompt)),
        torch.tensor([run[1] for run in runs]),
        torch.ones(len(runs), length, dtype=torch.bool),
        torch.arange(len(runs)),
        torch.tensor([run[2] for run in runs]),
        torch.zeros(len(runs), length, dtype=torch.long),
        fork_BG=fork_BG,
    )
    logp_B = estimate(FORKS, Scorer(denoiser, denoiser.model, 0.8), c).sum(1)
    close(logp_B.exp(), P, atol=1e-5)
    found = gradients(denoiser, (P.detach() * reward * logp_B).sum())
    assert exact.abs().max() > 1e-2
    close(found, exact, atol=1e-4 * float(exact.abs().max()))


EXACT = {
    "forks": (FORKS, {"policy": "threshold", "threshold": 1.01, "fallback": "leftmost"}),
    "autoregressive": (CHAIN, {"block_length": 1}),
    "trajectory": (EstimatorConfig("trajectory"), {"block_length": 1}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_canvases_are_drawn_as_often_as_they_are_scored(name):
    """At the rollouts' temperature; at another one they are not."""
    config, settings = EXACT[name]
    denoiser, length, n = two_words(random_denoiser(sharpness=1.0)), 3, 3000
    sampler = SamplerConfig(canvas_length=length, temperature=0.6, stop_at_eos=False, batch_size=500, **settings)
    drawn = sample(denoiser, PROMPTS[:1], sampler, n=n)
    seen, one = Counter(t.canvas_ids for t in drawn), {t.canvas_ids: t for t in drawn}
    c = Canvases.from_trajectories(list(one.values()), denoiser)
    training = DiffusionGRPOConfig(
        "x",
        use_cpu=True,
        bf16=False,
        estimator=name,
        temperature=0.6,
        report_to="none",
        max_completion_length=length,
        **settings,
    )
    assert training.scoring_temperature == 0.6

    def chi_square(temperature):
        logp_B = estimate(config, Scorer(denoiser, denoiser.model, temperature), c).detach().sum(1)
        expected = dict(zip(one, (n * logp_B.exp()).tolist(), strict=True))
        return sum((seen[canvas] - e) ** 2 / e for canvas, e in expected.items())

    assert len(one) == 8
    assert chi_square(0.6) < 24.3  # the 0.1 % point of 7 degrees of freedom
    assert chi_square(1.0) > 100


# The bonus of entropy


@pytest.mark.parametrize("name", ["trajectory", "forks", "autoregressive"])
@pytest.mark.parametrize("kind", ["full", "block_causal"])
def test_entropies_are_the_vocabulary_s_sum_and_so_is_their_gradient(name, kind):
    """In one channel beside the log-likelihoods, which stay what they are without it."""
    denoiser = KINDS[kind]()
    drawn, c = rollouts(denoiser, 0.6, block=8)
    c = c.rows(slice(0, 3))
    config = EstimatorConfig(name, scope="canvas")
    both = estimate_channels(config, scorer_of(denoiser, 8, entropies=True), c)
    logp_BG, entropy_BG = both.unbind(2)
    torch.testing.assert_close(logp_BG, estimate(config, scorer_of(denoiser, 8), c), rtol=1e-5, atol=1e-5)
    total, count = torch.zeros(()), 0
    for b, t in enumerate(drawn[:3]):
        for k, since in enumerate(t.commit_step):
            if since <= 0 or (name == "forks" and k not in t.forks):
                assert entropy_BG[b, k] == 0
                continue
            before = t.canvas_at(since - 1)
            if name == "autoregressive":
                given = t.canvas_at(0)
                before = [token if i < k else given[i] for i, token in enumerate(t.canvas_ids)]
            ids = [*t.prompt_ids, *(denoiser.mask_id if token is None else token for token in before)]
            seen = torch.zeros(len(ids), len(ids))
            if kind != "full":  # the canvas is a block of its own
                seen[: -len(before), -len(before) :] = torch.finfo(torch.float32).min
                column = torch.arange(len(t.prompt_ids))
                part = column // 8
                seen[: len(column), : len(column)].masked_fill_(
                    part[None] > part[:, None], torch.finfo(torch.float32).min
                )
            logits = denoiser.model(input_ids=torch.tensor([ids]), attention_mask=seen[None, None]).logits[0]
            row = logits[k - len(before)] / 0.8
            kept = torch.ones_like(row, dtype=torch.bool)
            kept[denoiser.never_drawn] = False
            p = row[kept].softmax(0)
            entropy = -(p * p.log()).sum()
            close(entropy_BG[b, k], entropy, atol=1e-4)
            total, count = total + entropy, count + 1
    assert count == (entropy_BG != 0).sum() > 0
    found, expected = gradients(denoiser, entropy_BG.sum()), gradients(denoiser, total)
    assert expected.abs().max() > 1e-2
    close(found, expected, atol=1e-4 * float(expected.abs().max()))


def test_the_bonus_is_the_mean_over_all_tokens_of_the_batch(tmp_path):
    """Also of groups without variance, which have nothing else to say."""
    settings = {"entropy_coef": 0.5, "loss_type": "bnpo", "max_steps": 2, "temperature": 0.8}
    trainer = make_trainer(settings, tmp_path, rewards=lambda completion_ids, **_: [1.0] * len(completion_ids))
    trainer.model.train()
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.current_gradient_accumulation_steps = 1
    both = trainer._new_likelihoods(trainer.model, inputs, 0)
    mask_BG = inputs["tool_mask"]
    expected = -0.5 * (both[..., 1] * mask_BG).sum() / mask_BG.sum()
    assert expected < -0.05
    loss = trainer._compute_loss(trainer.model, inputs)
    torch.testing.assert_close(loss, expected)
    weight = trainer.model.lm_head.weight
    torch.testing.assert_close(*(torch.autograd.grad(x, weight, retain_graph=True)[0] for x in (loss, expected)))


# What is refused


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"estimator": "forks"}, "estimator='forks' with policy='quota': forks are what a threshold left"),
        ({"top_p": 0.9}, "top_p=0.9: estimator='trajectory' scores the policy that drew the rollouts"),
        ({"top_k": 5, "estimator": "autoregressive"}, "top_k=5: estimator='autoregressive'"),
        ({"cfg_scale": 1.5}, "cfg_scale=1.5: estimator='trajectory'"),
        ({"entropy_coef": 0.1, "estimator": "elbo"}, "entropy_coef=0.1: estimator='elbo', .* does not see"),
        (
            {"use_adaptive_entropy": True, "segments": 2},
            "use_adaptive_entropy=True: estimator='trajectory', segments=2",
        ),
        (
            {"entropy_coef": 0.1, "policy_loss": "sequence"},
            "entropy_coef=0.1 would be ignored by policy_loss='sequence'",
        ),
        ({"entropy_target": 0.1}, "entropy_target=0.1 would be ignored: use_adaptive_entropy=False"),
        ({"score_temperature": 0.0}, "score_temperature=0.0 must be positive"),
    ],
)
def test_what_has_no_meaning_is_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        DiffusionGRPOConfig("x", use_cpu=True, bf16=False, max_completion_length=8, **settings)


def test_the_temperature_of_scores_follows_the_rollouts_where_scores_are_exact():
    common = {"use_cpu": True, "bf16": False, "max_completion_length": 8, "temperature": 0.7}
    assert DiffusionGRPOConfig("x", **common).scoring_temperature == 0.7
    assert DiffusionGRPOConfig("x", estimator="autoregressive", **common).scoring_temperature == 0.7
    assert DiffusionGRPOConfig("x", segments=4, **common).scoring_temperature == 1.0
    assert DiffusionGRPOConfig("x", estimator="elbo", top_p=0.9, **common).scoring_temperature == 1.0
    assert DiffusionGRPOConfig("x", score_temperature=1.0, **common).scoring_temperature == 1.0
