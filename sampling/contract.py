"""A trajectory as engines tell of one: their reply to a request, with what replays it, written and read.

The form is that of SGLang's dLLM replay contract, version 1 (its pull request 27943, and DARE's reading of it). A reply is
`{"text": ..., "output_ids": [...], "meta_info": {...}}`; `output_ids` end with the stop, and `meta_info` holds

| name | what it holds |
|---|---|
| `step_maps` | for each of `output_ids`, the denoising step of its block that committed it, from 1 |
| `dllm_replay_token_ids` | the same tokens, and the rest of the block in which they stop: it was denoised to its end |
| `dllm_replay_step_maps` | the step of each of these |
| `dllm_stop_length` | how many tokens there are up to and with the stop |
| `dllm_replay_contract_version` | 1 |

Blocks are counted from the first token of the prompt. Steps begin anew in each block; ours go on through the canvas. Leaves
out what the contract has no place for: confidences and entropies, which are not a number where they are unknown, and tokens
that were taken back.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.trajectory import Ledger, Trajectory

from lockstitch.files import read_rows, write_whole

if TYPE_CHECKING:
    from lockstitch.sampling.denoiser import Denoiser
    from lockstitch.sampling.families import Family

VERSION = 1
STEP_MAPS, STOP_LENGTH = "step_maps", "dllm_stop_length"
REPLAY_IDS, REPLAY_STEPS = "dllm_replay_token_ids", "dllm_replay_step_maps"
CONTRACT = "dllm_replay_contract_version"


def to_reply(trajectory: Trajectory, block_length: int) -> dict[str, Any]:
    """An engine's reply that tells of a trajectory.

    Args:
        trajectory: of a block-causal model, its blocks denoised to their ends (`whole_blocks`, and not `stop_at_eos`).
        block_length: positions of a block.

    Raises `ValueError` for what the contract cannot tell: tokens that were taken back or given, and blocks that are not
    whole.
    """
    if trajectory.edits:
        raise ValueError(
            f"trajectory {trajectory.seed} took {len(trajectory.edits)} tokens back, which a replay cannot tell"
        )
    lead, stop = len(trajectory.prompt_ids), trajectory.length
    end = stop + -(lead + stop) % block_length
    steps = trajectory.commit_step[:end]
    if 0 in steps:
        raise ValueError(f"position {steps.index(0)} was given: a replay knows what was denoised alone")
    if len(steps) < end or -1 in steps:
        raise ValueError(
            f"the block of {block_length} in which the completion ends was not denoised to its end, as engines do: "
            "whole_blocks=True, stop_at_eos=False"
        )
    local: list[int] = []
    for start, last in pairwise(_edges(lead, end, block_length)):
        order = {step: i for i, step in enumerate(sorted({*steps[start:last]}), 1)}
        local += [order[step] for step in steps[start:last]]
    return {
        "text": trajectory.text,
        "output_ids": list(trajectory.completion_ids),
        "meta_info": {
            "prompt_tokens": lead,
            "completion_tokens": stop,
            "finish_reason": {"type": "stop" if trajectory.finished else "length"},
            STEP_MAPS: local[:stop],
            REPLAY_IDS: list(trajectory.canvas_ids[:end]),
            REPLAY_STEPS: local,
            STOP_LENGTH: stop,
            CONTRACT: VERSION,
        },
    }


def from_reply(
    reply: Any,
    prompt_ids: Sequence[int],
    *,
    canvas_length: int,
    block_length: int,
    mask_id: int,
    eos_ids: Sequence[int],
    text: str = "",
    prompt: int = 0,
    seed: int = 0,
    seconds: float = 0.0,
) -> Trajectory:
    """The trajectory that an engine's reply tells of, on a canvas of a given length.

    What follows the block in which it stopped was never denoised: mask tokens, without a step. `Ledger.nfe` counts the
    denoising steps that the maps tell of; the engine's own passes may be more.

    Args:
        reply: the reply.
        prompt_ids: tokens of the prompt that was sent.
        canvas_length: positions of the canvas.
        block_length: positions of a block.
        mask_id: the mask token.
        eos_ids: the tokens that end a completion.
        text, prompt, seed, seconds: fields of the trajectory.

    Raises `ValueError` in one line for what does not keep to the contract.
    """
    meta = reply.get("meta_info") if isinstance(reply, Mapping) else None
    if not isinstance(meta, Mapping):
        raise ValueError("no meta_info in the reply")
    version = meta.get(CONTRACT)
    if type(version) is not int or version != VERSION:
        told = f"is {version!r}" if CONTRACT in meta else "is missing"
        raise ValueError(f"{CONTRACT} {told}, and {VERSION} is what is understood here")
    why = meta.get("finish_reason")
    if isinstance(why, Mapping) and why.get("type") == "abort":
        raise ValueError(f"the request was aborted: {' '.join(str(why.get('message')).split())[:200]}")
    output = _integers(reply, "output_ids", 0)
    ids, local = _integers(meta, REPLAY_IDS, 0), _integers(meta, REPLAY_STEPS, 1)
    stop, lead = meta.get(STOP_LENGTH), len(prompt_ids)
    for name, count in (("prompt_tokens", lead), ("completion_tokens", len(output))):
        if name in meta and meta[name] != count:
            raise ValueError(f"{name}={meta[name]!r}, and there are {count}")
    if type(stop) is not int or stop != len(output) or stop < 1:
        raise ValueError(f"{STOP_LENGTH}={stop!r}, and output_ids holds {len(output)} tokens")
    if len(local) != len(ids):
        raise ValueError(f"{REPLAY_STEPS} holds {len(local)} steps for the {len(ids)} tokens of {REPLAY_IDS}")
    if ids[:stop] != output:
        raise ValueError(f"{REPLAY_IDS} does not begin with output_ids")
    if STEP_MAPS in meta and _integers(meta, STEP_MAPS, 1) != local[:stop]:
        raise ValueError(f"{REPLAY_STEPS} does not begin with {STEP_MAPS}")
    if len(ids) != stop + -(lead + stop) % block_length:
        raise ValueError(
            f"{REPLAY_IDS} holds {len(ids)} tokens after a prompt of {lead} and a stop after {stop}: they do not end "
            f"with the block of {block_length} in which the completion stops"
        )
    if len(ids) > canvas_length:
        raise ValueError(f"{REPLAY_IDS} holds {len(ids)} tokens: more than the {canvas_length} of the canvas")
    if mask_id in ids:
        raise ValueError(f"{REPLAY_IDS} holds the mask token {mask_id} at position {ids.index(mask_id)}")
    ended = next((i for i, token in enumerate(output) if token in eos_ids), None)
    if ended is not None and ended < stop - 1:
        raise ValueError(f"output_ids goes on after the EOS token {output[ended]} at position {ended}")

    steps, blocks, done = [], [], 0
    for block, (start, end) in enumerate(pairwise(_edges(lead, len(ids), block_length))):
        steps += [done + step for step in local[start:end]]
        blocks += [block] * (end - start)
        done += max(local[start:end])
    rest = canvas_length - len(ids)
    return Trajectory(
        prompt=prompt,
        seed=seed,
        prompt_ids=tuple(prompt_ids),
        canvas_ids=(*ids, *[mask_id] * rest),
        length=stop,
        text=text,
        finished=ended is not None,
        commit_step=(*steps, *[-1] * rest),
        confidence=(math.nan,) * canvas_length,
        entropy=(math.nan,) * canvas_length,
        block=(*blocks, *[-1] * rest),
        edits=(),
        ledger=Ledger(nfe=done, sequential_steps=done, seconds=seconds),
    )


def check_replies(config: SamplerConfig, family: "Family", pinned: bool) -> None:
    """Raises `ValueError` where the trajectories of these settings could not be told as an engine's replies."""
    if family.layout != "block_causal":
        raise ValueError(
            f"replies: the contract tells steps by blocks that are counted from the prompt's first token, which "
            f"block-causal models have and {family.name} ones have not"
        )
    for name, wanted in (("whole_blocks", True), ("stop_at_eos", False), ("correction", "none"), ("extension", None)):
        if (value := getattr(config, name)) != wanted:
            raise ValueError(f"replies: {name}={value!r} leaves blocks that no engine would: say {wanted!r}")
    if pinned:
        raise ValueError("replies: tokens that are given have no denoising step; prompts without canvas or blanks")


