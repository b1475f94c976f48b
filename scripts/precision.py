"""How far bfloat16 drifts from float32 on the golden checkpoint of every family: logits, likelihoods, greedy tokens.

    python scripts/precision.py [--device cpu]

Prints a Markdown table. The checkpoints have random weights, whose logits lie closer to one another than a trained model's:
tokens that differ say more of that than of the arithmetic.

Axes: L positions, V vocabulary.
"""

import argparse
from pathlib import Path

import torch
from lockstitch.rl.estimator_config import EstimatorConfig
from lockstitch.rl.estimators import estimate
from lockstitch.rl.scoring import Canvases, Scorer
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.loop import sample
from transformers.utils import logging

GOLDEN = Path(__file__).parent.parent / "tests" / "families"
PROMPTS = [[17, 93, 242], [154, 129, 121, 395, 64, 154, 188], list(range(20, 90))]


def logits_of(denoiser: Denoiser, ids: list[int]) -> torch.Tensor:
    """Logits `(L, V)` in float32 of a pass in which every position sees every other, or those before."""
    with torch.inference_mode():
        logits: torch.Tensor = denoiser.model(
            input_ids=torch.tensor([ids], device=denoiser.device), use_cache=False
        ).logits
    return logits[0].float().cpu()


def row(path: Path, device: str) -> str:
    """A family's line of the table."""
    exact, rough = (
        Denoiser.from_pretrained(str(path), device=device, dtype=t) for t in (torch.float32, torch.bfloat16)
    )
    pairs = [(logits_of(exact, ids), logits_of(rough, ids)) for ids in PROMPTS]
    largest = max(float((b - a).abs().max()) for a, b in pairs)
    spread = max(float(a.max() - a.min()) for a, _ in pairs)
    block = None if exact.family.layout == "full" else 4
    config = SamplerConfig(canvas_length=12, block_length=4, temperature=1.0, steps=6, stop_at_eos=False)
    canvases = Canvases.from_trajectories(sample(exact, PROMPTS, config, n=8), exact)
    with torch.inference_mode():
        exactly_BG, roughly_BG = (
            estimate(EstimatorConfig("trajectory"), Scorer(one, one.model, block_length=block), canvases, 0)
            for one in (exact, rough)
        )
    drift = float((exactly_BG - roughly_BG).abs()[canvases.valid_BG].mean())
    greedy = SamplerConfig(canvas_length=12, block_length=4, stop_at_eos=False)
    drawn = zip(sample(exact, PROMPTS, greedy), sample(rough, PROMPTS, greedy), strict=True)
    same = [x == y for one, other in drawn for x, y in zip(one.canvas_ids, other.canvas_ids, strict=True)]
    return f"| {exact.family.name} | {largest:.2f} of {spread:.0f} | {drift:.3f} | {sum(same)} of {len(same)} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    logging.disable_progress_bar()
    print(
        "| family | largest difference of a logit, of their spread | mean difference of a token's log-likelihood | "
        "greedy tokens that are the same |\n|---|---|---|---|"
    )
    for path in sorted(GOLDEN.iterdir()):
        print(row(path, options.device))


if __name__ == "__main__":
    main()
