"""Our models as one of lm-evaluation-harness's: `--model lockstitch`.

- `generate_until`: the sampler, on a canvas of the task's `max_gen_toks` tokens; the text is cut at the first stop string.
- `loglikelihood`, `loglikelihood_rolling`: the masked-diffusion lower bound on log p(text | context), by Monte Carlo
  (LLaDA, 2502.09992, Eq. 6): the mean over samples of `n / m * sum over the m masked tokens of log p(token | context, the
  rest)`, n the text's tokens and m uniform on 1..n. The m are drawn in equal strata, as in LLaDA's own evaluation, and masks
  are the same for the choices of a question that are as long. A text of one token has one pass, which is exact.
- Whether a text is what greedy decoding writes: whether the sampler writes it at temperature 0, a token a step.

Noise depends on `seed` and on the context, not on batches, nor on what else is asked. Leaves out several processes.
"""

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from lockstitch.rl.estimator_config import EstimatorConfig
from lockstitch.rl.estimators import elbo_passes
from lockstitch.rl.scoring import Canvases, Scorer
from lockstitch.sampling.config import SamplerConfig
from lockstitch.sampling.denoiser import Denoiser
from lockstitch.sampling.layouts import check_layout, in_blocks_of
from lockstitch.sampling.loop import sample
from lockstitch.sampling.noise import derive_seed
from lockstitch.sampling.presets import PRESETS, layered
from tqdm import tqdm

NAME = "lockstitch"
_LENGTH = 256  # the harness's own default of max_gen_toks
_CONTEXT = 2048  # positions of a window, where a model does not say how many it was made for
Pair = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Asked:
    """What a request for a text asks: the settings of the sampler, stop strings, and the most tokens."""

    config: SamplerConfig
    until: Sequence[str]
    most: int


