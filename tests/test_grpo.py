"""The GRPO trainer: ratios of one, runs that do not depend on how they are cut up, resumed runs, and TRL's own features."""

import time

import pytest
import torch
from datasets import Dataset
from grpo_runs import PROMPTS, SETTINGS, even_tokens, finish, launch, make_trainer, train, weights
from lockstitch.rl.grpo import DiffusionGRPOTrainer
from lockstitch.rl.grpo_config import DiffusionGRPOConfig
from lockstitch.rl.rollouts import TRAIN
from models import random_denoiser
from peft import LoraConfig

pytestmark = pytest.mark.filterwarnings("ignore")

# What the published recipes pair.
PAIRS = {
    "d1": {"estimator": "mean_field", "prompt_mask_ratio": 0.15},
    "coupled": {"estimator": "coupled"},
    "espo": {"estimator": "elbo", "num_samples": 2, "mask_schedule": "complement", "policy_loss": "sequence",
             "scope": "canvas"},
    "gdpo": {"estimator": "elbo", "num_samples": 3, "mask_schedule": "quadrature", "policy_loss": "sequence"},
    "spg": {"estimator": "sandwiched", "num_samples": 2, "mask_distribution": "block_random", "block_length": 4,
            "policy_loss": "sandwich"},
    "wd1": {"estimator": "mean_field", "prompt_mask_ratio": 0.15, "policy_loss": "weighted"},
    "stabledrl": {"estimator": "sandwiched", "num_samples": 2, "policy_loss": "self_normalized"},
    "d2": {"estimator": "trajectory"},
    "justgrpo": {"estimator": "autoregressive", "block_length": 1, "steps": 8},
    "forkgrpo": {"estimator": "forks", "steps": None, "policy": "threshold", "threshold": 0.3, "fallback": "leftmost",
                 "loss_type": "grpo", "temperature": 0.8},
    "rldf": {"estimator": "trajectory", "segments_drawn": 2, "surprisal_temperature": 1.0, "clean_threshold": 0.3,
             "beta": 0.01, "use_bias_correction_kl": False},
    "mask_aware": {"estimator": "trajectory", "position_temperature": 0.5},
    "gdsd": {"estimator": "elbo", "mask_schedule": "complement", "policy_loss": "regression", "psi": 10.0, "epsilon": 0.5,
             "scope": "canvas"},
}  # fmt: skip
WITH_RATIOS = (
    "d1",
    "coupled",
    "espo",
    "gdpo",
    "stabledrl",
    "d2",
    "justgrpo",
    "forkgrpo",
    "rldf",
    "mask_aware",
    "gdsd",
)


def assert_same(one, other, atol=1e-5):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            other[name], value, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


def moved(trained):
    """The furthest that any weight of a random model has gone."""
    start = dict(random_denoiser(sharpness=2.0).model.named_parameters())
    return max((trained[name] - p).abs().max().item() for name, p in start.items())


