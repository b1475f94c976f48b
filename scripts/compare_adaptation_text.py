"""A real language model made a diffusion model: NBDiff against its ablations and by block length, as curves over tokens.

    python scripts/fetch_smollm2.py models/smollm2
    python scripts/compare_adaptation_text.py --model models/smollm2 --data DIR --output runs/text [--image curve.png]

The texts are GSM8K's training questions with their solutions, cut into canvases of 64 tokens; the last 64 questions are kept
apart. Every arm is `lockstitch adapt` with the preset `nbdiff`, all weights, one rate, one seed and as many tokens:

    plain       masked diffusion alone, at the full block from the first step
    +ar         beside it half of the next-token loss on the clean half
    +growth     blocks that double, up to the full one after half of the steps
    nbdiff      both; also at blocks of 4, 8 and 32

Measured at every checkpoint, on texts that are not trained on, with noise that is always the same, at the arm's own full
block: the likelihood bound in nats a token, and KL(parent || child) at masked positions, where the parent reads all tokens
before. At blocks of other lengths both are other quantities: arms of one block compare. Runs that are there are not run
again.
"""

import argparse
import json
import re
from pathlib import Path

import torch
import yaml
from recipe_runs import launch
from tqdm import tqdm

from lockstitch.files import write_whole

MASK = "<jupyter_script>"  # a token that SmolLM2 reserves and its texts never hold
CANVAS, ROWS, KEPT_APART, EVALUATED = 64, 4, 64, 16
PLAIN, CONSTANT = {"ar_loss": "none", "ar_weight": None}, {"block_growth": "constant", "block_growth_steps": None}
ARMS = {
    "plain": (16, PLAIN | CONSTANT),
    "+ar": (16, CONSTANT),
    "+growth": (16, PLAIN),
    "nbdiff": (16, {}),
    "nbdiff-4": (4, {}),
    "nbdiff-8": (8, {}),
    "nbdiff-32": (32, {}),
}


