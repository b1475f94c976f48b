"""Policy losses: gradients against the formulas written out plainly, weights, and the numbers that are logged of ratios."""

import math

import pytest
import torch
from lockstitch.rl import losses
from lockstitch.rl.grpo_config import DiffusionGRPOConfig

ROWS, CANVAS = 6, 5


@pytest.fixture
def batch():
    noise = torch.Generator().manual_seed(0)
    logp = -2 * torch.rand(ROWS, CANVAS, generator=noise, dtype=torch.float64)
    old = logp + 0.6 * torch.randn(ROWS, CANVAS, generator=noise, dtype=torch.float64)
    ref = logp + 0.6 * torch.randn(ROWS, CANVAS, generator=noise, dtype=torch.float64)
    ends = torch.tensor([5, 3, 1, 4, 5, 2])
    valid = torch.arange(CANVAS) < ends[:, None]
    advantage = torch.tensor([1.0, -0.5, 0.3, -1.0, 0.7, 0.0], dtype=torch.float64)
    return logp.requires_grad_(), old, ref, valid, advantage


def gradient(loss, logp):
    (found,) = torch.autograd.grad(loss, logp)
    return found


def tokens(valid):
    return [[k for k in range(CANVAS) if valid[i, k]] for i in range(ROWS)]


@pytest.mark.parametrize("norm", ["canvas", "valid", "none"])
@pytest.mark.parametrize("delta", [None, 1.3])
def test_sequence_ratios_are_clipped_as_written(batch, norm, delta):
    logp, old, _, valid, advantage = batch
    plain = torch.zeros(())
    clipped = 0
    for i, places in enumerate(tokens(valid)):
        length = {"canvas": CANVAS, "valid": len(places), "none": 1}[norm]
        ratio = math.e ** (sum(logp[i, k] - old[i, k] for k in places) / length)
        held = min(max(ratio.item(), 0.8), 1.3)
        bounded = ratio if delta is None or ratio.item() <= delta else torch.tensor(delta)
        clipped += held * advantage[i].item() < min(ratio.item(), 1e9) * advantage[i].item() - 1e-12
        plain = plain - min(bounded * advantage[i], held * advantage[i], key=lambda value: value.item()) / ROWS
    sums = [losses.row_sums(values, valid) for values in (logp, old)]
    norms = losses.row_norms(valid, norm)
    found = losses.sequence_loss(*sums, advantage, norms, 0.2, 0.3, ROWS, delta)
    assert found.item() == pytest.approx(plain.item(), rel=1e-12)
    torch.testing.assert_close(gradient(found, logp), gradient(plain, logp))
    assert losses.clipped_rows(*sums, advantage, norms, 0.2, 0.3).sum() == clipped


@pytest.mark.parametrize("form", ["k2", "k3"])
def test_divergence_from_the_reference(batch, form):
    logp, _, ref, valid, _ = batch
    plain = torch.zeros(())
    for i, places in enumerate(tokens(valid)):
        apart = sum(ref[i, k] - logp[i, k] for k in places)
        plain = plain + (apart**2 / 2 / CANVAS if form == "k2" else math.e ** (apart / CANVAS) - apart / CANVAS - 1)
    found = losses.sequence_kl(
        losses.row_sums(logp, valid), losses.row_sums(ref, valid), losses.row_norms(valid, "canvas"), form
    ).sum()
    assert found.item() == pytest.approx(plain.item(), rel=1e-12)
    torch.testing.assert_close(gradient(found, logp), gradient(plain, logp))


def test_sandwich_is_advantage_times_likelihood_per_token(batch):
    logp, _, _, valid, advantage = batch
    total = sum(map(len, tokens(valid)))
    # SPG writes each row's mean over its tokens times its share of the batch's tokens.
    plain = -sum(
        advantage[i] * (sum(logp[i, k] for k in places) / len(places)) * len(places) / total
        for i, places in enumerate(tokens(valid))
    )
    found = losses.likelihood_loss(losses.row_sums(logp, valid), advantage, losses.row_norms(valid, "none"), total)
    assert found.item() == pytest.approx(plain.item(), rel=1e-12)
    torch.testing.assert_close(gradient(found, logp), gradient(plain, logp))