class Ratios(DiffusionGRPOTrainer):
    """Keeps how far the log-ratios of every micro-batch are from 0."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.furthest = {}

    def _old_likelihoods(self, inputs, logp_BG, iteration):
        old_BG = super()._old_likelihoods(inputs, logp_BG, iteration)
        apart = (logp_BG.detach() - old_BG).abs().max().item()
        self.furthest.setdefault(iteration, []).append(apart)
        return old_BG


# --- ratios ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", WITH_RATIOS)
def test_ratios_begin_at_one(name, lora, tmp_path):
    """In steps that come before the policy moves the ratio is 1 exactly; in later iterations it is not."""
    settings = {
        "num_iterations": 2,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
        "max_steps": 4,
    }
    trainer = make_trainer({**settings, **PAIRS[name]}, tmp_path, lora=lora, trainer=Ratios)
    trainer.train()
    assert trainer.furthest[0] == [0.0] * 4
    assert max(trainer.furthest[1]) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_RATIOS)
def test_old_likelihoods_see_the_same_noise(name, tmp_path):
    """A policy that does not move has ratios of 1 in all iterations: rows scored in other company, shuffled, later."""
    settings = {"num_iterations": 2, "gradient_accumulation_steps": 1, "steps_per_generation": 4, "learning_rate": 0.0,
                "per_device_train_batch_size": 4, "max_steps": 16}  # fmt: skip
    trainer = make_trainer({**settings, **PAIRS[name]}, tmp_path, trainer=Ratios)
    trainer.train()
    assert len(trainer.furthest[0]) == len(trainer.furthest[1]) == 8
    assert max(max(apart) for apart in trainer.furthest.values()) < 2e-5


class Token(DiffusionGRPOTrainer):
    """Holds TRL's losses over our estimates against their formula written out, and their gradients by token."""

    clipped = 0

    def _old_likelihoods(self, inputs, logp_BG, iteration):
        self.read = logp_BG, super()._old_likelihoods(inputs, logp_BG, iteration), inputs["ref_logp"][:, iteration]
        return self.read[1]

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        valid_BG, plain = inputs["tool_mask"].bool(), torch.zeros(())
        for i, ends in enumerate(valid_BG.sum(1).tolist()):
            norm = {"grpo": len(valid_BG) * ends, "dr_grpo": valid_BG.numel()}.get(self.loss_type, valid_BG.sum())
            logp, old, ref = (values[i, :ends] for values in self.read)
            log_ratio = logp - old if self.importance_sampling_level == "token" else (logp - old).mean()[None]
            for ratio in log_ratio.exp():
                held, A = ratio.clamp(1 - self.args.epsilon, 1 + self.args.epsilon), inputs["advantages"][i]
                self.clipped += int(held * A < ratio * A)
                plain = plain - min(ratio * A, held * A) * ends / len(log_ratio) / norm
            plain = plain + self.args.beta * sum((ref - logp).exp() - (ref - logp) - 1) / norm
        torch.testing.assert_close(loss, plain)
        found, expected = (torch.autograd.grad(x, self.read[0], retain_graph=True)[0] for x in (loss, plain))
        torch.testing.assert_close(found, expected)
        return loss


@pytest.mark.slow
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_trl_s_losses_are_their_formula_in_every_inner_iteration(loss_type, level, tmp_path):
    """Value and gradient, once the policy has moved so far that some ratios are clipped."""
    settings = {"loss_type": loss_type, "importance_sampling_level": level, "num_iterations": 3, "learning_rate": 1e-2,
                "estimator": "elbo", "epsilon": 0.05, "beta": 0.1, "use_bias_correction_kl": False}  # fmt: skip
    trainer = make_trainer(settings, tmp_path, trainer=Token)
    trainer.train()
    assert trainer.clipped > 0


# --- the same run, cut up in other ways ------------------------------------------------------------------------------


@pytest.mark.slow
def test_accumulated_micro_batches_are_one_batch(tmp_path):
    """Prompts of several lengths: left-padded rows in one batch, unpadded ones by themselves."""
    whole, log = train({}, tmp_path)
    pieces, _ = train({"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}, tmp_path)
    assert moved(whole) > 1e-3
    assert_same(whole, pieces)
    keeping, _ = train({"recompute_passes": False}, tmp_path)
    assert_same(whole, keeping, atol=1e-6)
    assert log[0]["ratio/effective_sample_size"] == 1.0


def test_a_group_with_one_masked_prompt_passes_as_one_row(tmp_path):
    """However the batch is cut up: the prompt's seed is its place's, not its completions'."""
    settings = {
        **PAIRS["d1"],
        "share_prompt_mask": True,
        "prompt_mask_ratio": 0.5,
        "num_iterations": 2,
        "max_steps": 2,
    }
    trainer = make_trainer(settings, tmp_path)
    trainer.train()
    (columns,), shapes = trainer._buffered_inputs, []
    assert len(set(columns["noise_seed"].tolist())) == 8
    assert len(set(columns["prompt_seed"].tolist())) == 2
    trainer.model.register_forward_pre_hook(lambda m, a, kw: shapes.append(kw["input_ids"].shape), with_kwargs=True)
    trainer._likelihoods(trainer.model, columns, torch.arange(8), 1)
    assert [rows for rows, _ in shapes] == [2]
    pieces, _ = train({**settings, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}, tmp_path)
    assert moved(pieces) > 1e-3
    assert_same(weights(trainer), pieces)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PAIRS if name not in ("d2", "justgrpo", "forkgrpo")])
def test_accumulation_changes_no_loss(name, tmp_path):
    settings = {"num_iterations": 2, "max_steps": 4, **PAIRS[name]}
    if name == "gdpo":
        settings |= {"beta": 0.1}
    whole, _ = train(settings, tmp_path)
    pieces, _ = train({**settings, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}, tmp_path)
    assert moved(whole) > 1e-3
    assert_same(whole, pieces)


