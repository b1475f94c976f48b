"""The README of an exported adapter or merged model: what it is made from, how it was trained, and how to load it.

Numbers come from the run's own files (`trainer_state.json`, `run.json`); what they do not say is left out.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lockstitch.rl.merge import Agreement
from lockstitch.rl.run_record import RunRecord

from lockstitch import EMBEDDED, __version__, model_name
from lockstitch.pages import without_places

STATE = "trainer_state.json"
_NOT_METRICS = {"step", "epoch", "total_flos", "num_tokens", "learning_rate", "grad_norm"}
_NOT_SPEED = re.compile(r"(_runtime|_per_second|_loss_scale)$")


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in a run's output directory, the latest first."""
    found = [path for path in directory.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]), reverse=True)


def last_metrics(directory: Path) -> tuple[int | None, dict[str, float]]:
    """Steps taken and the last logged value of each metric, of a run's output directory or a checkpoint; (None, {}) if
    nothing was kept."""
    for path in (directory / STATE, *(checkpoint / STATE for checkpoint in checkpoints(directory))):
        if path.is_file():
            state = json.loads(path.read_text(encoding="utf-8"))
            found: dict[str, float] = {}
            for entry in state["log_history"]:
                found |= {
                    name: value
                    for name, value in entry.items()
                    if isinstance(value, int | float)
                    and name not in _NOT_METRICS
                    and not name.startswith("train_")
                    and not _NOT_SPEED.search(name)
                }
            return state["global_step"], found
    return None, {}


def is_hub_name(base: str) -> bool:
    """Whether a base can stand in a card: a name on the hub, not somebody's path."""
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base) is not None and not Path(base).exists()


def model_card(
    base: str,
    revision: str | None,
    adapter: Mapping[str, Any],
    agreement: Agreement,
    record: RunRecord | None,
    steps: int | None,
    metrics: Mapping[str, float],
    merged: bool,
    published: bool = False,
) -> str:
    """The card's text, with the metadata that the hub reads."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=base if is_hub_name(base) else None,
        library_name="transformers" if merged else "peft",
        datasets=record.data if record and record.data and is_hub_name(record.data) else None,
        pipeline_tag="text-generation",
        tags=["lockstitch", "diffusion-language-model", *(["lora"] if not merged else [])],
    )
    shown = base if is_hub_name(base) else Path(base).name
    origin = f"`{shown}`" + (f" at revision `{revision}`" if revision else "")
    kind = "A model with a LoRA adapter merged into its weights" if merged else "A LoRA adapter"
    made = f"{kind}, for {origin}; made with Lockstitch {__version__}."
    parts = [f"---\n{data.to_yaml()}\n---", f"# {shown}, post-trained", made]
    loading = _loading(base, revision, record, merged, published)
    prompt = "; `...` is a prompt" if '"..."' in loading else ""
    parts += [loading, f"`DIR` is this directory, or its name on the hub{prompt}."]
    rows: dict[str, Any] = _facts(record) if record is not None else {}
    rows |= {"rank": adapter["r"], "alpha": adapter["lora_alpha"], "dropout": adapter["lora_dropout"], "steps": steps}
    parts.append(
        "## Training\n\n" + _table(("", ""), {name: value for name, value in rows.items() if value is not None})
    )
    if record is not None and record.config:
        said = {
            name: value
            for name, value in record.config.items()
            if name != "output_dir" and without_places(value) == value
        }
        settings = json.dumps(said, indent=2)
        parts.append(f"Settings that differ from their defaults:\n\n```json\n{settings}\n```")
    if metrics:
        parts.append(
            "## Last logged values\n\nEach the last one in the training's own log, which is no benchmark.\n\n"
            + _table(("metric", "value"), {name: f"{value:.4g}" for name, value in metrics.items()})
        )
    merge = (
        f"it cannot be merged ({agreement.no_merge});"
        if agreement.error is None
        else f"the merged model's differ by {agreement.error:.1e} (at most {agreement.tolerance:g} passes),"
    )
    parts.append(
        f"## Check\n\nOn two rows of 32 fixed tokens, in {agreement.dtype}, relative to the norm of the adapted model's "
        f"logits: {merge} the base's differ by {agreement.effect:.1e}."
    )
    return "\n\n".join(parts) + "\n"


def run_card(record: RunRecord, name: str, adapter: bool, canvas_length: int | None) -> str:
    """The README of a run's directory: what it is made from, by what, and how to sample from it in three lines.

    Args:
        record: the run's.
        name: of its directory.
        adapter: whether it holds an adapter rather than a whole model.
        canvas_length: tokens of its canvases; None if they had no length of their own, or the model is autoregressive.
    """
    from huggingface_hub import ModelCardData

    named = is_hub_name(record.base)
    data = ModelCardData(
        base_model=record.base if named else None,
        library_name="peft" if adapter else "transformers",
        datasets=record.data if record.data and is_hub_name(record.data) else None,
        pipeline_tag="token-classification" if record.stage == "prm" else "text-generation",
        tags=["lockstitch", *(["diffusion-language-model"] if record.family else []), *(["lora"] if adapter else [])],
    )
    shown = record.base if named else Path(model_name(record.base)).name
    kind = "A LoRA adapter for" if adapter else "Trained from"
    made = f"{kind} `{shown}`" + (f" at revision `{record.revision}`" if record.revision else "")
    rows = _facts(record)
    drawn = record.family is not None and record.stage != "prm"
    parts = [f"---\n{data.to_yaml()}\n---", f"# {name}", f"{made}; made with Lockstitch {__version__}."]
    parts.append(_table(("", ""), {key: value for key, value in rows.items() if value is not None}))
    parts += ["## Use it", f"`DIR` is this directory, or its name on the hub{'; `...` is a prompt' if drawn else ''}."]
    parts.append(_sampling(record, adapter, canvas_length))
    return "\n\n".join(parts) + "\n"


def _facts(record: RunRecord) -> dict[str, Any]:
    """What a run was, as rows of a table; None for what it does not say."""
    rewards = record.config.get("reward_funcs")
    return {
        "stage": record.stage,
        "preset": record.preset,
        "task": without_places(record.task),
        "data": Path(record.data).name if record.data else None,
        "rewards": ", ".join(Path(one).name for one in rewards) if rewards else None,
        "family": record.family,
    }


def _sampling(record: RunRecord, adapter: bool, canvas_length: int | None) -> str:
    if record.stage == "prm":
        task = str(without_places(record.task or "TASK")).partition(" (")[0]  # without the sum of its file
        return f"```console\nlockstitch stitch --task {task} --input FILE --scorer prm:DIR --output runs/scored\n```"
    if record.family is None:
        return _python(
            "from transformers import AutoModelForCausalLM", "", 'model = AutoModelForCausalLM.from_pretrained("DIR")'
        )
    place = ", ".join(['"DIR"', *(_told(record) if adapter else ())])
    length = canvas_length or 128
    return _python(
        "from lockstitch import Denoiser, SamplerConfig, sample",
        "",
        f"denoiser = Denoiser.from_pretrained({place})",
        f'(trajectory,) = sample(denoiser, ["..."], SamplerConfig(canvas_length={length}))',
    )


def _told(record: RunRecord | None) -> list[str]:
    """What loading must be told of an adapter's base, where its run was told: an adapter has no config of a model."""
    if record is None:
        return []
    said = {name: record.config.get(name) for name in ("family", "mask_id")}
    return [f"{name}={json.dumps(value)}" for name, value in said.items() if value is not None]


