"""Health: what counts as ill in a log, what is done then, and a real run into which a NaN is put."""

import json
import math
import re

import pytest
import torch
from lockstitch.rl.health import HealthCallback
from lockstitch.rl.health_rules import RULES, WITHOUT_SIGNAL, HealthConfig, Watch
from transformers import TrainerControl, TrainerState, TrainingArguments

WELL = {
    "loss": 0.1,
    "grad_norm": 1.0,
    "ratio/spread": 0.3,
    "ratio/drift": -0.01,
    "ratio/effective_sample_size": 0.9,
    "rollout/unique": 0.8,
    "rollout/eos_rate": 0.9,
    "rollout/repetition": 0.1,
    "rollout/usable_groups": 0.7,
    "rollout/equal_groups": 0.1,
    "rollout/without_signal": 0,
}


def verdicts(config, changes):
    watch = Watch(config)
    return [watch.read({**WELL, **change}) for change in changes]


def test_a_well_run_is_left_alone():
    assert verdicts(HealthConfig(health_patience=1), [{}] * 5) == [(True, None)] * 5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ratio/spread": 2.5}, r"ratio/spread \(spread of the log-ratios\) is 2.5, above 2 for 3 logs in a row"),
        ({"ratio/drift": -1.5}, r"ratio/drift .* is -1.5, above 1 for 3 logs"),
        ({"ratio/effective_sample_size": 0.01}, r"effective_sample_size .* is 0.01, below 0.05 for 3"),
        ({"rollout/unique": 0.05}, r"rollout/unique .* is 0.05, below 0.1 for 3"),
        ({"rollout/repetition": 0.95}, r"rollout/repetition .* is 0.95, above 0.8 for 3"),
        ({"rollout/usable_groups": 0.0}, r"1 - rollout/usable_groups .* is 1, above 0.99 for 3"),
        ({"rollout/repetition": math.inf}, r"rollout/repetition .* is inf"),
    ],
)
def test_a_limit_is_a_collapse_once_it_is_passed_often_enough(change, says):
    config = HealthConfig(health_patience=3, health_unique=0.1)
    found = verdicts(config, [{}, change, change, {}, change, change, change])
    assert found[:6] == [(True, None), (False, None), (False, None), (True, None), (False, None), (False, None)]
    well, wrong = found[6]
    assert not well
    assert re.search(says, wrong)
    name = next(rule.option for rule in RULES if rule.metric in change)
    off = HealthConfig(health_patience=1, **{name: None})
    assert verdicts(off, [change] * 4) == [(True, None)] * 4


def test_equal_completions_are_ill_only_where_nothing_teaches():
    config = HealthConfig(health_patience=3, health_zero_variance=None)
    equal = {"rollout/equal_groups": 1.0}
    assert verdicts(config, [equal] * 4) == [(True, None)] * 4  # a lesson teaches, or a right completion
    found = verdicts(config, [{**equal, "rollout/usable_groups": 0.0}] * 3)
    assert re.search(r"rollout/equal_groups .* is 1, above 0.99 for 3", found[-1][1])


def test_too_long_without_signal_is_a_collapse_at_once():
    found = verdicts(HealthConfig(health_patience=3), [{"rollout/without_signal": n} for n in (19, 20, 21)])
    assert found[:2] == [(True, None)] * 2
    assert found[2][1] == (
        "rollout/without_signal (generations in a row without a group that teaches) is 21, above 20"
    )


def test_the_share_that_ends_is_compared_with_its_start():
    config = HealthConfig(health_patience=2)
    assert verdicts(config, [{"rollout/eos_rate": 0.05}] * 4) == [(True, None)] * 4  # it never was more
    fallen = verdicts(config, [{"rollout/eos_rate": 0.9}, *[{"rollout/eos_rate": 0.05}] * 2])
    assert fallen[-1][1] == (
        "rollout/eos_rate (completions that end) is 0.05, below 0.1 times 0.9 for 2 logs in a row"
    )


def test_rewards_that_are_lost_are_compared_with_their_best_mean():
    config = HealthConfig(health_patience=2)
    rewards = [0.1, 0.9, 0.3, 0.24, 0.26, 0.24, 0.24]  # means of two: .5, .6, .27, .25, ...
    found = verdicts(config, [{"reward": value} for value in rewards])
    assert [well for well, _ in found] == [True, True, True, False, False, False, False]
    assert found[4][1] == "reward (mean reward) is 0.26, below 0.5 times 0.6 for 2 logs in a row"
    assert verdicts(config, [{"reward": value} for value in (-0.1, -0.2, -3.0, -3.0)])[-1] == (True, None)
    assert verdicts(HealthConfig(health_reward=None), [{"reward": value} for value in rewards])[-1] == (True, None)


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_a_number_that_is_none_is_an_end_at_once(name):
    assert verdicts(HealthConfig(), [{}, {name: math.nan}])[1] == (False, f"{name} is nan")