@register_model(NAME)
class HarnessModel(TemplateLM):  # type: ignore[misc]
    """A diffusion model with its sampler and its likelihood bound.

    Args:
        pretrained: a directory, a hub name or `embedded:NAME`, of a model or an adapter.
        peft: an adapter to put on it.
        revision, family, mask_id, trust_remote_code, dtype, device: as `Denoiser.from_pretrained` takes them.
        batch_size: most rows in one forward pass.
        max_batch_size: None; batches are not searched for.
        seed: of all noise.
        num_samples: Monte Carlo samples of the bound for each text; LLaDA's 128.
        mask_schedule, mask_distribution: how they are drawn, as in `EstimatorConfig`.
        max_length: most tokens of context and text together; by default what the model was made for. Longer contexts lose
            their beginning.
        preset: named settings of the sampler.
        settings: fields of `SamplerConfig`, which go before the preset's. `canvas_length` goes before a task's
            `max_gen_toks`, `temperature` before its greedy decoding.

    Raises `ValueError` for an argument that is none of these, and for what does not fit the model.
    """

    def __init__(
        self,
        pretrained: str,
        peft: str | None = None,
        revision: str | None = None,
        family: str | None = None,
        mask_id: int | None = None,
        trust_remote_code: bool = False,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        seed: int = 0,
        num_samples: int = 128,
        mask_schedule: str = "stratified",
        mask_distribution: str = "count",
        max_length: int | None = None,
        preset: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.settings = _sampler_settings(preset, settings)
        self.batch_size = _whole("batch_size", int(batch_size) if str(batch_size).isdigit() else batch_size)
        self.seed = seed
        self.estimator = EstimatorConfig(
            num_samples=num_samples, mask_schedule=mask_schedule, mask_distribution=mask_distribution
        )
        self._usual()
        if peft is not None and revision is not None:
            raise ValueError(
                f"revision={revision!r} with peft={peft!r} could be the adapter's or the model's: name directories"
            )
        self.denoiser = Denoiser.from_pretrained(
            pretrained if peft is None else f"{peft}@{pretrained}",
            family=family,
            mask_id=mask_id,
            trust_remote_code=trust_remote_code,
            dtype=dtype,
            device=device,
            revision=revision,
        )
        self.tokenizer = self.denoiser.tokenizer
        self._device = self.denoiser.device
        self._named = pretrained if peft is None else f"{pretrained}+{peft}"
        longest = self.denoiser.longest or _CONTEXT
        self.max_length = longest if max_length is None else _whole("max_length", max_length)
        if self.denoiser.longest is not None and self.max_length > longest:
            raise ValueError(
                f"max_length={max_length} is more than the {longest} positions that the model was made for"
            )
        check_layout(in_blocks_of(self._usual(), self.denoiser.family), self.denoiser.family, self.denoiser.calling)

    # --- what the harness asks of any model --------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The end of a text, which stands for an empty context."""
        return self.denoiser.eos_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: the beginning of a text, or the end of the one before."""
        begins: int | None = self.tokenizer.bos_token_id
        return self.eot_token_id if begins is None else begins

    @property
    def tokenizer_name(self) -> str:
        """A name for the harness's cache of prompts."""
        return self._named.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text as it is, without special tokens of the tokenizer's own."""
        return self.denoiser.encode([string])[0]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the tokenizer's template writes it; `ValueError` where there is none."""
        if self.tokenizer.chat_template is None:
            raise ValueError(f"apply_chat_template: the tokenizer of {self._named!r} has no chat template")
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    # --- texts -------------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """A text for each request, cut before the first of its stop strings."""
        asked = [(context, dict(said)) for context, said in (request.args for request in requests)]
        seeds = _seeds(self.seed, [context for context, _ in asked])
        groups: dict[SamplerConfig, list[int]] = {}
        wanted = [self._asked(said) for _, said in asked]
        for i, one in enumerate(wanted):
            groups.setdefault(one.config, []).append(i)
        texts: dict[int, str] = {}
        with tqdm(total=len(asked), desc="Sampling", disable=disable_tqdm) as bar:
            for config, group in groups.items():
                prompts = [self._context(self.tok_encode(asked[i][0]), config.canvas_length) for i in group]
                drawn = sample(self.denoiser, prompts, config, seed=[seeds[i] for i in group], progress=bar.update)
                texts |= {i: self._cut(one.completion_ids, wanted[i]) for i, one in zip(group, drawn, strict=True)}
        for i, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, texts[i])
        return [texts[i] for i in range(len(asked))]

    def _config(self, canvas_length: int, **over: Any) -> SamplerConfig:
        said = {**self.settings, "batch_size": self.batch_size, "canvas_length": canvas_length, **over}
        return SamplerConfig(**{name: value for name, value in said.items() if value is not None})

    def _usual(self) -> SamplerConfig:
        """The settings for a canvas of whatever length goes with them."""
        return self._config(self.settings.get("canvas_length") or self.settings.get("block_length") or _LENGTH)

    def _asked(self, said: dict[str, Any]) -> "Asked":
        """What a request asks of the sampler; `ValueError` for generation arguments that would be ignored."""
        wanted = dict(normalize_gen_kwargs(said, _LENGTH))
        until = [stop for stop in wanted.pop("until", None) or [] if stop]
        most = wanted.pop("max_gen_toks")
        length = self.settings.get("canvas_length") or self._in_whole_blocks(most)
        sampled, temperature = wanted.pop("do_sample", None), wanted.pop("temperature", 0.0)
        mine = self.settings.get("temperature")
        if mine is None:
            over = {"temperature": float(temperature) if sampled or temperature else 0.0}
        elif sampled and temperature and float(temperature) != mine:
            raise ValueError(
                f"temperature={mine} in model_args and {temperature} in generation arguments: say one of them"
            )
        else:
            over = {}
        over |= {name: wanted.pop(name) for name in ("top_k", "top_p") if name in wanted and name not in self.settings}
        if wanted:
            read = "until, max_gen_toks, do_sample, temperature, top_k, top_p"
            raise ValueError(
                f"generation arguments {', '.join(map(repr, wanted))} would be ignored; read are {read}, and "
                "in model_args all of the sampler's"
            )
        return Asked(in_blocks_of(self._config(length, **over), self.denoiser.family), until, most)

    def _in_whole_blocks(self, length: int) -> int:
        """A canvas of at least so many tokens that blocks divide; what is beyond them is cut off."""
        block: int | None = self.settings.get("block_length")
        if block is None:  # the model's own, of which a short canvas is a part
            block = min(self.denoiser.family.block_length or length, length)
        return length if self.settings.get("whole_blocks") else length + -length % block

    def _context(self, ids: list[int], room: int) -> list[int]:
        """A context without its beginning, where it and `room` more tokens are more than fit."""
        kept = max(self.max_length - room, 1)
        return (ids or [self.prefix_token_id])[-kept:]

    def _cut(self, ids: Sequence[int], asked: "Asked") -> str:
        """The text of a completion before the first stop string, of which special tokens may be one."""
        end = min(len(ids), self.settings.get("canvas_length") or asked.most)
        for stop in asked.until:
            token = self.tokenizer.convert_tokens_to_ids(stop)
            if token in self.tokenizer.all_special_ids and token in ids[:end]:
                end = list(ids).index(token)
        text = self.denoiser.decode([ids[:end]])[0]
        return text[: min((at for stop in asked.until if (at := text.find(stop)) >= 0), default=len(text))]

    # --- likelihoods -------------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._fitted(context, text) for _, context, text in requests]
        bounds = self.bounds(pairs, disable_tqdm)
        greedy = self.is_greedy(pairs)
        for i, (texts, _, _) in enumerate(requests):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, (bounds[i], greedy[i]))
        return list(zip(bounds, greedy, strict=True))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The bound of whole texts, in windows of `max_length` tokens, each given as much of what is before as fits."""
        pairs: list[Pair] = []
        owner: list[int] = []
        for i, request in enumerate(requests):
            (text,) = request.args
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length - 1, 1)
            found = [make_disjoint_window(window) for window in windows]
            pairs += found
            owner += [i] * len(found)
        totals = [0.0] * len(requests)
        for i, bound in zip(owner, self.bounds(pairs, disable_tqdm), strict=True):
            totals[i] += bound
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _fitted(self, context: list[int], text: list[int]) -> Pair:
        if len(text) >= self.max_length:
            raise ValueError(
                f"a text of {len(text)} tokens is to be scored; max_length={self.max_length} leaves room for "
                f"{self.max_length - 1} beside a context"
            )
        return self._context(context, len(text)), text

    @torch.inference_mode()
    def bounds(self, pairs: Sequence[Pair], disable_tqdm: bool = True) -> list[float]:
        """The lower bound on log p(text | context) in nats, for pairs of token ids of a context and a text."""
        found = [0.0] * len(pairs)
        block = in_blocks_of(self._usual(), self.denoiser.family).block
        with tqdm(total=len(pairs), desc="Likelihoods", disable=disable_tqdm) as bar:
            for length, group in _by_length(pairs):
                if length:
                    fits = None if self.denoiser.family.layout == "full" else min(block, length)
                    scorer = Scorer(self.denoiser, self.denoiser.model, block_length=fits)
                    for start in range(0, len(group), self.batch_size):
                        rows = group[start : start + self.batch_size]
                        for i, value in zip(rows, self._bound([pairs[i] for i in rows], scorer), strict=True):
                            found[i] = value
                        bar.update(len(rows))
                else:
                    bar.update(len(group))
        return found

    def _bound(self, pairs: Sequence[Pair], scorer: Scorer) -> list[float]:
        """Bounds of texts of one length: all passes of all samples, `batch_size` rows at a time."""
        canvases = _canvases(pairs, self.denoiser, self.seed)
        length = canvases.completion_BG.shape[1]
        samples = 1 if length == 1 else self.estimator.samples  # of one token all masks are the same
        config = EstimatorConfig(
            num_samples=samples,
            mask_schedule=self.estimator.mask_schedule,
            mask_distribution="count" if length == 1 else self.estimator.mask_distribution,
        )
        one_pass = partial(elbo_passes, config, scorer, canvases, 0)
        passes = [p for sample_of in range(samples) for p in one_pass(sample_of)]
        shown_RG, asked_RG = torch.cat([p.shown_BG for p in passes]), torch.cat([p.asked_BG for p in passes])
        weight_R = torch.cat([p.weight_B.double() for p in passes])
        row_R = torch.arange(len(pairs), device=shown_RG.device).repeat(len(passes))
        sum_R = torch.zeros(len(row_R), dtype=torch.float64, device=shown_RG.device)
        for start in range(0, len(row_R), self.batch_size):
            part = slice(start, start + self.batch_size)
            logp_RG = scorer(canvases.rows(row_R[part]), shown_RG[part], asked_RG[part])
            sum_R[part] = weight_R[part] * logp_RG.double().sum(1)
        divisor = 1 if config.mask_schedule == "quadrature" else samples
        return [float(value) for value in sum_R.view(-1, len(pairs)).sum(0) / divisor]

    def _one_by_one(self, length: int) -> SamplerConfig:
        """A token a step at temperature 0, on a canvas of any length: its last block may be part of one, or it all one."""
        family, block = self.denoiser.family, in_blocks_of(self._usual(), self.denoiser.family).block_length
        if block is not None and (length < block or length % block):
            block = block if family.layout == "block_causal" and length > block else length
        return SamplerConfig(
            canvas_length=length,
            block_length=block,
            policy="threshold",
            threshold=1.1,
            whole_blocks=block is not None and length % block != 0,
            batch_size=self.batch_size,
        )

    def is_greedy(self, pairs: Sequence[Pair]) -> list[bool]:
        """Whether the sampler writes just these texts at temperature 0 and one token a step."""
        found = [False] * len(pairs)
        for length, group in _by_length(pairs):
            if not length:
                continue
            config = self._one_by_one(length)
            for i, one in zip(group, sample(self.denoiser, [pairs[i][0] for i in group], config), strict=True):
                found[i] = list(one.canvas_ids[:length]) == list(pairs[i][1])
        return found


def _sampler_settings(preset: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What was said of the sampler; `ValueError` for a preset or a name that there is not, with those that there are."""
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"preset={preset!r} is not one of {', '.join(PRESETS)}")
    known = [one.name for one in fields(SamplerConfig) if one.name != "batch_size"]
    unknown = [name for name in settings if name not in known]
    if unknown:
        own = (
            "pretrained, peft, revision, family, mask_id, trust_remote_code, dtype, seed, num_samples, mask_schedule, "
            "mask_distribution, max_length, preset"
        )
        raise ValueError(
            f"model_args has {', '.join(map(repr, unknown))}, which nothing reads; there are {own}, and the "
            f"sampler's {', '.join(known)}"
        )
    return dict(settings) if preset is None else layered(preset, settings)


