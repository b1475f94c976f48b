"""A teacher of reinforcement learning: statistics by hand, likelihoods of what was given, runs that it must not change, and
stitching as the teacher."""

import dataclasses
import statistics

import pytest
import torch
from grpo_runs import PROMPTS, even_tokens, finish, launch, make_trainer, train
from lockstitch.recipes.stitch_teacher import StitchTeacher, StitchTeacherArguments, best_of_n, with_ends
from lockstitch.rewards.tasks.named import get_task
from lockstitch.rewards.tasks.task import held_out_problems
from lockstitch.rl.grpo import DiffusionGRPOTrainer
from lockstitch.rl.health import HealthCallback
from lockstitch.rl.health_rules import HealthConfig
from lockstitch.rl.teaching import (
    Group,
    Lesson,
    Teaching,
    check_lessons,
    group_advantages,
    joined,
    target_columns,
    target_loss,
    worst_members,
)
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loop import sample
from lockstitch.sampling.trajectory import Ledger, Trajectory

from lockstitch import embedded_model

pytestmark = pytest.mark.filterwarnings("ignore")


def silent(denoiser, config, groups):
    """Teaches nothing."""
    return [Lesson(cost=Ledger(scorer_passes=2)) for _ in groups]


def echo(denoiser, config, groups):
    """The worst member once more, the first of equals."""
    return [Lesson(g.trajectories[min(range(len(g.rewards)), key=g.rewards.__getitem__)]) for g in groups]