def _loading(base: str, revision: str | None, record: RunRecord | None, merged: bool, published: bool) -> str:
    """How to load it, and to sample from it: by Lockstitch, which knows how the base attends, and by plain transformers."""
    family = record.family if record is not None else None
    named = f'"{base if is_hub_name(base) or base.startswith(EMBEDDED) else "BASE"}"'
    said = [f'revision="{revision}"'] if revision else []
    if merged and published:
        read = _python("from lockstitch import Denoiser", "", 'denoiser = Denoiser.from_pretrained("DIR")')
        return "The names are those of the family's own code, which reads it; so does Lockstitch:\n\n" + read
    if merged:
        plain = _python(
            "from transformers import AutoModelForCausalLM", "", 'model = AutoModelForCausalLM.from_pretrained("DIR")'
        )
        if record is None or family is None:
            return plain
        length = record.config.get("max_completion_length") or record.config.get("canvas_length")
        return (
            f"{_sampling(record, False, length)}\n\nPlain transformers loads the same weights, for logits. Its `generate` "
            f"writes from left to right, which is not how this model writes:\n\n{plain}"
        )
    if record is not None and family is None:
        return _python(
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            "",
            f"base = AutoModelForCausalLM.from_pretrained({', '.join([named, *said])})",
            'model = PeftModel.from_pretrained(base, "DIR")',
        )
    if published:
        return "The names are those of the family's own code: put it on the base as that code loads it.\n\n" + _python(
            "from peft import PeftModel",
            "from transformers import AutoModel",
            "",
            f"base = AutoModel.from_pretrained({', '.join([named, *said, 'trust_remote_code=True'])})",
            'model = PeftModel.from_pretrained(base, "DIR")',
        )
    place = ", ".join(['"DIR"', *_told(record)])
    text = _python("from lockstitch import Denoiser", "", f"denoiser = Denoiser.from_pretrained({place})")
    text += (
        "\n\n`Denoiser` reads the base into transformers' own class, lets it attend as the family does, and puts the "
        "adapter on it."
    )
    if named == '"BASE"':
        text += " The base is a directory: `base_model_name_or_path` in adapter_config.json says where it lies."
    return text


def _python(*lines: str) -> str:
    return "```python\n" + "\n".join(lines) + "\n```"


def _table(head: tuple[str, str], rows: Mapping[str, Any]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return "\n".join(lines)
