"""Self-distillation from later blocks: zero cases, the whole divergence, what the teacher sees, and a training run."""

import math

import pytest
import torch
from grpo_runs import even_tokens, make_trainer
from lockstitch.rl.grpo_config import DiffusionGRPOConfig
from lockstitch.rl.health import HealthCallback
from lockstitch.rl.health_rules import HealthConfig
from lockstitch.rl.scoring import Canvases
from lockstitch.rl.self_distillation import first_right, reverse_divergence, self_distillation
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.loop import sample
from models import random_denoiser

pytestmark = pytest.mark.filterwarnings("ignore")

PLAIN = {"share": 0.25, "top_k": 10_000, "positions": 2, "clip": None}
RUN = {"policy_loss": "self_distillation", "block_length": 2, "max_steps": 2, "distill_reward": 0.5}


@pytest.fixture(scope="module")
def rolled():
    """A random model, another one, and three canvases of 8 in blocks of 2, a token a step."""
    denoiser, other = random_denoiser(sharpness=2.0), random_denoiser(seed=1, sharpness=2.0)
    config = SamplerConfig(canvas_length=8, block_length=2, temperature=1.0, stop_at_eos=False)
    drawn = sample(denoiser, ["1+7=", "2+14=", "3="], config, seed=5)
    return denoiser, other, Canvases.from_trajectories(drawn, denoiser)


def distilled(rolled, teacher, part=(0, 1), **options):
    denoiser, _, canvases = rolled
    return self_distillation(
        denoiser, denoiser.model, lambda run: run(teacher), canvases, 2, part, **{**PLAIN, **options}
    )