@pytest.mark.slow
def test_order_within_a_batch_changes_nothing(tmp_path):
    class Reversed(DiffusionGRPOTrainer):
        """Turns each generation's rows round before they are dealt out."""

        def _generate_and_score_completions(self, inputs):
            columns = super()._generate_and_score_completions(inputs)
            return {name: values.flip(0) if values.ndim else values for name, values in columns.items()}

    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    assert_same(train(settings, tmp_path)[0], train(settings, tmp_path, trainer=Reversed)[0])


@pytest.mark.slow
def test_groups_without_signal_cost_nothing_and_change_nothing(tmp_path):
    """Their advantages are 0 with and without the likelihoods that are not computed; Adam's momentum goes on."""

    class Counting(DiffusionGRPOTrainer):
        rows = 0

        def _likelihoods(self, model, columns, rows, *more):
            self.rows += len(rows)
            return super()._likelihoods(model, columns, rows, *more)

    def rarely(completion_ids, **columns):
        return [float(ids[0] % 8 == 0) for ids in completion_ids]

    settings = {"max_steps": 6, "num_iterations": 2}
    runs = []
    for dropped in (True, False):
        trainer = make_trainer({**settings, "drop_zero_variance": dropped}, tmp_path, rewards=rarely, trainer=Counting)
        trainer.train()
        share = [log["frac_reward_zero_std"] for log in trainer.state.log_history if "frac_reward_zero_std" in log]
        runs.append((weights(trainer), trainer.rows, sum(share) / len(share)))
    (dropping, fewer, share), (keeping, rows, _) = runs
    assert 0 < share < 1
    assert rows == 6 * 8
    assert fewer == rows * (1 - share)
    assert_same(dropping, keeping, atol=1e-6)


# --- processes and resumed runs --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["d2", "d1", "stabledrl", "forkgrpo", "rldf"])
def test_two_processes_are_one(name, tmp_path):
    """Over gloo, with prompts of several lengths, groups without signal and groups cut in two by the ranks."""
    settings = {
        **PAIRS[name],
        "max_steps": 4,
        "num_iterations": 2,
        "gradient_accumulation_steps": 3,
        "num_generations": 12,
    }
    if name == "d1":
        settings |= {"beta": 0.1}
    lora = name == "d1"
    one = finish(
        launch(1, {**settings, "per_device_train_batch_size": 4}, tmp_path / "one", lora=lora), tmp_path / "one"
    )
    two = finish(
        launch(2, {**settings, "per_device_train_batch_size": 2}, tmp_path / "two", lora=lora), tmp_path / "two"
    )
    assert_same(one["weights"], two["weights"])
    assert one["log"][0]["ratio/spread"] == two["log"][0]["ratio/spread"] == 0.0  # before the policy has moved
    for before, after in zip(one["log"], two["log"], strict=True):
        for name in ("reward", "rollout/unique", "rollout/nfe_per_token", "ratio/spread", "ratio/drift"):
            assert after.get(name) == pytest.approx(before.get(name), abs=1e-5), name


def test_the_log_has_the_count_without_signal_as_it_stands(tmp_path):
    settings = {"max_steps": 4, "logging_steps": 4, "gradient_accumulation_steps": 1}
    _, log = train(settings, tmp_path, rewards=lambda completion_ids, **columns: [0.0] * len(completion_ids))
    assert log[0]["rollout/without_signal"] == 4


@pytest.mark.slow
def test_the_count_without_signal_goes_on_in_a_resumed_run(tmp_path):
    settings = {"max_steps": 3, "gradient_accumulation_steps": 1, "save_strategy": "steps", "save_steps": 2}
    more = {"rewards": lambda completion_ids, **columns: [0.0] * len(completion_ids)}
    train(settings, tmp_path, **more)
    _, log = train(settings, tmp_path, resume=str(tmp_path / "checkpoint-2"), **more)
    assert [entry["rollout/without_signal"] for entry in log[:-1]] == [1, 2, 3]


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    """From a checkpoint in the second epoch, amid a generation's steps and its inner iterations."""
    settings = {"num_iterations": 2, "gradient_accumulation_steps": 1, "steps_per_generation": 2, "num_generations": 4,
                "per_device_train_batch_size": 4, "max_steps": 11, "save_strategy": "steps", "save_steps": 3}  # fmt: skip
    whole, log = train(settings, tmp_path, prompts=PROMPTS[:4])
    assert log[-1]["epoch"] > 1
    resumed, again = train(settings, tmp_path, resume=str(tmp_path / "checkpoint-9"), prompts=PROMPTS[:4])
    assert_same(whole, resumed, atol=0)
    assert [entry.get("reward") for entry in again] == [entry.get("reward") for entry in log]


