"""Scoring steps by how likely they are: under the diffusion model that wrote them, or under an autoregressive one.

`bound`: exp of the mean over a step's tokens of the masked-diffusion bound on the log-likelihood of the whole trace (LLaDA,
2502.09992, equation 4), in whose sum each token counts where it is masked, weighted by 1/t. Eight masks of a trace, in pairs
of which each leaves open what the other shows, so that every token is masked in exactly one of a pair; a step's sum is
divided by the weights that it met, not by its length, which is the same on average and much less noisy.

`likelihood:MODEL`: exp of the mean log-probability that a model gives the step's tokens after the question and the steps
before. A causal model reads them from the left. A diffusion model that attends fully reads the prompt and the steps before
on its canvas, masked from there on, as when it denoises, and is asked for all tokens of the step at once: a pass a step.
Trajectories were not asked that: they hold steps that were written before those that they follow from.

All divide by length, so that long steps are not worse for being long. Left out: the bound of models that denoise block by
block.

Axes: K trajectories, N steps of one trajectory, R rows (K trajectories times the masks of each), L positions.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from lockstitch.rewards.tasks.task import Task
from lockstitch.sampling.batching import CPU_TOKENS
from lockstitch.sampling.chat import Chat
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loading import load_causal, loaded_from
from lockstitch.sampling.noise import derive_seed, uniform
from lockstitch.sampling.trajectory import Ledger, Trajectory
from lockstitch.stitching.score import ROWS, Scores
from lockstitch.stitching.step_reader import Encoded, Reader, attention_of, batch, check_room
from lockstitch.stitching.steps import Step

from lockstitch import model_path

PAIRS = 4
LOGITS = 2**28  # most numbers of the logits of a pass over whole texts: a GiB in float32

_Asked = tuple[tuple[int, ...], tuple[int, ...]]  # the tokens before a step, and its own


def paired_masks(length: int, pairs: int, seed: int) -> list[tuple[float, list[bool]]]:
    """Masks of a completion with their ratios t: each of a pair opens what the other shows, t is stratified over the pairs.

    Args:
        length: tokens of the completion.
        pairs: how many pairs.
        seed: of the draw, which depends on nothing else.

    Returns:
        `2 * pairs` masks, each with its t in (0, 1).
    """
    masks = []
    for pair in range(pairs):
        t = (pair + 0.5) / pairs
        draw = uniform(torch.tensor([seed]), pair, 0, torch.arange(length))[0].tolist()
        opened = [one < t for one in draw]
        masks += [(t, opened), (1 - t, [not one for one in opened])]
    return masks


class Bound:
    """Scores steps by the diffusion model's own bound on their likelihood.

    Args:
        denoiser: the model that wrote the trajectories.
        task: what its prompts pin of a trace, no mask hides.
        pairs: masks of a trace, in pairs; each costs a pass.
        batch_size: most rows in one pass.

    Raises `ValueError` for models that do not attend fully, and for no pairs.
    """

    def __init__(self, denoiser: Denoiser, task: Task, *, pairs: int = PAIRS, batch_size: int = ROWS) -> None:
        if denoiser.family.layout != "full":
            raise ValueError(
                f"the scorer 'bound' masks anywhere in a trace; {denoiser.family.name} models denoise block by "
                "block: bmc, or likelihood:MODEL"
            )
        if pairs < 1:
            raise ValueError(f"pairs={pairs} must be at least 1")
        self.denoiser, self.task, self.pairs, self.batch_size = denoiser, task, pairs, batch_size

    def __call__(
        self, question: str, steps_KN: Sequence[Sequence[Step]], trajectories: Sequence[Trajectory] | None
    ) -> Scores:
        """See `Scorer`; `ValueError` where there are no trajectories to mask."""
        if trajectories is None:
            raise ValueError(
                "the scorer 'bound' masks trajectories that this toolkit sampled; completions from elsewhere "
                "have no canvas: use likelihood:MODEL"
            )
        known = self.denoiser.given(self.task.prompt(question)) or ()
        pinned = {i for i, token in enumerate(known) if token is not None}
        masks_K = [
            [
                (t, [opened and i not in pinned for i, opened in enumerate(mask)])
                for t, mask in paired_masks(trajectory.length, self.pairs, derive_seed(trajectory.seed, 6))
            ]
            for trajectory in trajectories
        ]
        logp_K = self._log_probabilities(trajectories, masks_K)
        score_KN = [
            [step_bound(masks, logp, _places(step)) for step in steps]
            for steps, masks, logp in zip(steps_KN, masks_K, logp_K, strict=True)
        ]
        passes = 2 * self.pairs
        tokens = sum(passes * (len(t.prompt_ids) + t.length) for t in trajectories)
        return Scores(
            score_KN, more=Ledger(nfe=passes * len(trajectories), tokens_forwarded=tokens, sequential_steps=1)
        )

    @torch.no_grad()  # and not in inference mode, which a policy whose weights are sharded is trained after
    def _log_probabilities(
        self, trajectories: Sequence[Trajectory], masks_K: Sequence[Sequence[tuple[float, list[bool]]]]
    ) -> list[list[list[float]]]:
        """log p of every token of a completion under each of its masks; of tokens that a mask shows it says nothing."""
        denoiser = self.denoiser
        found: list[list[list[float]]] = [[] for _ in trajectories]
        # Rows of one length go together where the model's own code would read padding.
        alike: dict[int, list[tuple[int, list[bool]]]] = {}
        for k, masks in enumerate(masks_K):
            length = 0 if denoiser.calling.honours_mask else len(trajectories[k].prompt_ids) + trajectories[k].length
            alike.setdefault(length, []).extend((k, mask) for _, mask in masks)
        most = max(len(t.prompt_ids) + t.length for t in trajectories)
        most = min(self.batch_size, _rows_at_once(most, denoiser.model))
        for part in (rows[start : start + most] for rows in alike.values() for start in range(0, len(rows), most)):
            longest = max(len(trajectories[k].prompt_ids) + trajectories[k].length for k, _ in part)
            shown, real, wanted = [], [], []
            for k, mask in part:
                t = trajectories[k]
                ids = [*t.prompt_ids, *t.completion_ids]
                noised = [
                    denoiser.mask_id if opened else token for token, opened in zip(t.completion_ids, mask, strict=True)
                ]
                pad = longest - len(ids)
                shown.append([denoiser.pad_id] * pad + [*t.prompt_ids, *noised])
                real.append([0] * pad + [1] * len(ids))
                wanted.append([denoiser.pad_id] * pad + ids)
            device = denoiser.device
            logits_RLV = denoiser.forward_logits(
                denoiser.model, torch.tensor(shown, device=device), torch.tensor(real, device=device)
            )
            logp_RL = (
                logits_RLV.float().log_softmax(-1).gather(-1, torch.tensor(wanted, device=device)[..., None])[..., 0]
            )
            for (k, _), row in zip(part, logp_RL.tolist(), strict=True):
                found[k].append(row[longest - trajectories[k].length :])
        return found


def _places(step: Step) -> range:
    if step.tokens is None:
        raise ValueError(f"step {step.index} of trajectory {step.trajectory} has no token span to mask")
    return range(*step.tokens)


def step_bound(
    masks: Sequence[tuple[float, Sequence[bool]]], logp: Sequence[Sequence[float]], places: Sequence[int]
) -> float:
    """exp of the bound a token: the sum over masks and masked places of log p / t, by the sum of the 1/t that it met.

    Args:
        masks: (t, what is masked) of each mask.
        logp: log p of every token under each mask.
        places: the step's, in the completion.

    A step of which no token is masked, as all was given, is as likely as can be: 1.
    """
    total = weight = 0.0
    for (t, mask), row in zip(masks, logp, strict=True):
        opened = [i for i in places if mask[i]]
        total += sum(row[i] for i in opened) / t
        weight += len(opened) / t
    return min(1.0, math.exp(total / weight)) if weight else 1.0


class StepLikelihood:
    """Scores steps by the probability that a diffusion model gives their tokens where they and all after them are masked.

    Args:
        denoiser: the model; it need not be the one that wrote the trajectories.
        task: its prompts, its form of steps and the length of its canvas; where it has none, or a text is longer, the canvas
            is as long as the text.

    Raises `ValueError` for models that do not attend fully, and for a task whose prompts pin a part of the canvas; when it
    is called, for a text longer than the model reads.
    """

    reads_text_alone = True

    def __init__(self, denoiser: Denoiser, task: Task, *, batch_size: int = ROWS) -> None:
        if task.cloze is not None:
            raise ValueError(
                f"scorer 'likelihood' masks a diffusion model's canvas from a step on, and task {task.name!r} has its "
                "question there: a causal model, bmc or bound"
            )
        if denoiser.family.layout != "full":
            raise ValueError(
                f"scorer 'likelihood' masks a canvas from a step on; {denoiser.family.name} models denoise block by block: "
                "a causal model, or bmc"
            )
        self.denoiser, self.task, self.batch_size = denoiser, task, batch_size

    @torch.inference_mode()
    def __call__(
        self, question: str, steps_KN: Sequence[Sequence[Step]], trajectories: Sequence[Trajectory] | None = None
    ) -> Scores:
        """See `Scorer`; the traces are not read. What reads the same is read once."""
        denoiser = self.denoiser
        (prompt_ids,) = denoiser.encode_prompts([self.task.prompt(question)])
        asked_KN = [self._asked(steps) for steps in steps_KN]
        alike: dict[int, list[_Asked]] = {}  # rows of one length go together, unpadded
        for one, room in dict.fromkeys(pair for asked in asked_KN for pair in asked):
            alike.setdefault(room, []).append(one)
        score: dict[tuple[_Asked, int], float] = {}
        tokens = passes = 0
        for room, rows in alike.items():
            length = len(prompt_ids) + room
            check_room(length, denoiser.model)
            most = self.batch_size
            if denoiser.device.type == "cpu":
                most = min(most, max(1, CPU_TOKENS // length))
            for start in range(0, len(rows), most):
                part = rows[start : start + most]
                ids = [[*prompt_ids, *before, *[denoiser.mask_id] * (room - len(before))] for before, _ in part]
                ids_RL = torch.tensor(ids, device=denoiser.device)
                logits_RLV = denoiser.forward_logits(denoiser.model, ids_RL, torch.ones_like(ids_RL))
                for (before, own), logits_LV in zip(part, logits_RLV, strict=True):
                    first = len(prompt_ids) + len(before)
                    logp_SV = logits_LV[first : first + len(own)].float().log_softmax(-1)
                    logp_S = logp_SV.gather(-1, torch.tensor(own, device=denoiser.device)[:, None])
                    score[(before, own), room] = min(1.0, math.exp(float(logp_S.mean())))
            tokens, passes = tokens + len(rows) * length, passes + len(rows)
        return Scores([[score[pair] for pair in asked] for asked in asked_KN], tokens, Ledger(scorer_passes=passes))

    def _asked(self, steps: Sequence[Step]) -> list[tuple[_Asked, int]]:
        """Of each step the tokens before it with its own, and the length of the canvas."""
        own = [tuple(self.denoiser.encode([self.task.write_step(step.text) + "\n"])[0]) for step in steps]
        room = max(self.task.canvas_length or 0, sum(map(len, own)))
        return [((tuple(itertools.chain(*own[:n])), ids), room) for n, ids in enumerate(own)]


def load_likelihood(
    name: str, task: Task, batch_size: int = ROWS, device: str | torch.device | None = None
) -> "StepLikelihood | Likelihood":
    """The scorer `likelihood:NAME`: of a diffusion model or a causal one, by what its config says.

    Raises `ValueError` for what cannot be loaded, and for a model that can be asked in neither way.
    """
    path = model_path(name)
    with loaded_from(f"scorer likelihood:{name}"):
        full = attention_of(path) != "causal"
    if not full:
        return Likelihood.from_pretrained(name, task, device)
    with loaded_from(f"scorer likelihood:{name}"):
        denoiser = Denoiser.from_pretrained(path, device=device)
    denoiser.chat = Chat.of(denoiser.tokenizer, None, task.system)
    return StepLikelihood(denoiser, task, batch_size=batch_size)


class Likelihood:
    """Scores steps by the probability that a causal language model gives their tokens, a token on average.

    Args:
        model: `model(input_ids=, attention_mask=).logits` is `(B, L, V)`.
        tokenizer: its tokenizer; a chat template, where it has one, puts the question.
        task: its statement of the question is what the model reads first.
    """

    reads_text_alone = True

    def __init__(self, model: Any, tokenizer: Any, task: Task) -> None:
        self.model, self.tokenizer, self.task = model.eval(), tokenizer, task
        self.reader = Reader("causal", chat_template=tokenizer.chat_template is not None)

    @classmethod
    def from_pretrained(cls, name: str, task: Task, device: str | torch.device | None = None) -> "Likelihood":
        """Loads a directory, hub name or `embedded:solver`: float32 on a CPU, its own dtype on an accelerator."""
        model, tokenizer = load_causal(model_path(name), f"scorer 'likelihood:{name}'", device)
        if getattr(model.config, "is_causal", True) is False:
            raise ValueError(f"scorer 'likelihood:{name}' needs a causal model; 'bound' asks the diffusion model")
        return cls(model, tokenizer, task)

    @torch.inference_mode()
    def __call__(
        self, question: str, steps_KN: Sequence[Sequence[Step]], trajectories: Sequence[Trajectory] | None = None
    ) -> Scores:
        """See `Scorer`; right-padded batches of the trajectories that have steps. The traces are not read."""
        prompt = self.task.statement(question).rstrip() + "\n"
        rows = {
            k: self.reader.encode(self.tokenizer, prompt, [step.text for step in steps])
            for k, steps in enumerate(steps_KN)
            if steps
        }
        score_KN: list[list[float]] = [[] for _ in steps_KN]
        if not rows:
            return Scores(score_KN)
        encoded = list(rows.values())
        longest = max(len(one.ids) for one in encoded)
        check_room(longest, self.model)
        asked, most = list(rows), _rows_at_once(longest, self.model)
        for start in range(0, len(asked), most):
            part = asked[start : start + most]
            arguments = batch([rows[k] for k in part], "causal", self.model.dtype, self.model.device)
            logits_BLV = self.model(**arguments, use_cache=False).logits.float()
            ids_BL = arguments["input_ids"]
            logp_BL = logits_BLV[:, :-1].log_softmax(-1).gather(-1, ids_BL[:, 1:, None])[..., 0].cpu()
            for k, logp in zip(part, logp_BL.tolist(), strict=True):
                score_KN[k] = _by_step(rows[k], logp)
        tokens = sum(len(row.ids) for row in encoded)
        return Scores(score_KN, tokens, Ledger(scorer_passes=len(encoded)))


def _rows_at_once(length: int, model: Any) -> int:
    """How many rows of that many tokens go through a pass: the numbers of their logits are at most `LOGITS`."""
    return max(1, LOGITS // (length * int(model.config.get_text_config().vocab_size)))


def _by_step(row: Encoded, logp: Sequence[float]) -> list[float]:
    """exp of the mean log-probability of each step's tokens; `logp` at i is that of token i + 1."""
    scores = []
    for number in range(1, len(row.positions) + 1):
        own = [logp[i - 1] for i, segment in enumerate(row.segments) if segment == number]
        scores.append(min(1.0, math.exp(sum(own) / len(own))))
    return scores
