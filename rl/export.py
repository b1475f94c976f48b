"""A trained adapter, packed to be given away: as a PEFT directory or merged into its base, checked either way.

The base is loaded in its own dtype, never quantised, and the adapter put on it; merged and adapted logits are compared on
a probe, the base is seen to be restored, and what was written is loaded by plain PEFT or transformers and compared once
more. The output directory is there whole or not at all. Under `names=published` all of it has the names of the family's own
code, and is read back from there. Leaves out adapters other than LoRA, and weights in pickles.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockstitch.rl.run_record import RunRecord, read_run
from lockstitch.sampling.adapter_files import ADAPTER_CONFIG, ADAPTER_FACTS, ADAPTER_WEIGHTS

from lockstitch import model_path
from lockstitch.files import lock, to_json

if TYPE_CHECKING:
    from lockstitch.rl.merge import Agreement

STAGES = 5
NAMES = ("native", "published")
Report = Callable[[str], None]


@dataclass(frozen=True)
class ExportConfig:
    """What to export, and as what.

    Attributes:
        adapter: a directory with an adapter, or a run's output directory (its last checkpoint counts if it has none itself).
        output: a directory that is not there yet, or empty.
        merge: write the merged model instead of the adapter.
        push: upload the output to the hub as well.
        hub_model_id: its name there; by default that of the output directory, under the user's own name.
        private: whether the repository is made a private one.
        base: the base to use and to name, where the adapter's own says something else (a path of the training machine);
            `embedded:NAME` is one that comes with the package.
        revision: the base's revision.
        trust_remote_code: run the code of a base of unknown type.
        names: `native`, transformers' own, or `published`, those of the base's own code.
    """

    adapter: Path
    output: Path
    merge: bool = False
    push: bool = False
    hub_model_id: str | None = None
    private: bool = False
    base: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    names: str = "native"

    def __post_init__(self) -> None:
        if self.names not in NAMES:
            raise ValueError(f"names={self.names!r} is not one of {', '.join(NAMES)}")
        if not self.adapter.is_dir():
            raise ValueError(f"adapter={str(self.adapter)!r} is not a directory")
        if self.output.exists() and not (self.output.is_dir() and not any(self.output.iterdir())):
            raise ValueError(f"output={str(self.output)!r} is there and not an empty directory; choose another")
        if self.output.resolve() == Path.cwd():
            raise ValueError(
                f"output={str(self.output)!r} is the working directory, which cannot be replaced; choose another"
            )
        for name in ("hub_model_id", "private"):
            if getattr(self, name) and not self.push:
                raise ValueError(f"{name}={getattr(self, name)!r} would be ignored without push")


@dataclass(frozen=True)
class _Source:
    """The adapter's directory and config, its run's record if there is one, and the base."""

    directory: Path
    adapter: Mapping[str, Any]
    record: RunRecord | None
    base: str
    revision: str | None
    trust_remote_code: bool

    def load_base(self, place: str | None = None) -> Any:
        """The base, or another model of its kind at `place`, that attends as the run's did and says so when it is saved."""
        from lockstitch.sampling.adapter_files import read_facts
        from lockstitch.sampling.adapters import load_plain, to_train_from
        from lockstitch.sampling.denoiser import Denoiser
        from lockstitch.sampling.families import FACTS, family_of, translation_of
        from lockstitch.sampling.loading import is_remote, read_config

        revision = self.revision if place is None else None
        path = place or self.base
        raw = read_config(path, revision)
        # What the adapter says of itself goes before what its base is, and before what its run was told.
        own = read_facts(self.directory) or {}
        family = own.get("family") or (self.record.family if self.record is not None else None)
        told = FACTS in raw or translation_of(raw) is not None
        if is_remote(raw) or family is not None or (self.record is None and told):
            mask_id = self.record.config.get("mask_id") if self.record is not None else None
            denoiser = Denoiser.from_pretrained(
                path,
                family=None if told else family,
                mask_id=own.get("mask_token_id", mask_id),
                revision=revision,
                trust_remote_code=self.trust_remote_code and is_remote(raw),
            )
            if own:
                denoiser = denoiser.read_as(family_of({FACTS: own}), own["mask_token_id"])
            return to_train_from(denoiser.model, path)
        return to_train_from(load_plain(path, revision), path)

    def adapted(self, base: Any, place: Path | None = None) -> Any:
        """The adapter, or one at `place`, on a base; also where its names are those of the family's own code."""
        from lockstitch.sampling.adapters import put_on

        return put_on(base, place or self.directory)