def test_weighted_likelihoods_by_group(batch):
    logp, _, _, valid, advantage = batch
    plain = torch.zeros(())
    for group in (range(3), range(3, 6)):
        best = [math.exp(advantage[i]) for i in group]
        worst = [math.exp(-advantage[i]) for i in group]
        for i, up, down in zip(group, best, worst, strict=True):
            row = sum(logp[i, k] for k in tokens(valid)[i])
            plain = plain - (up / sum(best)) * row + (down / sum(worst)) * row
    weight = losses.group_weights(advantage, torch.ones(ROWS, dtype=torch.bool), 3)
    found = losses.likelihood_loss(losses.row_sums(logp, valid), weight, losses.row_norms(valid, "none"), 1)
    assert found.item() == pytest.approx(plain.item(), rel=1e-12)
    torch.testing.assert_close(gradient(found, logp), gradient(plain, logp))


def test_rows_without_a_reward_weigh_nothing():
    advantage = torch.tensor([1.0, -1.0, 0.0, 0.0, 0.0, 0.0])
    known = torch.tensor([True, True, False, False, False, False])
    weight = losses.group_weights(advantage, known, 3)
    expected = math.exp(1) / (math.exp(1) + math.exp(-1)) - math.exp(-1) / (math.exp(1) + math.exp(-1))
    assert weight.tolist() == pytest.approx([expected, -expected, 0, 0, 0, 0])


def test_self_normalised_ratios_are_clipped_whatever_the_sign(batch):
    logp, old, _, valid, advantage = batch
    rows, ratios = [], []
    for i, places in enumerate(tokens(valid)):
        mean = sum(logp[i, k] for k in places) / len(places)
        ratios.append(min(math.exp(mean.item() - sum(old[i, k] for k in places).item() / len(places)), 1.1))
        rows.append(advantage[i] * mean)
    plain = -sum(ratio / sum(ratios) * row for ratio, row in zip(ratios, rows, strict=True))
    norm = losses.row_norms(valid, "valid")
    sums = [losses.row_sums(values, valid) for values in (logp, old)]
    weight = losses.clipped_ratios(*sums, norm, 1.1)
    assert not weight.requires_grad
    assert 1 <= (weight == 1.1).sum() < ROWS
    found = losses.likelihood_loss(sums[0], weight * advantage, norm, weight.sum())
    assert found.item() == pytest.approx(plain.item(), rel=1e-6)
    torch.testing.assert_close(gradient(found, logp), gradient(plain, logp), rtol=1e-6, atol=1e-9)