def half(denoiser, config, groups):
    """The first half of the first member's tokens, the rest drawn anew."""
    width = config.canvas_length
    canvases = [[*g.trajectories[0].canvas_ids[: width // 2], *[None] * (width - width // 2)] for g in groups]
    prompts, seeds = [g.trajectories[0].prompt_ids for g in groups], [g.seed for g in groups]
    drawn = sample(denoiser, prompts, config, seed=seeds, canvases=canvases)
    return [Lesson(t) for t in drawn]


def assert_same(one, other, atol=1e-6):
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=atol)


class Seen(DiffusionGRPOTrainer):
    """Keeps the batches that the loss saw, and what the estimator said of them."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.batches, self.lessons = [], []

    def _teach(self, columns, inputs, key, rows):
        self.before = {name: values.clone() for name, values in columns.items()}
        return super()._teach(columns, inputs, key, rows)

    def _new_likelihoods(self, model, columns, iteration):
        scored_BGC = super()._new_likelihoods(model, columns, iteration)
        logp_BG = scored_BGC[..., 0]
        if logp_BG.requires_grad:
            logp_BG.retain_grad()
        self.batches.append((columns, logp_BG))
        return logp_BG[..., None]


def taught(teacher, role, tmp_path, weight=1.0, **settings):
    trainer = make_trainer(
        {"max_steps": 1, **settings}, tmp_path, trainer=Seen, teaching=Teaching(teacher, role, weight)
    )
    trainer.train()
    return trainer


# --- arithmetic ------------------------------------------------------------------------------------------------------


def test_statistics_of_a_group_with_a_joined_member_are_those_of_all_its_members():
    rewards_PW = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.5], [0.0, 0.0, 0.0, 0.0, torch.nan]])
    own = [0.0, 0.0, 1.0, 1.0, 0.5]
    mean, std = statistics.mean(own), statistics.stdev(own)
    plain, scaled = group_advantages(rewards_PW, "none"), group_advantages(rewards_PW, "group")
    torch.testing.assert_close(plain[0], torch.tensor([r - mean for r in own]))
    torch.testing.assert_close(scaled[0], torch.tensor([(r - mean) / (std + 1e-4) for r in own]))
    assert plain[1].tolist() == scaled[1].tolist() == [0.0] * 5
    assert worst_members(torch.tensor([[1.0, 0.0, 0.0], [1.0, torch.nan, 0.0]])).tolist() == [1, 1]


def test_rows_join_behind_their_own_group_and_targets_stand_beside_its_first_row():
    columns = {"advantages": torch.arange(6.0), "ids": torch.arange(12).view(6, 2), "count": torch.tensor(6)}
    more = {"advantages": torch.tensor([10.0, 20.0]), "ids": torch.tensor([[100, 101], [200, 201]])}
    found = joined(columns, more, 3)
    assert found["advantages"].tolist() == [0, 1, 2, 10, 3, 4, 5, 20]
    assert found["ids"][[3, 7]].tolist() == [[100, 101], [200, 201]]
    assert found["count"] == 6
    lessons = {"completion_ids": more["ids"], "target_mask": torch.ones(2, 2)}
    beside = target_columns(columns, lessons, torch.tensor([0.5, 0.0]), 3)
    assert beside["target_weight"].tolist() == [0.5, 0, 0, 0, 0, 0]
    assert beside["target_ids"].tolist() == [[100, 101], [0, 0], [0, 0], [200, 201], [0, 0], [0, 0]]


def test_the_supervised_term_is_its_formula_and_parts_add_up():
    logp_BG, weight_B = -torch.rand(3, 4), torch.tensor([0.5, 0.0, 2.0])
    mask_BG = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]])
    plain = -(0.5 * logp_BG[0, :2].mean() + 2.0 * logp_BG[2, :3].mean()) / 5
    whole = target_loss(logp_BG, mask_BG, weight_B, 5)
    torch.testing.assert_close(whole, plain)
    parts = [target_loss(logp_BG[i : i + 1], mask_BG[i : i + 1], weight_B[i : i + 1], 5) for i in range(3)]
    torch.testing.assert_close(sum(parts), whole)


def test_roles_and_lessons_that_are_none_are_refused():
    with pytest.raises(ValueError, match="role='joins' is not one of join, replace, target, only"):
        Teaching(silent, "joins")
    with pytest.raises(ValueError, match=r"weight=2.0 would be ignored: role='join'"):
        Teaching(silent, "join", 2.0)
    with pytest.raises(ValueError, match="weight=0 must be positive"):
        Teaching(silent, "target", 0)
    t = Trajectory(0, 0, (1,), (1, 1), 2, "", True, (1, 1), (1.0, 1.0), (0.0, 0.0), (0, 0), (), Ledger())
    groups = [Group({}, [t], [0.0], 0)]
    with pytest.raises(ValueError, match="0 lessons for 1 groups"):
        check_lessons([], groups)
    with pytest.raises(ValueError, match=r"a lesson is of the prompt \[2\], its group of \[1\]"):
        check_lessons([Lesson(dataclasses.replace(t, prompt_ids=(2,)))], groups)
    with pytest.raises(ValueError, match="a lesson has 1 positions, its group 2"):
        check_lessons([Lesson(dataclasses.replace(t, canvas_ids=(1,)))], groups)


# --- in the trainer --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{}, {"estimator": "mean_field", "policy_loss": "weighted"}], ids=["token", "wd1"]
)
def test_a_stitched_row_that_equals_the_one_it_replaces_changes_no_gradient(settings, tmp_path):
    plain, log = train(settings, tmp_path)
    same, again = train(settings, tmp_path, teaching=Teaching(echo, "replace"))
    assert_same(plain, same)
    assert [entry.get("grad_norm") for entry in log] == pytest.approx([entry.get("grad_norm") for entry in again])


def test_a_joined_row_that_equals_a_member_has_its_gradient_and_counts_in_the_statistics(tmp_path):
    trainer = taught(echo, "join", tmp_path)
    (columns, logp_BG), K = trainer.batches[0], 4
    assert len(logp_BG) == 8 // K * (K + 1)
    rows = columns["completion_ids"].tolist()
    ends = columns["tool_mask"].sum(1).tolist()
    rewards = even_tokens([ids[:end] for ids, end in zip(rows, ends, strict=True)])
    by_seed = {}
    for i, seed in enumerate(columns["noise_seed"].tolist()):
        by_seed.setdefault(seed, []).append(i)
    twins = [pair for pair in by_seed.values() if len(pair) == 2]
    assert len(twins) == 2
    for one, other in twins:
        assert rows[one] == rows[other]
        torch.testing.assert_close(logp_BG.grad[one], logp_BG.grad[other])
        assert logp_BG.grad[one].abs().max() > 0
    for prompt in {tuple(ids) for ids in columns["prompt_ids"].tolist()}:
        members = [i for i, ids in enumerate(columns["prompt_ids"].tolist()) if tuple(ids) == prompt]
        mean = statistics.mean(rewards[i] for i in members)
        for i in members:
            assert columns["advantages"][i].item() == pytest.approx(rewards[i] - mean, abs=1e-6)


def test_what_was_given_has_no_likelihood_and_no_gradient_and_the_rest_is_the_policy_s_own(tmp_path):
    """A half-pinned lesson: the open tokens' likelihood is the product of the snapshot confidences of its own draw."""
    made = []

    def keeps(denoiser, config, groups):
        made.extend(half(denoiser, config, groups))
        return made

    trainer = taught(keeps, "join", tmp_path)
    columns, logp_BG = trainer.batches[0]
    given_B = (columns["commit_step"] == 0).any(1)
    assert int(given_B.sum()) == len(made) == 2
    for i in given_B.nonzero()[:, 0].tolist():
        lesson = next(
            x.trajectory for x in made if list(x.trajectory.canvas_ids) == columns["completion_ids"][i].tolist()
        )
        assert columns["commit_step"][i, :4].tolist() == [0] * 4
        assert columns["tool_mask"][i, :4].tolist() == [0] * 4
        assert logp_BG[i, :4].tolist() == logp_BG.grad[i, :4].tolist() == [0.0] * 4
        drawn = [
            math_log for g, math_log in enumerate(lesson.confidence[: lesson.length]) if lesson.commit_step[g] > 0
        ]
        torch.testing.assert_close(logp_BG[i].detach().exp()[4 : lesson.length], torch.tensor(drawn))


@pytest.mark.slow
def test_a_teacher_without_lessons_changes_nothing_but_its_bill(tmp_path):
    """Under `bnpo`, which divides by tokens: the row that a group has all the same counts in nothing."""
    settings = {"loss_type": "bnpo", "max_steps": 1}
    plain, _ = train(settings, tmp_path)
    for role in ("join", "target"):
        same, log = train(settings, tmp_path, teaching=Teaching(silent, role))
        assert_same(plain, same)
        assert log[0]["teacher/lessons"] == 0.0
        assert log[0]["teacher/scorer_passes"] == 2.0


def test_a_target_weighs_what_it_is_above_its_group(tmp_path):
    trainer = taught(half, "target", tmp_path, weight=3.0)
    columns, _ = trainer.batches[0]
    before, log = trainer.before, trainer.state.log_history[0]
    found = sorted(w for w in columns["target_weight"].tolist() if w)
    rewards_PK = trainer._rewards_NF.view(-1, 4)
    assert log["teacher/lessons"] == 1.0
    assert len(found) >= 1
    lessons = columns["target_ids"][columns["target_weight"] > 0].tolist()
    masks = columns["target_mask"][columns["target_weight"] > 0].sum(1).tolist()
    rewards = even_tokens([ids[:end] for ids, end in zip(lessons, masks, strict=True)])
    expected = sorted(
        3.0 * (reward - rewards_PK[p].mean().item())
        for reward, prompt in zip(rewards, columns["prompt_ids"][columns["target_weight"] > 0].tolist(), strict=True)
        for p in range(2)
        if before["prompt_ids"][4 * p].tolist() == prompt
    )
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_only_the_target_moves_where_there_is_no_policy_loss(tmp_path):
    """With nothing above its group there is nothing to learn; with something, weights move."""
    still, _ = train({}, tmp_path, teaching=Teaching(echo, "only"))
    start = make_trainer({}, tmp_path)
    assert_same(dict(start.model.named_parameters()), still, atol=0)
    moved, log = train({}, tmp_path, teaching=Teaching(best_of_n, "only"))
    assert max((moved[name] - value).abs().max().item() for name, value in still.items()) > 1e-4
    assert log[0]["teacher/loss"] > 0
    assert log[0]["teacher/nfe"] == 0.0


def constant(completion_ids, **columns):
    return [0.5] * len(completion_ids)


@pytest.mark.slow
@pytest.mark.parametrize("role", ["target", "only"])
def test_a_target_teaches_where_rewards_agree_and_health_knows(role, tmp_path):
    """The lesson is paid 1, every rollout a half."""

    class Paid(Seen):
        def _rewards_of(self, trajectories, inputs):
            return torch.ones_like(super()._rewards_of(trajectories, inputs))

    for teacher, usable in ((echo, 1.0), (silent, 0.0)):
        watch = HealthCallback(HealthConfig(health_patience=2))
        more = {"trainer": Paid, "rewards": constant, "callbacks": [watch], "teaching": Teaching(teacher, role)}
        trainer = make_trainer({"drop_zero_variance": role == "target"}, tmp_path, **more)
        trainer.train()
        logs = [log for log in trainer.state.log_history if "loss" in log]
        assert [log["rollout/usable_groups"] for log in logs] == [usable] * len(logs)
        assert [log["frac_reward_zero_std"] for log in logs] == [1.0] * len(logs)
        assert (watch.reason is None) == bool(usable)
        assert not any(columns["active"].any() for columns, _ in trainer.batches)  # no policy loss


def test_the_loss_of_targets_alone_is_theirs(tmp_path):
    _, log = train({"policy_loss": "regression"}, tmp_path, teaching=Teaching(best_of_n, "only"))
    for entry in log[:-1]:
        assert entry["loss"] == pytest.approx(entry["teacher/loss"], abs=1e-6)


def test_refilling_keeps_groups_that_a_target_teaches(tmp_path):
    class Paid(Seen):
        def _rewards_of(self, trajectories, inputs):
            return torch.ones_like(super()._rewards_of(trajectories, inputs))

        def _refill(self, *args):
            columns, changed = super()._refill(*args)
            assert not changed
            return columns, changed

    more = {"trainer": Paid, "rewards": constant, "teaching": Teaching(echo, "target")}
    make_trainer({"refill_groups": 1, "max_steps": 1}, tmp_path, **more).train()


def test_a_target_that_does_not_end_is_none_where_rollouts_do():
    def t(token, finished):
        return Trajectory(
            0, 0, (1,), (token, 1), 2, "", finished, (1, 1), (1.0, 1.0), (0.0, 0.0), (0, 0), (), Ledger(3)
        )

    ended, endless = t(4, True), t(5, False)
    groups = [Group({}, [endless, ended], [1.0, 1.0], 0), Group({}, [endless, ended], [1.0, 0.0], 1)]
    found = best_of_n(None, None, groups)
    assert found[0].trajectory.canvas_ids == ended.canvas_ids  # of equals
    assert found[1] == Lesson()
    (alone,) = best_of_n(None, None, [Group({}, [endless, endless], [0.0, 1.0], 0)])
    assert alone.trajectory.canvas_ids == endless.canvas_ids  # where nothing ends, ends are not asked for
    assert with_ends([Lesson(endless, Ledger(1))], groups) == [Lesson(None, Ledger(4))]


@pytest.mark.slow
def test_accumulated_micro_batches_of_a_taught_run_are_one_batch(tmp_path):
    for role in ("join", "target"):
        whole, _ = train({}, tmp_path, teaching=Teaching(half, role))
        pieces, _ = train(
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
            tmp_path,
            teaching=Teaching(half, role),
        )
        assert_same(whole, pieces, atol=1e-5)


@pytest.mark.slow
def test_a_taught_run_resumes_to_the_same_weights(tmp_path):
    settings = {
        "num_iterations": 2,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": 2,
        "num_generations": 4,
        "per_device_train_batch_size": 4,
        "max_steps": 7,
        "save_strategy": "steps",
        "save_steps": 3,
    }
    for role in ("join", "target"):
        more = {"prompts": PROMPTS[:4], "teaching": Teaching(half, role)}
        whole, _ = train(settings, tmp_path / role, **more)
        resumed, _ = train(settings, tmp_path / role, resume=str(tmp_path / role / "checkpoint-3"), **more)
        assert_same(whole, resumed, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("role", ["join", "target"])
def test_a_taught_run_of_two_processes_is_that_of_one(role, tmp_path):
    settings = {"max_steps": 2, "gradient_accumulation_steps": 2}
    more = {"teaching": Teaching(half, role)}
    one = finish(launch(1, {**settings, "per_device_train_batch_size": 8}, tmp_path / "one", **more), tmp_path / "one")
    two = finish(launch(2, {**settings, "per_device_train_batch_size": 4}, tmp_path / "two", **more), tmp_path / "two")
    assert_same(one["weights"], two["weights"], atol=1e-5)
    for before, after in zip(one["log"][:2], two["log"][:2], strict=True):
        for name in ("teacher/lessons", "teacher/reward", "teacher/gain", "teacher/nfe"):
            assert after[name] == pytest.approx(before[name], abs=1e-6), name


def test_lessons_and_fresh_groups_go_together(tmp_path):
    """Groups of equal rewards are replaced whole, the joined member with them."""

    def rare(completion_ids, **columns):
        return [float(sum(ids) % 5 == 0) for ids in completion_ids]

    trainer = make_trainer(
        {"refill_groups": 2, "max_steps": 2}, tmp_path, trainer=Seen, rewards=rare, teaching=Teaching(half, "join")
    )
    trainer.train()
    for columns, _ in trainer.batches:
        assert len(columns["advantages"]) == 10
        assert columns["advantages"].sum().abs() < 1e-5


@pytest.mark.parametrize(
    ("settings", "role", "says"),
    [
        ({"scale_rewards": "batch"}, "join", "a teacher needs advantages that depend on their own group"),
        ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}, "join", "needs whole groups"),
        ({"beta": 0.1, "use_bias_correction_kl": False}, "only", "beta=0.1 would be ignored"),
    ],
)
def test_settings_that_a_teacher_does_not_go_with_are_refused(settings, role, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        make_trainer(settings, tmp_path, teaching=Teaching(half, role))


# --- stitching as the teacher ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sudoku():
    """The early model, its task, and a group of two: each has half of the rows right, and the third row neither."""
    task = get_task("sudoku")
    denoiser = Denoiser.from_pretrained(str(embedded_model("sudoku-early")))
    problem = held_out_problems(task, 1, seed=3)[0]
    right = problem.solution.splitlines()
    wrong = "1111"
    texts = ["\n".join([*right[:2], wrong, wrong]), "\n".join([wrong, *right[1:2], wrong, right[3]])]
    config = SamplerConfig(canvas_length=20, steps=5, temperature=1.0)
    prompt = denoiser.encode_prompts([task.prompt(problem.question)])[0]
    made = []
    for k, text in enumerate(texts):
        ids = denoiser.encode([text])[0]
        canvas = (*ids, *[denoiser.tokenizer.eos_token_id] * (20 - len(ids)))
        length = len(ids) + 1
        made.append(
            Trajectory(
                0,
                k,
                tuple(prompt),
                canvas,
                length,
                text,
                True,
                (1,) * 20,
                (0.5,) * 20,
                (0.5,) * 20,
                (0,) * 20,
                (),
                Ledger(nfe=5),
            )
        )
    row = {"question": problem.question, "prompt": task.prompt(problem.question)}
    return denoiser, task, config, Group(row, made, [0.0, 0.0], 7), right


def given_rows(trajectory, denoiser):
    """The text at the positions that were given."""
    ids = [token for token, since in zip(trajectory.canvas_ids, trajectory.commit_step, strict=True) if since == 0]
    return denoiser.tokenizer.decode(ids)


def test_rows_that_are_right_in_either_rollout_are_all_given_to_a_target(sudoku):
    denoiser, task, config, group, right = sudoku
    (lesson,) = StitchTeacher(task, "calculator", 0.9, None)(denoiser, config, [group])
    assert given_rows(lesson.trajectory, denoiser).split() == [right[i] for i in (0, 1, 3)]
    assert lesson.trajectory.ledger.nfe < 5
    assert lesson.cost.scorer_passes == 0


def test_of_a_member_most_of_the_group_s_own_rows_are_given_first_and_no_more_than_the_share(sudoku):
    denoiser, task, config, group, right = sudoku
    (quarter,) = StitchTeacher(task, "calculator", 0.9, 0.25)(denoiser, config, [group])
    assert right[1:2] == given_rows(quarter.trajectory, denoiser).split()  # the row that both wrote
    (half_of_it,) = StitchTeacher(task, "calculator", 0.9, 0.5)(denoiser, config, [group])
    assert right[:2] == given_rows(half_of_it.trajectory, denoiser).split()
    again = StitchTeacher(task, "calculator", 0.9, 0.5)(denoiser, config, [group])
    assert dataclasses.replace(again[0].trajectory, ledger=Ledger()) == dataclasses.replace(
        half_of_it.trajectory, ledger=Ledger()
    )


def test_a_group_that_is_right_throughout_has_no_lesson_and_one_that_agrees_neither(sudoku):
    denoiser, task, config, group, right = sudoku
    solved = [dataclasses.replace(t, text="\n".join(right)) for t in group.trajectories]
    same = dataclasses.replace(group, trajectories=solved, rewards=[1.0, 1.0])
    for scorer in ("calculator", "consensus"):
        (lesson,) = StitchTeacher(task, scorer, 0.9, 0.5)(denoiser, config, [same])
        assert lesson.trajectory is None
    (agreed,) = StitchTeacher(task, "consensus", 0.9, None)(denoiser, config, [group])
    assert given_rows(agreed.trajectory, denoiser).split() == [right[1], "1111"]  # both wrote these, right or wrong


def test_the_best_of_a_group_has_its_highest_reward(sudoku):
    denoiser, _, config, group, _ = sudoku
    rewarded = dataclasses.replace(group, rewards=[float("nan"), 0.25])
    nothing = dataclasses.replace(group, rewards=[float("nan")] * 2)
    best, none = best_of_n(denoiser, config, [rewarded, nothing])
    assert best.trajectory.seed == group.trajectories[1].seed
    assert best.trajectory.ledger.nfe == 0
    assert none.trajectory is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stitch_share": 0.5}, "stitch_share=0.5 would be ignored: stitch_teacher=None"),
        ({"stitch_teacher": "joins"}, "stitch_teacher='joins' is not one of join, replace, target, only"),
        ({"stitch_teacher": "target", "stitch_method": "worst"}, "stitch_method='worst' is not one of stitched, best"),
        ({"stitch_teacher": "join", "stitch_method": "best_of_n"}, "under 'join' it is in its group already"),
        (
            {"stitch_teacher": "target", "stitch_share": 0.5},
            "stitch_share=0.5 would be ignored: .*pins all that stands",
        ),
        ({"stitch_teacher": "join", "stitch_weight": 2.0}, "stitch_weight=2.0 would be ignored: .*no supervised term"),
        (
            {"stitch_teacher": "only", "stitch_method": "best_of_n", "stitch_scorer": "confidence"},
            "stitch_scorer='confidence' would be ignored",
        ),
        ({"stitch_teacher": "join", "stitch_share": 1.0}, "stitch_share=1.0 must lie between"),
        ({"stitch_teacher": "join", "stitch_delta": 1.5}, "stitch_delta=1.5 must lie between 0 and 1"),
        ({"stitch_teacher": "target", "stitch_weight": 0.0}, "stitch_weight=0.0 must be positive"),
    ],
)
def test_options_that_would_be_ignored_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        StitchTeacherArguments(**options).check_teacher("sudoku")


def test_a_stitched_teacher_needs_a_task():
    with pytest.raises(ValueError, match="stitch_teacher='join' needs a task"):
        StitchTeacherArguments(stitch_teacher="join").check_teacher(None)