def texts_of(data):
    """Texts to train on, and those that are kept apart; GSM8K's marks for a calculator are left out."""
    lines = (data / "gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    texts = [f"{row['question']}\n{re.sub('<<.*?>>', '', row['answer'])}" for row in rows]
    return texts[:-KEPT_APART], texts[-KEPT_APART:]


def settings(arm, arguments, mask_id, texts, run):
    """All settings of an arm's run."""
    block, changed = ARMS[arm]
    return {
        "adapt_preset": "nbdiff",
        "model_name_or_path": str(arguments.model),
        "dataset_name": str(texts),
        "mask_id": mask_id,
        "canvas_length": CANVAS,
        "max_length": None,
        "block_length": block,
        "block_growth_steps": max(1, arguments.steps // 2 // (block.bit_length() - 1)),
        "learning_rate": arguments.learning_rate,
        "warmup_steps": 2,
        "per_device_train_batch_size": ROWS,
        "gradient_accumulation_steps": 1,
        "max_steps": arguments.steps,
        "save_steps": arguments.every,
        "save_only_model": True,
        "seed": 0,
        "output_dir": str(run),
        "bf16": False,
        "dtype": "float32",
        "use_cpu": True,
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
    } | changed


@torch.no_grad()
def measure(path, block, mask_id, ids_BL, parent):
    """The bound in nats a token, and KL(parent || child) at masked positions, of canvases after a prompt of one token."""
    from dataclasses import replace

    from lockstitch.rl.adaptation_losses import forward_kl
    from lockstitch.rl.masking import block_mask_ratio, mask_completion, noise_generator
    from lockstitch.rl.packing import block_of_column
    from lockstitch.rl.sft import halves_logits, masked_diffusion_loss
    from lockstitch.sampling.denoiser import Denoiser, make_causal
    from lockstitch.sampling.families import CONTEXT_CAUSAL
    from lockstitch.sampling.loading import load_tokenizer
    from transformers import AutoModelForCausalLM

    family = replace(CONTEXT_CAUSAL, block_length=block)
    model = make_causal(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval())
    denoiser = Denoiser(model, load_tokenizer(str(path), None), family, mask_id)
    canvas, found = ids_BL.shape[1] - 1, []
    for seed, part_BL in enumerate(ids_BL.split(4)):
        completion = torch.ones_like(part_BL, dtype=torch.bool)
        completion[:, 0] = False
        number = block_of_column(torch.ones(len(part_BL), 1, dtype=torch.bool), canvas, block, family.layout, None)
        generator = noise_generator(seed)
        ratio = block_mask_ratio(number, generator)
        noised, masked = mask_completion(part_BL, completion, ratio, mask_id, generator, False)
        logits, _ = halves_logits(
            denoiser, model, part_BL, noised, torch.ones_like(part_BL), masked, None, canvas, block, None
        )
        labels = part_BL.masked_fill(~completion, -100)
        bound = masked_diffusion_loss(logits, labels, masked, ratio, "inverse_t")
        said = parent(input_ids=part_BL).logits[:, :-1][masked[:, 1:]]
        found.append((bound.item(), forward_kl(said, logits).mean().item()))
    return {"bound": sum(b for b, _ in found) / len(found), "kl": sum(k for _, k in found) / len(found)}


def draw(curves, image):
    """Both measures over tokens of training."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, 2, figsize=(10, 7), layout="constrained", sharex=True, sharey="row")
    for row, (name, label) in zip(
        panels, (("bound", "bound, nats a token"), ("kl", "KL(parent || child), nats")), strict=True
    ):
        for axes, blocks in zip(row, (False, True), strict=True):
            for arm, points in curves.items():
                if arm == "nbdiff" or arm.startswith("nbdiff-") == blocks:
                    axes.plot([p["tokens"] for p in points], [p[name] for p in points], marker="o", ms=3, label=arm)
            axes.set(xlabel="tokens of training", ylabel=label, yscale="log")
            axes.legend(frameon=False)
    panels[0, 0].set_title("blocks of 16")
    panels[0, 1].set_title("by block length")
    figure.savefig(image, dpi=110)


def main():
    """Runs what is not there, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/text"))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--every", type=int, default=6, help="optimizer steps between checkpoints")
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--image", type=Path)
    arguments = parser.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    arguments.output.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    mask_id = tokenizer.convert_tokens_to_ids(MASK)
    train, apart = texts_of(arguments.data)
    texts = arguments.output / "texts.jsonl"
    write_whole(texts, "".join(json.dumps({"text": text}) + "\n" for text in train[: ROWS * arguments.steps * 4]))
    ids = [tokenizer(text)["input_ids"] for text in apart]
    ids_BL = torch.tensor([row[: CANVAS + 1] for row in ids if len(row) > CANVAS][:EVALUATED])
    parent, curves = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval(), {}
    for arm in tqdm(arguments.arms):
        run, block = arguments.output / arm, ARMS[arm][0]
        results = run / "curve.json"
        if not results.exists():
            run.mkdir(parents=True, exist_ok=True)
            write_whole(run / "config.yaml", yaml.safe_dump(settings(arm, arguments, mask_id, texts, run)))
            launch("adapt", run)
            paths = {0: arguments.model} | {int(path.name.split("-")[1]): path for path in run.glob("checkpoint-*")}
            curve = [
                {"tokens": step * ROWS * CANVAS} | measure(path, block, mask_id, ids_BL, parent)
                for step, path in sorted(paths.items())
            ]
            write_whole(results, json.dumps(curve, indent=1) + "\n")
        curves[arm] = json.loads(results.read_text(encoding="utf-8"))
    for name in ("bound", "kl"):
        tokens = [point["tokens"] for point in next(iter(curves.values()))]
        print(f"\n| {name} | block | " + " | ".join(f"{t:,}" for t in tokens) + " |\n|---|---|" + "---|" * len(tokens))
        for arm, points in curves.items():
            cells = (f"{point[name]:.2f}" for point in points)
            print(f"| {arm} | {ARMS[arm][0]} | " + " | ".join(cells) + " |")
    if arguments.image is not None:
        draw(curves, arguments.image)


if __name__ == "__main__":
    main()