@pytest.mark.slow
def test_a_run_that_begins_from_another_s_checkpoint_draws_rollouts_of_its_own(tmp_path):
    """Amid a generation of the other: its rewards and likelihoods are of its settings."""
    settings = {
        "num_iterations": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    train(settings, tmp_path / "other")
    more = {"max_steps": 3, "beta": 0.1, "estimator": "elbo", "policy_loss": "sequence"}
    _, log = train({**settings, **more}, tmp_path / "own", resume=str(tmp_path / "other" / "checkpoint-1"))
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_resumes_to_the_same_weights(processes, tmp_path):
    settings = {"num_iterations": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 4, "max_steps": 12,
                "per_device_train_batch_size": 4, "beta": 0.1}  # fmt: skip
    saving = {**settings, "save_strategy": "steps", "save_steps": 1}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = finish(launch(processes, settings, whole, lora=True), whole)
    ranks = launch(processes, saving, killed, lora=True)
    while not (killed / "checkpoint-5" / "trainer_state.json").is_file():
        assert all(rank.is_alive() for rank in ranks)
        time.sleep(0.02)
    for rank in ranks:
        rank.kill()
        rank.join()
    assert not (killed / "final.pt").exists()
    last = max(
        (path.parent for path in killed.glob("checkpoint-*/trainer_state.json")),
        key=lambda path: int(path.name.split("-")[1]),
    )
    found = finish(launch(processes, saving, killed, lora=True, resume=str(last)), killed)
    assert_same(expected["weights"], found["weights"], atol=1e-6)


# --- what TRL has ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rewards_tables_evaluation_and_conversations(tmp_path):
    """Synchronous, asynchronous and missing rewards, extra columns, evaluation, the completions table, chat templates."""
    import pandas

    async def patient(completions, **columns):
        return [float("1" in message[0]["content"]) for message in completions]

    def sometimes(completion_ids, log_extra, log_metric, number, **columns):
        log_extra("first", [ids[0] for ids in completion_ids])
        log_extra(
            "said", ["SyntaxError: \ud800" if i else 5 for i in range(len(number))]
        )  # of two types, and no character
        log_metric("numbers", sum(number) / len(number))
        return [None if ids[0] % 2 else 1.0 for ids in completion_ids]

    denoiser = random_denoiser(sharpness=2.0)
    denoiser.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    said = [[{"role": "user", "content": text}] for text in PROMPTS]
    rows = Dataset.from_list([{"prompt": prompt, "number": i} for i, prompt in enumerate(said)])
    args = DiffusionGRPOConfig(
        output_dir=str(tmp_path),
        **{
            **SETTINGS,
            "max_steps": 2,
            "log_completions": True,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "per_device_eval_batch_size": 8,
            "num_generations_eval": 2,
            "reward_weights": [1.0, 0.5, 0.25],
        },
    )
    trainer = DiffusionGRPOTrainer(
        denoiser, [even_tokens, patient, sometimes], args, train_dataset=rows, eval_dataset=rows.select(range(8))
    )
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert all(f"rewards/{name}/mean" in log[0] for name in ("even_tokens", "patient", "sometimes"))
    evaluated = [entry for entry in trainer.state.log_history if "eval_reward" in entry]
    assert len(evaluated) == 2
    assert evaluated[0]["eval_rollout/nfe_per_token"] >= 0.5
    table = pandas.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    assert {"nfe", "steps", "finished", "confidence", "entropy", "first", "even_tokens", "advantage"} <= set(
        table.columns
    )
    assert set(table["said"]) == {"5", "SyntaxError: \\ud800"}
    number = {prompt[0]["content"]: i for i, prompt in enumerate(said)}
    assert [number[prompt[0]["content"]] for prompt in table["prompt"]] == list(table["number"])
    assert (table["nfe"] <= 4).all()
    assert table["confidence"].between(0, 1).all()
    assert trainer.evaluate()["eval_reward"] == trainer.evaluate()["eval_reward"]  # the same noise each time


def test_refills_leave_the_log_to_first_draws_and_the_table_to_what_is_trained_on(tmp_path):
    def only_long_prompts(prompts, completion_ids, **columns):
        return [
            even_tokens([ids])[0] if len(text) > 2 else 0.0 for text, ids in zip(prompts, completion_ids, strict=True)
        ]

    class Watching(DiffusionGRPOTrainer):
        drawn, unique, trained = [], [], []

        def _roll_out(self, inputs, key, *more):
            columns = super()._roll_out(inputs, key, *more)
            if key[0] == TRAIN:
                self.drawn.append(self._rewards_NF.mean().item())
                self.unique.append(self._metrics["train"]["rollout/unique"][-1])
            return columns

        def _generate_and_score_completions(self, inputs):
            columns = super()._generate_and_score_completions(inputs)
            ends = columns["tool_mask"].sum(1).tolist()
            ids = [row[:end] for row, end in zip(columns["completion_ids"].tolist(), ends, strict=True)]
            assert list(self._logs["completion"]) == self.processing_class.batch_decode(ids, skip_special_tokens=True)
            assert list(self._logs["rewards"]["only_long_prompts"]) == pytest.approx(even_tokens(ids))
            assert len(self._given) == len(ids)
            self.trained.append(columns["signal"].all().item())
            return columns

    settings = {"refill_groups": 8, "per_device_train_batch_size": 16, "max_steps": 2, "log_completions": True}
    _, log = train(settings, tmp_path, prompts=["1=", "2=", "3="] * 2 + PROMPTS[1:3], rewards=only_long_prompts,
                   trainer=Watching)  # fmt: skip
    assert Watching.trained == [True, True]
    assert [entry["reward"] for entry in log[:-1]] == pytest.approx(Watching.drawn)
    assert [entry["rollout/unique"] for entry in log[:-1]] == pytest.approx(Watching.unique)


@pytest.mark.slow
def test_groups_are_refilled_with_fresh_prompts(tmp_path):
    """Dynamic sampling: groups whose prompt pays nothing are replaced by groups whose prompt may."""

    def only_long_prompts(prompts, completion_ids, **columns):
        return [
            even_tokens([ids])[0] if len(text) > 2 else 0.0 for text, ids in zip(prompts, completion_ids, strict=True)
        ]

    short = ["1=", "2=", "3="] * 2 + PROMPTS[1:3]
    seen = []

    class Watching(DiffusionGRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            columns = super()._generate_and_score_completions(inputs)
            seen.append(columns)
            return columns

    for rounds in (0, 8):
        seen.clear()
        train(
            {"refill_groups": rounds, "per_device_train_batch_size": 16},
            tmp_path,
            prompts=short,
            rewards=only_long_prompts,
            trainer=Watching,
        )
        signal = torch.cat([columns["signal"] for columns in seen]).float().mean().item()
        assert (signal == 1.0) if rounds else (signal < 0.8)
        for columns in seen:
            assert columns["num_items_in_batch"] == columns["tool_mask"].sum()
            long = columns["prompt_mask"].sum(1) > 2
            assert torch.equal(columns["signal"], long)
            assert (columns["advantages"][~long] == 0).all()


@pytest.mark.slow
def test_likelihoods_are_of_the_whole_canvas_as_it_was_rolled_out(tmp_path):
    """With a segment for each step, the sum of a row's likelihoods is what the trace's snapshot confidences say."""

    class Watching(DiffusionGRPOTrainer):
        def _old_likelihoods(self, inputs, logp_BG, iteration):
            for i in range(len(logp_BG)):
                trace = next(
                    t for t in self._rollouts if torch.tensor(t.canvas_ids).equal(inputs["completion_ids"][i])
                )
                said = torch.tensor(trace.confidence).log()[: trace.length]
                assert not logp_BG[i, trace.length :].any()
                torch.testing.assert_close(logp_BG[i, : trace.length].detach(), said, rtol=0, atol=1e-4)
            return super()._old_likelihoods(inputs, logp_BG, iteration)

    train({"max_steps": 2}, tmp_path, trainer=Watching)


def test_dropout_that_would_be_switched_off_is_refused(tmp_path):
    args = DiffusionGRPOConfig(output_dir=str(tmp_path), **SETTINGS)
    with pytest.raises(ValueError, match=r"lora_dropout=0.05 would be switched off by disable_dropout=True"):
        DiffusionGRPOTrainer(
            random_denoiser(),
            even_tokens,
            args,
            peft_config=LoraConfig(lora_dropout=0.05),
            train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        )
    with pytest.raises(ValueError, match="tools: a canvas holds a single turn"):
        make_trainer({}, tmp_path, tools=[print])
