"""Process reward models of transformers as step scorers: all steps of all trajectories in one forward pass.

Three conventions. Ours (`step_reader.py`): what `lockstitch prm` trains says beside its weights how it reads, and is asked
with the task's own prompt. With a marker (Qwen2.5-Math-PRM, 2501.07301; stitching, 2602.22871): each step is followed by the
marker token `<extra_0>` and r_t = softmax(logits)[positive] there. Without one (TRL's stepwise supervision): each step is
followed by a line break and r_t is read at the last token of the step. The model must be causal in the latter two, so that
a step's score depends on nothing after it. Left out: models that speak their verdict (yes/no tokens) and sequence-level
rewards.

Axes: K trajectories, N steps of one trajectory, L positions.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from lockstitch.rewards.tasks.task import Task
from lockstitch.sampling.chat import encode
from lockstitch.sampling.loading import loaded_from, usable_device
from lockstitch.sampling.trajectory import Ledger, Trajectory
from lockstitch.stitching.score import Scores
from lockstitch.stitching.step_reader import Encoded, Reader, batch, check_room, load_classifier
from lockstitch.stitching.steps import Step
from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification, AutoTokenizer

from lockstitch import EMBEDDED, embedded_scorer

logger = logging.getLogger(__name__)

SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


class ProcessRewardModel:
    """Scores steps by the probability that a process reward model calls them right.

    Args:
        model: folder, name on the hub or `embedded:sudoku`. One that `lockstitch prm` trained, another token classifier of
            two labels (wrong, right) or, where the user trusts it, a model with code of its own whose output holds logits
            `(K, L, 2)`.
        task: its prompts and its form of steps are what a model of ours reads; None reads the question and the steps as
            they are.
        marker: the token after each step at which scores are read; `""` reads at each step's last token. A model of ours
            has its own way.
        system: what the system turn of a chat template says.
        trust_remote_code: whether code that comes with the model may run.
        device: where it runs; the first GPU if there is one.

    Raises:
        ValueError: if the tokenizer has no such single token, the head has not two labels, or the model needs code of
            its own that is not trusted.
    """

    reads_text_alone = True

    def __init__(
        self,
        model: str,
        *,
        task: Task | None = None,
        marker: str = "<extra_0>",
        system: str = SYSTEM,
        trust_remote_code: bool = False,
        device: str | None = None,
    ) -> None:
        named = model
        if model.startswith(EMBEDDED):
            model = str(embedded_scorer(model.removeprefix(EMBEDDED)))
        self.marker, self.system, self.task = marker, system, task
        self.reader = Reader.beside(model)
        if self.reader is not None:
            if task is not None and self.reader.task not in (None, task.name):
                logger.warning(
                    "scorer prm:%s was trained on steps of %r and reads those of %r",
                    named,
                    self.reader.task,
                    task.name,
                )
            self.marker_id = None
            self.tokenizer: Any
            with loaded_from(f"scorer prm:{model}"):
                self.model, self.tokenizer = load_classifier(model, self.reader, device)
            self.device: Any = self.model.device
            return
        with loaded_from(f"scorer prm:{model}"):
            self.tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
            config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
        architecture = (config.architectures or ["none"])[0]
        if architecture.endswith("ForTokenClassification"):
            if config.num_labels != 2:
                raise ValueError(f"{model!r} classifies into {config.num_labels} labels; two are needed: wrong, right")
            face = AutoModelForTokenClassification
        elif "AutoModel" in getattr(config, "auto_map", {}):
            if not trust_remote_code:
                raise ValueError(f"{model!r} ({architecture}) brings code of its own: read it, then trust_remote_code")
            face = AutoModel
        else:
            raise ValueError(
                f"{model!r} is a {architecture}; a process reward model is one that `lockstitch prm` trained, a "
                "...ForTokenClassification of two labels, or one that brings code of its own"
            )
        self.marker_id = _single_token(self.tokenizer, marker, model) if marker else None
        if self.marker_id is not None:
            self.encode("", ())  # a chat template that refuses these turns does so before the model is read
        self.device = usable_device(device)
        with loaded_from(f"scorer prm:{model}"):
            loaded: Any = face.from_pretrained(model, trust_remote_code=trust_remote_code, dtype="auto")
        self.model = loaded.to(self.device).eval()

    def __call__(
        self, question: str, steps_KN: Sequence[Sequence[Step]], trajectories: Sequence[Trajectory] | None = None
    ) -> Scores:
        """See `Scorer`; one right-padded batch of all trajectories that have steps. The traces are not read."""
        rows = [k for k, steps in enumerate(steps_KN) if steps]
        score_KN: list[list[float]] = [[] for _ in steps_KN]
        if not rows:
            return Scores(score_KN)
        encoded = [self.encode(question, [step.text for step in steps_KN[k]]) for k in rows]
        check_room(max(len(one.ids) for one in encoded), self.model)
        arguments = batch(encoded, self.attention, self.model.dtype, self.device)
        with torch.inference_mode():
            output = self.model(**arguments, use_cache=False)
        logits_KL2 = output.logits if hasattr(output, "logits") else output[0]
        shape = (*arguments["input_ids"].shape, 2)
        if logits_KL2.shape != shape:
            raise ValueError(f"the model's output has shape {tuple(logits_KL2.shape)}, not {shape}")
        right_KL = logits_KL2.float().softmax(-1)[..., 1].cpu()
        for row, k in enumerate(rows):
            score_KN[k] = right_KL[row, encoded[row].positions].tolist()
        return Scores(score_KN, sum(len(one.ids) for one in encoded), Ledger(scorer_passes=len(rows)))

    @property
    def attention(self) -> str:
        """What a step's tokens see: see `step_reader.py`."""
        return "causal" if self.reader is None else self.reader.attention

    def encode(self, question: str, steps: Sequence[str]) -> Encoded:
        """The tokens of a question with its steps, and the position of each step's score."""
        if self.reader is not None:
            prompt = question if self.task is None else self.task.scorer_prompt(question)
            written = steps if self.task is None else [self.task.write_step(step) for step in steps]
            return self.reader.encode(self.tokenizer, prompt, written)
        if self.marker_id is None:
            ids = self._prompt(question, "")
            positions = []
            for step in steps:
                ids = ids + self.tokenizer(step + "\n", add_special_tokens=False)["input_ids"]
                positions.append(len(ids) - 1)
            return Encoded(ids, [], positions)
        # A marker that the question or a step writes itself must not be taken for ours.
        body = "".join(step.replace(self.marker, " ") + self.marker for step in steps)
        ids = self._prompt(question.replace(self.marker, " "), body)
        positions = [i for i, token in enumerate(ids) if token == self.marker_id]
        assert len(positions) == len(steps)
        return Encoded(ids, [], positions)

    def _prompt(self, question: str, body: str) -> list[int]:
        # A chat template writes its own special tokens; without one the tokenizer adds those that it always adds.
        if not self.marker or self.tokenizer.chat_template is None:
            return list(self.tokenizer(f"{question}\n{body}")["input_ids"])
        turns = {"system": self.system, "user": question, "assistant": body}
        chat = [{"role": role, "content": content} for role, content in turns.items()]
        return encode(chat, self.tokenizer, add_generation_prompt=False)


def _single_token(tokenizer: Any, marker: str, model: str) -> int:
    ids = tokenizer(marker, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise ValueError(
            f"the tokenizer of {model!r} has no single token for the step marker {marker!r} (it reads {len(ids)}); "
            "name the marker that the model was trained with, or '' to read scores at each step's last token"
        )
    return int(ids[0])
