"""What `lockstitch sample` can be told: its own options, and one for each field of the samplers' settings."""

import re
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from inspect import getdoc
from pathlib import Path
from typing import Any, get_type_hints

from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.presets import PRESETS
from lockstitch.sampling.uniform_config import MODEL_TYPE, UniformConfig

STDIN = "-"


@dataclass
class SampleOptions:
    """What `lockstitch sample` can be told beside the settings of the sampler."""

    model: str = field(
        metadata={
            "help": "A directory or hub name, of a model or an adapter (with its base), or embedded:NAME for one that "
            "comes with the package."
        }
    )
    adapter: str | None = field(
        default=None,
        metadata={
            "help": "An adapter to put on --model, whatever base it names: a directory or hub name, or embedded:NAME."
        },
    )
    prompt: str | None = field(
        default=None,
        metadata={
            "help": "One prompt. [[NAME:WIDTH]] in it is a blank of so many tokens to fill in; the name may be empty."
        },
    )
    input: str | None = field(
        default=None,
        metadata={
            "help": "Prompts: JSON Lines with 'prompt' and, if not all is open, 'canvas': token ids, "
            "null where a position is to be denoised; - reads them from standard input."
        },
    )
    task: str | None = field(
        default=None,
        metadata={
            "help": "Prompts of a task: a name that `lockstitch tasks` lists, a YAML file, "
            "file.py:attribute or module:attribute."
        },
    )
    source: str | None = field(
        default=None,
        metadata={
            "help": "Which rows of the task; by default its first source, or new held-out problems "
            "where it makes them up."
        },
    )
    prompt_form: str | None = field(
        default=None, metadata={"help": "How the task asks: tags, boxed, fenced or plain (default), as it has them."}
    )
    limit: int | None = field(
        default=None,
        metadata={
            "help": "Only the first so many prompts of input or task; so many new ones where a task makes them up."
        },
    )
    preset: str | None = field(
        default=None,
        metadata={
            "help": f"Named settings of the sampler; what is said beside it goes before what it says: "
            f"{', '.join(PRESETS)}."
        },
    )
    n: int = field(default=1, metadata={"help": "Trajectories per prompt. Default: 1."})
    seed: int = field(default=0, metadata={"help": "Seed of all noise. Default: 0."})
    chat_template: bool | None = field(
        default=None,
        metadata={
            "help": "Whether prompts without blanks go through the tokenizer's chat template; by default if there is "
            "one."
        },
    )
    system_prompt: str | None = field(default=None, metadata={"help": "What a conversation begins with."})
    output: str | None = field(
        default=None,
        metadata={"help": "Directory for results.jsonl and config.json. Without it the texts are printed."},
    )
    watch: bool = field(default=False, metadata={"help": "Draw each prompt's canvases while they are denoised."})
    html: str | None = field(default=None, metadata={"help": "Write a page with all traces to this file."})
    replies: str | None = field(
        default=None,
        metadata={
            "help": "Write all trajectories to this file of JSON Lines as an engine replies: tokens and denoising steps in "
            "the names of SGLang's replay contract. For block-causal models with --whole_blocks true --stop_at_eos "
            "false."
        },
    )
    family: str | None = field(
        default=None, metadata={"help": "How the model attends and predicts, if its config does not say."}
    )
    mask_id: int | None = field(
        default=None, metadata={"help": "The mask token, if neither tokenizer nor config says it."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code of a checkpoint of unknown type."})
    device: str | None = field(default=None, metadata={"help": "Default: the accelerator, if there is one."})
    compile: bool = field(
        default=False,
        metadata={
            "help": "Whether torch.compile makes code of the model's layers, at the first pass. Without a cache."
        },
    )
    chunk: int | None = field(
        default=None,
        metadata={
            "help": "Prompts worked on together; results are saved after each chunk. Default: 25, or 1 with --watch."
        },
    )
    color: str = field(default="auto", metadata={"help": "auto (default), always or never."})

    def __post_init__(self) -> None:
        from lockstitch.terminal import WHEN

        given = [name for name in ("prompt", "input", "task") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"say what to sample from, once: --prompt, --input or --task (given: {' and '.join(given) or 'none'})"
            )
        for name, of in (("source", ("task",)), ("prompt_form", ("task",)), ("limit", ("task", "input"))):
            if getattr(self, name) is not None and given[0] not in of:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} would be ignored with --{given[0]}: it goes with "
                    f"--{' and --'.join(of)}"
                )
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"preset={self.preset!r} is not one of {', '.join(PRESETS)}")
        for name in ("n", "chunk", "limit"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
        if self.watch and self.chunk not in (None, 1):
            raise ValueError(f"chunk={self.chunk} does not go with watch, which draws one prompt at a time: 1")
        if self.mask_id is not None and (type(self.mask_id) is not int or self.mask_id < 0):
            raise ValueError(f"mask_id={self.mask_id!r} must be a token id")
        if type(self.seed) is not int:
            raise ValueError(f"seed={self.seed!r} must be a whole number")
        if self.color not in WHEN:
            raise ValueError(f"color={self.color!r} is not one of {', '.join(WHEN)}")
        for name in ("html", "replies"):
            value = getattr(self, name)
            if value is not None and (Path(value).is_dir() or not Path(value).parent.is_dir()):
                raise ValueError(f"{name}={value!r} must be a file in a directory that exists")


def field_help(record: type) -> dict[str, str]:
    """What a dataclass's docstring says of each field under `Attributes:`."""
    _, _, section = (getdoc(record) or "").partition("Attributes:\n")
    entries = re.findall(r"^    (\w+(?:, \w+)*): (.*(?:\n     .*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}


def sampler_options() -> type:
    """A dataclass with an option for each field of `SamplerConfig` and of `UniformConfig`: None where it is not said."""
    options: dict[str, tuple[str, Any, Any]] = {}
    for record in (SamplerConfig, UniformConfig):
        types, said = get_type_hints(record), field_help(record)
        for one in fields(record):
            text = said[one.name]
            if record is UniformConfig:
                text = f"{MODEL_TYPE}: {text} Default: the checkpoint's."
            elif one.default not in (MISSING, None):
                text += f" Default: {one.default}."
            text = text[:1].upper() + text[1:]
            metadata = {"help": text.replace("%", "%%")}
            options.setdefault(one.name, (one.name, types[one.name] | None, field(default=None, metadata=metadata)))
    return make_dataclass("SamplerOptions", options.values())