def test_the_divergence_over_all_tokens_is_the_whole_one_and_over_some_that_of_those():
    torch.manual_seed(0)
    student_MV, teacher_MV = torch.randn(5, 7), torch.randn(5, 7)
    p, q = torch.distributions.Categorical(logits=student_MV), torch.distributions.Categorical(logits=teacher_MV)
    found_M, clipped_M = reverse_divergence(student_MV, teacher_MV, 7, None)
    torch.testing.assert_close(found_M, torch.distributions.kl_divergence(p, q))
    assert clipped_M.tolist() == [0.0] * 5
    for row in range(5):
        token_K = teacher_MV[row].argsort(descending=True)[:3]
        a, b = student_MV[row, token_K].softmax(0), teacher_MV[row, token_K].softmax(0)
        terms = [x * math.log(x / y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        found, clipped = (values[row].item() for values in reverse_divergence(student_MV, teacher_MV, 3, 0.05))
        assert found == pytest.approx(sum(min(term, 0.05) for term in terms), abs=1e-6)
        assert clipped == sum(term > 0.05 for term in terms)


@pytest.mark.slow
def test_the_clip_of_single_terms_moves_the_minimum_to_a_wrong_token():
    """Why self-distillation comes apart: the token that is too likely costs no more than the clip.

    The teacher is sure of the first token, the student a little less so. Without a clip the divergence leads it to the
    teacher. With one, every other token's term is least at its share of the teacher's divided by e (the derivative of
    p log(p / q) is log(p / q) + 1), and what is left goes to the token at the clip.
    """
    teacher_V, student_V = torch.tensor([0.97, 0.01, 0.01, 0.01]), torch.tensor([0.90, 0.08, 0.01, 0.01])
    found = {}
    for clip in (None, 0.05):
        logits_V = student_V.log().requires_grad_()
        for _ in range(4000):
            apart_M, _ = reverse_divergence(logits_V[None], teacher_V.log()[None], 4, clip)
            (gradient,) = torch.autograd.grad(apart_M.sum(), logits_V)
            logits_V = (logits_V - 0.5 * gradient).detach().requires_grad_()
        found[clip] = logits_V.softmax(0).detach()
    torch.testing.assert_close(found[None], teacher_V, atol=1e-3, rtol=0)
    low_V = teacher_V / math.e
    expected_V = torch.stack([low_V[0], 1 - low_V[[0, 2, 3]].sum(), low_V[2], low_V[3]])
    torch.testing.assert_close(found[0.05], expected_V, atol=2e-3, rtol=0)


def test_an_equal_teacher_that_sees_no_more_has_no_loss_and_no_gradient(rolled):
    denoiser = rolled[0]
    apart_B, _ = distilled(rolled, denoiser.model, share=0.0, top_k=20, clip=0.05)
    assert apart_B.abs().max() < 1e-6
    gradients = torch.autograd.grad(apart_B.sum(), list(denoiser.model.parameters()), allow_unused=True)
    assert max(g.abs().max().item() for g in gradients if g is not None) < 1e-5
    seeing_B, _ = distilled(rolled, denoiser.model, share=1.0)  # the same weights, and the blocks to come
    assert seeing_B.min() > 1e-3


def test_a_step_compares_the_places_where_the_teacher_is_surest_as_it_was_rolled_out(rolled):
    """Written out, one canvas and one step at a time: what is seen, which place is chosen, and the mean over steps."""
    denoiser, other, canvases = rolled
    found_B, _ = distilled(rolled, other.model, share=1.0, positions=1)
    for row in range(3):
        prompt = canvases.prompt_BP[row][canvases.prompt_mask_BP[row].bool()].tolist()
        ids, since = canvases.completion_BG[row].tolist(), canvases.commit_step_BG[row].tolist()
        values = []
        for step in range(1, max(since) + 1):
            current = since.index(step) // 2
            student = [token if s < step else denoiser.mask_id for token, s in zip(ids, since, strict=True)]
            teacher = [t if g // 2 > current else x for g, (t, x) in enumerate(zip(ids, student, strict=True))]

            def logits(model, canvas, prompt=prompt):
                values_GV = model(input_ids=torch.tensor([prompt + canvas])).logits[0, len(prompt) :]
                kept = [v for v in range(values_GV.shape[1]) if v not in denoiser.never_drawn]
                return values_GV[:, kept]

            with torch.no_grad():
                p_GV, q_GV = logits(denoiser.model, student).softmax(1), logits(other.model, teacher).softmax(1)
            masked = [g for g in range(8) if since[g] >= step and g // 2 == current]
            place = max(masked, key=lambda g, q_GV=q_GV: q_GV[g].max().item())
            values.append((p_GV[place] * (p_GV[place] / q_GV[place]).log()).sum().item())
        assert found_B[row].item() == pytest.approx(sum(values) / len(values), rel=1e-4)


def test_parts_of_the_steps_are_the_whole_between_them(rolled):
    _, other, _ = rolled
    whole_B, _ = distilled(rolled, other.model)
    parts = [distilled(rolled, other.model, part=(t, 4))[0] for t in range(4)]  # two of eight steps each
    torch.testing.assert_close(sum(parts) / 4, whole_B)


def test_a_part_without_a_step_has_a_gradient_that_is_zero(rolled):
    """Of eight steps the ninth part of ten has none: the process must take part in the backward pass all the same."""
    denoiser = rolled[0]
    empty = [t for t in range(10) if t not in {(step - 1) * 10 // 8 for step in range(1, 9)}]
    apart_B, _ = distilled(rolled, rolled[1].model, part=(empty[0], 10))
    assert not apart_B.any()
    gradients = torch.autograd.grad(apart_B.sum(), list(denoiser.model.parameters()))
    assert not any(gradient.any() for gradient in gradients)


def test_the_first_right_rollout_of_a_group_teaches():
    rewards_N = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.5, torch.nan, torch.nan, 0.0, 2.0])
    assert first_right(rewards_N, 1.0, 3).tolist() == [False, True, False, False, False, False, False, False, True]


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_run_learns_from_right_rollouts_and_from_nothing_else(lora, tmp_path):
    """The teacher is the start: the adapter off, or a copy."""
    trainer = make_trainer({**RUN, "num_iterations": 2, "distill_share": 1.0}, tmp_path, lora=lora)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert logs[0]["distill/divergence"] > 0
    assert logs[0]["grad_norm"] > 0
    assert logs[0]["distill/right"] in (0.5, 1.0)  # of two prompts
    assert logs[0]["loss"] == pytest.approx(logs[0]["distill/divergence"] * logs[0]["distill/right"], rel=1e-3)
    none = make_trainer({**RUN, "distill_reward": 2.0}, tmp_path, lora=lora)
    none.train()
    logs = [log for log in none.state.log_history if "loss" in log]
    assert [log["grad_norm"] for log in logs] == [0.0, 0.0]
    assert logs[0]["distill/right"] == 0.0


def test_groups_of_one_right_completion_are_not_ill(tmp_path):
    watch = HealthCallback(HealthConfig(health_patience=2))
    settings = {**RUN, "max_steps": 3, "temperature": 1e-3, "distill_reward": 0.5}
    trainer = make_trainer(settings, tmp_path, rewards=lambda completion_ids, **columns: [1.0] * len(completion_ids),
                           callbacks=[watch])  # fmt: skip
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [(log["rollout/equal_groups"], log["rollout/usable_groups"]) for log in logs] == [(1.0, 1.0)] * 3
    assert watch.reason is None


def test_nothing_is_learned_from_an_equal_teacher_that_sees_no_more(tmp_path):
    trainer = make_trainer({**RUN, "distill_share": 0.0, "max_steps": 1}, tmp_path, rewards=even_tokens)
    trainer.train()
    assert trainer.state.log_history[0]["grad_norm"] < 1e-5


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"distill_share": 0.5}, "distill_share=0.5 would be ignored by policy_loss='token'"),
        ({**RUN, "estimator": "elbo"}, "estimator='elbo'.* would be ignored"),
        ({**RUN, "segments": 2}, "segments=2, segments_drawn=None would be ignored"),
        ({**RUN, "segments_drawn": 4}, "segments=None, segments_drawn=4 would be ignored"),
        ({**RUN, "block_length": 8}, "block_length=8 of 8 positions: .* there are none"),
        ({**RUN, "block_length": None}, "block_length=None of 8 positions"),
        ({**RUN, "scope": "canvas"}, "scope='canvas'.* would be ignored"),
        ({**RUN, "beta": 0.1}, "beta=0.1 would be ignored"),
        ({**RUN, "epsilon": 0.1}, "epsilon=0.1 would be ignored"),
        ({**RUN, "distill_share": 1.5}, "distill_share=1.5 must lie between 0 and 1"),
        ({**RUN, "distill_top_k": 0}, "distill_top_k=0 must be at least 1"),
        ({**RUN, "distill_positions": 0}, "distill_positions=0 must be at least 1"),
        ({**RUN, "distill_clip": 0.0}, "distill_clip=0.0 must be positive"),
    ],
)
def test_settings_that_distillation_does_not_go_with_are_refused(options, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        DiffusionGRPOConfig(str(tmp_path), max_completion_length=8, bf16=False, use_cpu=True, **options)


def test_the_blocks_may_be_those_of_a_preset(tmp_path):
    settings = {**RUN, "block_length": None, "preset": "llada"}
    DiffusionGRPOConfig(str(tmp_path), max_completion_length=64, bf16=False, use_cpu=True, **settings)