def test_metrics_that_a_loss_does_not_log_are_passed_over():
    assert Watch(HealthConfig(health_patience=1)).read({"loss": 0.0, "ratio/spread": None}) == (True, None)


def test_wrong_limits_are_refused():
    with pytest.raises(ValueError, match="health_repetition=-1 must be a number of at least 0, or null"):
        HealthConfig(health_repetition=-1)
    with pytest.raises(ValueError, match="health_patience=0"):
        HealthConfig(health_patience=0)


# --- what is done ----------------------------------------------------------------------------------------------------


ILL = {"rollout/usable_groups": 0.0}


class Weights(torch.nn.Module):
    """One weight that is trained and one that is not."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.trained = torch.nn.Parameter(torch.ones(3))
        self.fixed = torch.nn.Parameter(torch.zeros(2), requires_grad=False)


class Run:
    """The calls that a trainer makes of a callback, step by step."""

    def __init__(self, tmp_path, before=(), **settings):
        self.callback = HealthCallback(HealthConfig(health_patience=2, **settings))
        self.args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
        self.state, self.control, self.model = TrainerState(), TrainerControl(), Weights()
        self.state.log_history = [{**logs, "step": step} for step, logs in enumerate(before, start=1)]
        self.state.global_step = len(before)
        self.optimizer = torch.optim.Adam([self.model.trained], lr=0.5)
        self._call("on_train_begin")

    def _call(self, name, **more):
        self.state.is_world_process_zero = True
        getattr(self.callback, name)(
            self.args, self.state, self.control, model=self.model, optimizer=self.optimizer, **more
        )

    def step(self, gradient, **logs):
        self.model.trained.grad = torch.full((3,), gradient)
        self._call("on_pre_optimizer_step")
        self.optimizer.step()
        self.model.zero_grad()
        self.state.global_step += 1
        self._call("on_log", logs={**WELL, **logs})
        return self.model.trained.detach().clone()


def test_a_run_that_goes_on_is_compared_with_its_log_so_far(tmp_path):
    before = [{**WELL, "rollout/eos_rate": 1.0, "reward": reward} for reward in (0.8, 0.8, 0.8)]
    for logs, says in (({"reward": 0.3}, "below 0.5 times 0.8"), ({"rollout/eos_rate": 0.05}, "below 0.1 times 1 ")):
        run = Run(tmp_path, before)
        run.step(1.0, **logs)
        assert run.callback.reason is None
        run.step(1.0, **logs)
        assert says in run.callback.reason


def test_a_run_that_goes_on_counts_on(tmp_path, caplog):
    run = Run(tmp_path, [WELL, {**WELL, **ILL}])
    run.step(1.0, **ILL)
    assert run.callback.reason.endswith("for 2 logs in a row")
    assert (
        "the weights of step 2, whose log was ill already, are in place; the last good log was at step 1"
        in caplog.text
    )
    (event,) = [json.loads(line) for line in (tmp_path / "health.jsonl").read_text().splitlines()]
    assert (event["step"], event["weights"], event["well"]) == (3, 2, False)


def test_restores_of_a_run_that_goes_on_are_counted_once(tmp_path):
    """Restored in step 3, and by a gradient in step 4; killed, and gone on from a checkpoint of step 3 or of step 4."""
    logs = [WELL, {**WELL, **ILL}, {**WELL, **ILL}, {**WELL, "grad_norm": math.nan}]
    run = Run(tmp_path, logs[:1], health_action="restore")
    for _ in range(2):
        run.step(1.0, **ILL)
    run.step(math.nan)
    for step, so_far in ((3, 1), (4, 2)):
        again = Run(tmp_path, logs[:step], health_action="restore", health_restores=so_far + 1)
        again.step(1.0, **ILL)  # the streak began anew
        assert again.callback.reason is None
        again.step(1.0, **ILL)
        again.step(1.0, **ILL)
        assert again.callback.reason is None
        again.step(1.0, **ILL)
        assert again.callback.reason is not None


def test_stopping_puts_the_last_good_weights_in_place(tmp_path, caplog):
    run = Run(tmp_path)
    run.step(1.0)
    good = run.step(1.0)
    assert not torch.equal(run.step(1.0, **ILL), good)
    assert not run.control.should_training_stop
    assert torch.equal(run.step(1.0, **ILL), good)
    assert run.control.should_training_stop
    assert run.callback.reason.startswith("1 - rollout/usable_groups")
    assert "step 4: 1 - rollout/usable_groups" in caplog.text
    assert "stopped: the weights of step 2 are in place" in caplog.text
    events = [json.loads(line) for line in (tmp_path / "health.jsonl").read_text().splitlines()]
    assert [(event["step"], event["action"], event["weights"]) for event in events] == [(4, "stop", 2)]


def test_restoring_goes_on_with_a_fresh_optimizer_until_it_was_enough(tmp_path):
    run = Run(tmp_path, health_action="restore", health_restores=1)
    good = run.step(1.0)
    run.step(1.0, **ILL)
    assert torch.equal(run.step(1.0, **ILL), good)
    assert not run.control.should_training_stop
    assert not run.optimizer.state
    run.step(1.0, **ILL)
    assert torch.equal(run.step(1.0, **ILL), good)
    assert run.control.should_training_stop


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path):
    run = Run(tmp_path, health_action="restore")
    good = run.step(1.0)
    assert torch.equal(run.step(math.nan), good)
    assert not run.control.should_training_stop
    assert not torch.equal(run.step(1.0), good)
    stopped = Run(tmp_path)
    good = stopped.step(1.0)
    assert torch.equal(stopped.step(math.inf), good)
    assert stopped.callback.reason == "the gradient is not finite"


def test_the_scaler_of_fp16_passes_over_a_step_by_itself(tmp_path):
    run = Run(tmp_path)
    run.args.fp16 = True
    run.step(1.0, grad_norm=math.inf)
    assert run.callback.reason is None
    run.step(1.0, grad_norm=math.inf, loss=math.nan)
    assert run.callback.reason == "loss is nan"


def test_generations_without_signal_are_counted_anew_after_a_restore(tmp_path):
    run = Run(tmp_path, health_action="restore", health_restores=1, health_without_signal=2)
    run.state.stateful_callbacks[WITHOUT_SIGNAL] = 3
    run.step(1.0, **{WITHOUT_SIGNAL: 3})
    assert run.callback.reason is None
    assert WITHOUT_SIGNAL not in run.state.stateful_callbacks


def test_off_watches_nothing(tmp_path):
    run = Run(tmp_path, health_action="off")
    run.step(1.0, **ILL)
    assert not torch.isfinite(run.step(math.nan, **ILL)).any()
    assert not run.control.should_training_stop


def test_weights_too_large_to_keep_are_not_promised(tmp_path, monkeypatch):
    monkeypatch.setattr("lockstitch.rl.health.KEPT_BYTES", 8)
    with pytest.raises(ValueError, match="health_action='restore' keeps the weights"):
        Run(tmp_path, health_action="restore")
    run = Run(tmp_path)
    run.step(1.0)
    assert torch.isfinite(run.step(math.nan)).all()
    assert run.control.should_training_stop


# --- a real run ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("action", ["stop", "restore"])
def test_a_nan_in_a_run_is_stopped_or_survived(action, tmp_path):
    from datasets import Dataset
    from lockstitch.rl.grpo import DiffusionGRPOTrainer
    from lockstitch.rl.grpo_config import DiffusionGRPOConfig
    from models import random_denoiser

    class Poisoned(DiffusionGRPOTrainer):
        def _compute_loss(self, model, inputs):
            loss = super()._compute_loss(model, inputs)
            return loss * (math.nan if self.state.global_step == 2 else 1)

    def digits(prompts, completions, **columns):
        return [sum(letter.isdigit() for letter in text) / max(1, len(text)) for text in completions]

    args = DiffusionGRPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to="none",
        max_steps=5,
        logging_steps=1,
        save_strategy="no",
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=8,
        learning_rate=1e-3,
        loss_type="bnpo",
        seed=0,
    )
    watch = HealthCallback(HealthConfig(health_action=action, health_zero_variance=None))
    prompts = Dataset.from_list([{"prompt": f"{i}+1="} for i in range(8)])
    trainer = Poisoned(random_denoiser(), [digits], args, train_dataset=prompts, callbacks=[watch])
    trainer.train()
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
    assert trainer.state.global_step == (3 if action == "stop" else 5)
    assert (watch.reason is not None) == (action == "stop")
    events = [json.loads(line) for line in (tmp_path / "health.jsonl").read_text().splitlines()]
    assert [(event["step"], event["weights"]) for event in events] == [(2, 2)]