def test_numbers_of_ratios_add_up_over_parts():
    values = torch.randn(20, generator=torch.Generator().manual_seed(0))
    found = losses.ratio_metrics(sum(losses.ratio_moments(part) for part in values.split(7)))
    weight = values.double().exp()
    assert found == pytest.approx(
        {
            "ratio/spread": values.std(correction=0).item(),
            "ratio/drift": values.mean().item(),
            "ratio/effective_sample_size": (weight.sum() ** 2 / weight.square().sum() / 20).item(),
        },
        rel=1e-5,
    )
    assert losses.ratio_metrics(losses.ratio_moments(torch.zeros(0))) == {}
    assert (
        losses.ratio_metrics(losses.ratio_moments(torch.tensor([-900.0, 900.0])))["ratio/effective_sample_size"] == 0.5
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"use_vllm": True}, "use_vllm=True has no meaning for a diffusion model: vLLM generates token by token"),
        ({"vllm_mode": "server"}, "vllm_mode='server' has no meaning"),
        ({"min_p": 0.1}, "min_p=0.1 has no meaning"),
        ({"generation_kwargs": {"num_beams": 2}}, "generation_kwargs=.*fields of their own"),
        ({"sync_ref_model": True}, "sync_ref_model=True"),
        ({"temperature": 0.0}, "temperature=0: all completions"),
        ({"pad_to_multiple_of": 8}, "pad_to_multiple_of=8"),
        ({"policy_loss": "ppo"}, "token, sequence, sandwich, weighted, self_normalized"),
        (
            {"policy_loss": "sequence", "loss_type": "bnpo"},
            "loss_type='bnpo' would be ignored by policy_loss='sequence'",
        ),
        ({"policy_loss": "weighted", "beta": 0.1}, "beta=0.1 would be ignored by policy_loss='weighted'"),
        ({"policy_loss": "sandwich", "epsilon": 0.5}, "epsilon=0.5 would be ignored"),
        ({"ratio_norm": "canvas"}, "ratio_norm='canvas' would be ignored by policy_loss='token'"),
        ({"ratio_clip": 3.0}, "ratio_clip=3.0 would be ignored"),
        ({"policy_loss": "sequence", "kl_form": "k3"}, "kl_form='k3' would be ignored: beta=0"),
        ({"estimator": "sandwiched"}, "estimator='sandwiched' does not go with policy_loss='token'"),
        ({"estimator": "diffusion"}, "estimator='diffusion' is not one of"),
        ({"estimator": "mean_field", "segments": 4}, "segments=4 would be ignored by estimator='mean_field'"),
        ({"share_prompt_mask": True}, "share_prompt_mask=True would be ignored: prompt_mask_ratio=None"),
        ({"steps": 5}, "steps=5 must be a multiple"),
        ({"preset": "tidar"}, "preset='tidar', policy=None: verify draws the text of the causal half"),
        ({"policy": "verify"}, "preset=None, policy='verify': verify draws"),
        ({"preset": "remdm"}, "preset='remdm' takes tokens back or moves the canvas.*llada"),
        ({"refill_groups": 1, "scale_rewards": "batch"}, "refill_groups needs advantages"),
        ({"ref_model_mixup_alpha": 0.1}, "ref_model_mixup_alpha=0.1 has no meaning"),
        (
            {"sapo_temperature_pos": 2.0},
            "sapo_temperature_pos=2.0 would be ignored by loss_type='dapo'; it is for sapo",
        ),
        ({"vespo_k_neg": 1.0, "loss_type": "sapo"}, "vespo_k_neg=1.0 would be ignored by loss_type='sapo'"),
        ({"epsilon": 0.4, "loss_type": "sapo"}, "epsilon=0.4 would be ignored by loss_type='sapo'"),
        ({"delta": 4.0, "loss_type": "cispo"}, "delta=4.0 would be ignored by loss_type='cispo'"),
        (
            {"epsilon": 0.4, "epsilon_high": 2.0, "loss_type": "cispo"},
            "epsilon=0.4 would be ignored by loss_type='cispo' with epsilon_high=2.0",
        ),
        (
            {"policy_loss": "regression", "epsilon_high": -1.0, "num_iterations": 2},
            "epsilon_high=-1.0 must be positive",
        ),
        ({"epsilon": -1.0}, "epsilon=-1.0 must be at least 0 and below 1"),
        ({"epsilon": 1.0, "policy_loss": "sequence"}, "epsilon=1.0 must be at least 0 and below 1"),
        ({"beta": -1.0}, "beta=-1.0 must be at least 0"),
        ({"delta": 0.5}, r"delta=0.5 must be above 1 \+ epsilon=1.2"),
        ({"reward_weights": []}, r"reward_weights=\[\] must hold"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0 must be at least 0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 must be at least 0"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, says, tmp_path):
    common = {"max_completion_length": 32, "block_length": 16} if "preset" not in settings else {}
    with pytest.raises(ValueError, match=says):
        DiffusionGRPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, **common, **settings)


def test_settings_of_their_own_loss_type_are_taken(tmp_path):
    for settings in (
        {"loss_type": "cispo", "epsilon": 5.0},
        {"loss_type": "sapo", "sapo_temperature_pos": 2.0},
        {"loss_type": "vespo", "vespo_k_neg": 1.0},
        {"delta": 2.0},
    ):
        DiffusionGRPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, max_completion_length=32, **settings)


def test_masks_in_blocks_know_the_block_of_a_preset(tmp_path):
    common = {"bf16": False, "use_cpu": True, "max_completion_length": 64, "estimator": "elbo"}
    masks = {"mask_distribution": "block_random"}
    for settings, block in (({"preset": "llada"}, 32), ({"block_length": 16}, 16), ({}, 64)):
        args = DiffusionGRPOConfig(str(tmp_path), **common, **masks, **settings)
        assert args.estimator_config().block_length == block


def test_the_sampler_gets_what_the_settings_say(tmp_path):
    args = DiffusionGRPOConfig(
        output_dir=str(tmp_path),
        bf16=False,
        use_cpu=True,
        max_completion_length=64,
        estimator="elbo",
        preset="dream",
        steps=16,
        temperature=0.9,
        top_p=0.8,
        rollout_micro_batch_size=5,
    )
    sampler = args.sampler_config()
    assert (sampler.canvas_length, sampler.certainty, sampler.steps, sampler.batch_size) == (64, "entropy", 16, 5)
    assert (sampler.temperature, sampler.top_p, sampler.top_k) == (0.9, 0.8, None)
    assert sampler.stop_at_eos


def test_a_canvas_is_called_what_trl_calls_it(tmp_path):
    says = r"block_length=32 does not divide max_completion_length=20; 1, 2, 4, 5, 10, 20 do"
    with pytest.raises(ValueError, match=says):
        DiffusionGRPOConfig(str(tmp_path), bf16=False, use_cpu=True, max_completion_length=20, preset="llada")
