"""What a worker of `lockstitch sample` does: it loads the model, then draws the trajectories of portions of requests."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from lockstitch.sampling import prompts, uniform_prompts
from lockstitch.sampling.canvases import Look
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.diffusion_gemma import DiffusionGemmaDenoiser
from lockstitch.sampling.trajectory import Trajectory
from lockstitch.sampling.uniform_config import MODEL_TYPE

from lockstitch.engine import Portion, Row


@dataclass(frozen=True)
class Drawing:
    """What to draw with, and how often: calling it loads the model.

    Attributes:
        model: a directory or hub name.
        of_model: its model type.
        family, mask_id, trust_remote_code, device: how it is loaded, see `Denoiser.from_pretrained`.
        compile: whether its layers are compiled.
        n: trajectories of each request.
        seed: of all noise; that of a request is derived from it and the request's place.
    """

    model: str
    of_model: str
    family: str | None
    mask_id: int | None
    trust_remote_code: bool
    device: str | None
    compile: bool
    n: int
    seed: int

    def __call__(self) -> "Drawer":
        if self.of_model == MODEL_TYPE:
            gemma = DiffusionGemmaDenoiser.from_pretrained(self.model, device=self.device)
            return Drawer(self, partial(uniform_prompts.draw, gemma), gemma.decode)
        denoiser = Denoiser.from_pretrained(
            self.model,
            family=self.family,
            mask_id=self.mask_id,
            trust_remote_code=self.trust_remote_code,
            device=self.device,
        )
        if self.compile:
            denoiser.compile_layers()
        return Drawer(self, partial(prompts.draw, denoiser), denoiser.decode)


@dataclass(frozen=True)
class Drawer:
    """Portions of requests in, their rows of `results.jsonl` out."""

    of: Drawing
    draw: Callable[..., list[list[Trajectory]]]
    decode: Callable[[Any], list[str]]

    def __call__(
        self,
        portion: Portion,
        progress: Callable[[int], None] | None = None,
        on_step: Callable[[Look], None] | None = None,
    ) -> Iterator[list[Row]]:
        """One portion, all at once; `progress` and `on_step` as in `lockstitch.sampling.loop.sample`."""
        requests = [request for _, request in portion]
        drawn = self.draw(requests, portion[0][0], self.of.n, self.of.seed, progress, on_step)
        yield [prompts.result_row(*pair, self.decode) for pair in zip(requests, drawn, strict=True)]
