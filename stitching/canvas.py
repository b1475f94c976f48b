"""Diffusion infill: pin the evidence on a canvas and leave the rest to be denoised.

An autoregressive solver can only read evidence; a diffusion model can be handed it in place. Pinned steps keep their
tokens, open steps become as many masks as they had tokens, and whatever follows the last step (the answer) is open.
"""

from collections.abc import Container, Sequence

from lockstitch.rewards.tasks.task import Task
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.stitching.steps import Clue


def pin_chain(
    denoiser: Denoiser, task: Task, chain: Sequence[Clue], pinned: Container[int], canvas_length: int
) -> list[int | None]:
    """A canvas of `canvas_length` entries: token ids of the clues at the places `pinned`, None elsewhere.

    Steps stand one after another, each followed by the task's separator, as the model was trained to write them.
    Whatever does not fit is left open.
    """
    canvas: list[int | None] = []
    separator = denoiser.encode(["\n"])[0]
    for place, clue in enumerate(chain):
        ids = denoiser.encode([task.write_step(clue.step.text)])[0]
        canvas += ids if place in pinned else [None] * len(ids)
        if place < len(chain) - 1:
            canvas += separator
    canvas = canvas[:canvas_length]
    return canvas + [None] * (canvas_length - len(canvas))