def _whole(name: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
    return value


def _seeds(seed: int, texts: Sequence[str]) -> list[int]:
    """A seed for each request by its text, and by how often that was asked before."""
    before: Counter[str] = Counter()
    found = []
    for text in texts:
        found.append(derive_seed(seed, zlib.crc32(text.encode()), before[text]))
        before[text] += 1
    return found


def _by_length(pairs: Sequence[Pair]) -> list[tuple[int, list[int]]]:
    """Indices of pairs by their text's length, the longest first and within a length by that of the context."""
    groups: dict[int, list[int]] = {}
    for i in sorted(range(len(pairs)), key=lambda i: (-len(pairs[i][1]), -len(pairs[i][0]))):
        groups.setdefault(len(pairs[i][1]), []).append(i)
    return list(groups.items())


def _canvases(pairs: Sequence[Pair], denoiser: Denoiser, seed: int) -> Canvases:
    """The rows to score; the seed of a row's masks follows from its context."""
    width = max(len(context) for context, _ in pairs)
    lead = [width - len(context) for context, _ in pairs]
    completion_BG = torch.tensor([text for _, text in pairs], device=denoiser.device)
    prompts = [[denoiser.pad_id] * n + context for n, (context, _) in zip(lead, pairs, strict=True)]
    real = [[0] * n + [1] * (width - n) for n in lead]
    seeds = [derive_seed(seed, zlib.crc32(repr(context).encode())) for context, _ in pairs]
    return Canvases(
        prompt_BP=torch.tensor(prompts, device=denoiser.device),
        prompt_mask_BP=torch.tensor(real, device=denoiser.device),
        completion_BG=completion_BG,
        valid_BG=torch.ones_like(completion_BG, dtype=torch.bool),
        seeds_B=torch.tensor(seeds, device=denoiser.device),
    )