def adapter_directory(directory: Path) -> Path:
    """Where a run's adapter is: in the directory itself or in its last checkpoint; `ValueError` if in neither."""
    from lockstitch.rl.model_card import checkpoints

    for place in (directory, *checkpoints(directory)):
        if (place / ADAPTER_CONFIG).is_file():
            if not (place / ADAPTER_WEIGHTS).is_file():
                raise ValueError(f"{place} has an {ADAPTER_CONFIG} but no {ADAPTER_WEIGHTS}")
            return place
    what = "a whole model, not an adapter" if (directory / "config.json").is_file() else "no adapter"
    raise ValueError(f"{directory} holds {what}: there is no {ADAPTER_CONFIG} in it, nor in a checkpoint of it")


def _source(config: ExportConfig) -> _Source:
    directory = adapter_directory(config.adapter)
    try:
        adapter = dict(json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{directory / ADAPTER_CONFIG} is no adapter's config: {error}") from error
    if adapter.get("peft_type") != "LORA":
        raise ValueError(f"{directory} holds an adapter of type {adapter.get('peft_type')!r}; LORA alone is exported")
    record = read_run(config.adapter)
    base = config.base or adapter.get("base_model_name_or_path") or (record.base if record else None)
    if not base:
        raise ValueError(f"{directory / ADAPTER_CONFIG} names no base; say which it is with --base")
    revision = config.revision
    if revision is None and config.base is None:
        revision = adapter.get("revision") or (record.revision if record else None)
    if Path(model_path(base)).is_dir():
        if config.revision is not None:
            raise ValueError(f"revision={config.revision!r} would be ignored: the base {base!r} is on this machine")
        revision = None
    return _Source(directory, adapter, record, base, revision, config.trust_remote_code)


def _published(model: Any) -> Mapping[str, Any]:
    """The config.json that a base was published with, empty where it is of transformers' own."""
    from lockstitch.sampling.families import FACTS

    facts: Mapping[str, Any] = getattr(model.config, FACTS, None) or {}
    return facts.get("published_config") or {}


def _check_base(path: str, revision: str | None, names: str) -> None:
    """Raises `ValueError` for a base that is missing or quantised, or has no published names to go back to."""
    from lockstitch.sampling.families import FACTS, translation_of
    from lockstitch.sampling.loading import read_config

    try:
        raw = read_config(path, revision)
    except ValueError as error:
        raise ValueError(
            f"the adapter's base {path!r} cannot be loaded; say where it is with --base, a directory or a hub "
            f"name ({error})"
        ) from error
    if raw.get("quantization_config") is not None:
        raise ValueError(
            f"the base {path!r} is quantised: an adapter cannot be merged into its rounded weights without "
            "loss, nor checked by it; name the model that it was quantised from with --base"
        )
    kept = (raw.get(FACTS) or {}).get("published_config")
    if names == "published" and translation_of(kept or raw) is None:
        raise ValueError(
            f"names=published: the base {path!r} is of type {raw['model_type']!r}, whose names are transformers' own "
            "already; names=native"
        )


def _check_push(base: str) -> None:
    from huggingface_hub import get_token, is_offline_mode
    from lockstitch.rl.model_card import is_hub_name

    if not is_hub_name(base):
        raise ValueError(
            f"push: the base {base!r} is a path, which nobody else can load; name it with --base OWNER/NAME"
        )
    if is_offline_mode():
        raise ValueError("push: the hub is switched off (HF_HUB_OFFLINE)")
    if get_token() is None:
        raise ValueError("push: no token for the hub; `hf auth login`, or set HF_TOKEN")


def export(config: ExportConfig, report: Report = lambda _: None) -> dict[str, Any]:
    """Exports and returns what was done: `output`, `base`, `merged`, the agreement's numbers, and `url` if it was pushed.

    `report` is called with the name of each of the `STAGES`. Raises `ValueError` for what cannot be exported, before any
    weights are loaded where that can be known.
    """
    source = _source(config)
    if config.push:
        _check_push(source.base)
    _check_base(source.base, source.revision, config.names)
    partial = _partial(config.output)

    try:
        agreement = _write(config, source, partial, report)
        os.replace(partial, config.output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    done = {"output": str(config.output), "base": source.base, "merged": config.merge, **asdict(agreement)}
    return done | ({"url": _push(config)} if config.push else {})


def _write(config: ExportConfig, source: _Source, partial: Path, report: Report) -> "Agreement":
    """Writes the export, checked before and after; how well merged and adapted model agree."""
    from lockstitch.rl.merge import check_merge
    from lockstitch.rl.model_card import last_metrics, model_card
    from lockstitch.sampling.adapters import no_merge
    from lockstitch.sampling.loading import save_published

    report("base")
    model = source.load_base()
    report("adapter")
    adapted = source.adapted(model)
    if config.merge and (reason := no_merge(adapted)) is not None:
        raise ValueError(f"{reason}. Export it without --merge, or train an adapter of the blocks, ungated")
    report("check")
    agreement, expected_BLV = check_merge(adapted)
    steps, metrics = last_metrics(config.adapter)
    card = model_card(
        source.base,
        source.revision,
        source.adapter,
        agreement,
        source.record,
        steps,
        metrics,
        config.merge,
        config.names == "published",
    )

    report("write")
    if config.merge and config.names == "published":
        save_published(adapted.merge_and_unload(safe_merge=True), partial)
    elif config.merge:
        adapted.merge_and_unload(safe_merge=True).save_pretrained(partial)
    else:
        _write_adapter(source, partial, config.names, adapted)
    _write_tokenizer(source, partial)
    (partial / "README.md").write_text(card, encoding="utf-8")
    del adapted, model
    report("read back")
    _read_back(source, partial, config.merge, expected_BLV, agreement.tolerance)
    return agreement


def _partial(output: Path) -> Path:
    """Where an output is written before it takes its place: this process's own, and empty, whoever was killed in it.

    Raises `ValueError` where another process writes there.
    """
    partial = output.parent / f".{output.name}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    lock(partial)
    for left in partial.iterdir():
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()
    return partial


def _write_adapter(source: _Source, output: Path, names: str, adapted: Any) -> None:
    """The weights under the names that were asked for, and the config with the base that was used and checked."""
    from lockstitch.sampling.adapter_names import in_published_names, native_adapter, published_adapter
    from lockstitch.sampling.families import translation_of
    from safetensors.torch import load_file, save_file

    base = adapted.get_base_model()
    translation, config = translation_of(_published(base)), source.adapter
    weights = load_file(source.directory / ADAPTER_WEIGHTS)
    is_published = translation is not None and in_published_names(weights, translation)
    if translation is not None and is_published != (names == "published"):
        renamed = native_adapter if is_published else published_adapter
        weights, config = renamed(weights, config, translation, base)
    save_file(weights, output / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    named = {"base_model_name_or_path": source.base, "revision": source.revision, "inference_mode": True}
    (output / ADAPTER_CONFIG).write_text(to_json({**config, **named}), encoding="utf-8")
    if (source.directory / ADAPTER_FACTS).is_file():
        shutil.copy(source.directory / ADAPTER_FACTS, output)


def _write_tokenizer(source: _Source, output: Path) -> None:
    """The tokenizer that the run left beside the adapter, with its chat template, else the base's."""
    from lockstitch.sampling.loading import load_tokenizer
    from transformers import AutoTokenizer

    trust = source.trust_remote_code
    if (source.directory / "tokenizer_config.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(source.directory, trust_remote_code=trust)
    else:
        tokenizer = load_tokenizer(source.base, source.revision, trust)
    tokenizer.save_pretrained(output)


def _read_back(source: _Source, output: Path, merged: bool, expected_BLV: Any, tolerance: float) -> None:
    """Loads what was written and compares its logits with the adapted model's."""
    from lockstitch.rl.merge import probe_logits, relative

    model = source.load_base(str(output)) if merged else source.adapted(source.load_base(), output)
    error = relative(probe_logits(model), expected_BLV)
    if not error <= tolerance:
        raise ValueError(
            f"what was written gives logits {error:.1e} from the adapted model's; at most {tolerance:g} passes"
        )


def _push(config: ExportConfig) -> str:
    from huggingface_hub import HfApi

    api = HfApi()
    name = config.hub_model_id or config.output.resolve().name
    repository = api.create_repo(name, private=config.private, exist_ok=True)
    api.upload_folder(repo_id=repository.repo_id, folder_path=config.output)
    return str(repository)