def write_replies(path: Path, rows: Iterable[Mapping[str, Any]], block_length: int) -> None:
    """Writes lines of `results.jsonl` as what an engine replies: a line of JSON for each prompt, its replies in order.

    A line has `index`, `prompt`, `input_ids`, `seeds`, `canvas_length`, `block_length` and `replies`.
    """
    lines = []
    for row in rows:
        drawn = [Trajectory.from_dict(values) for values in row["trajectories"]]
        line = {
            "index": row["index"],
            "prompt": row["prompt"],
            "input_ids": drawn[0].prompt_ids,
            "seeds": [t.seed for t in drawn],
            "canvas_length": len(drawn[0].canvas_ids),
            "block_length": block_length,
            "replies": [to_reply(t, block_length) for t in drawn],
        }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_whole(path, "".join(lines))


def read_replies(path: Path, denoiser: "Denoiser") -> list[Trajectory]:
    """The trajectories of a file that `write_replies` wrote, as far as the replies tell of them, in order.

    Raises `ValueError` for what is no file, and naming every line that does not keep to the contract.
    """

    def read(row: Mapping[str, Any]) -> list[Trajectory]:
        try:
            told: dict[str, Any] = {name: row[name] for name in ("canvas_length", "block_length")}
            pairs = list(zip(row["replies"], row["seeds"], strict=True))
            index, ids = row["index"], row["input_ids"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{type(error).__name__} {error}: this is no line of replies") from None
        told |= {"mask_id": denoiser.mask_id, "eos_ids": denoiser.eos_ids}
        return [
            replace(from_reply(reply, ids, **told, prompt=index, seed=seed), text=reply.get("text", ""))
            for reply, seed in pairs
        ]

    return [trajectory for row in read_rows(path, read) for trajectory in row]


def _edges(lead: int, length: int, block_length: int) -> Iterator[int]:
    """Where blocks begin among the first `length` positions of a canvas, and where the last one ends."""
    yield 0
    yield from range(block_length - lead % block_length, length, block_length)
    yield length


def _integers(values: Mapping[str, Any], name: str, least: int) -> list[int]:
    found = values.get(name)
    if not isinstance(found, list) or not all(type(value) is int and value >= least for value in found):
        what = "is missing" if name not in values else f"is no list of whole numbers of at least {least}"
        raise ValueError(f"{name} {what}")
    return found
