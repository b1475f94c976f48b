"""Who draws the rollouts of `DiffusionGRPOTrainer`, as settings: this process, or an inference engine."""

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from lockstitch.server import Retries

ENGINES = ("transformers", "sglang")
# Set where the server is started, not by a request: what an engine would ignore.
_SERVERS = (
    "preset",
    "steps",
    "policy",
    "threshold",
    "fallback",
    "factor",
    "entropy_bound",
    "window",
    "window_limit",
    "certainty",
    "cache",
    "cfg_scale",
)
_ENGINES = ("rollout_engine_url", "rollout_engine_timeout", "rollout_engine_attempts", "rollout_engine_weights")


@dataclass
class RolloutEngineConfig:
    """Who draws the rollouts."""

    rollout_engine: str = field(
        default="transformers",
        metadata={
            "help": "Who draws the rollouts: transformers (default), our own sampler on the model that is trained, or "
            "sglang, a server with per-request draws and denoising step maps (SGLang's open pull request 27943; "
            "tested here against a server of our own that speaks its contract, not against SGLang)."
        },
    )
    rollout_engine_url: str | None = field(
        default=None, metadata={"help": "The engine's address, http://127.0.0.1:30000 say. A key: SGLANG_API_KEY."}
    )
    rollout_engine_timeout: float | None = field(
        default=None, metadata={"help": "Seconds that a request to the engine may take; None is 600."}
    )
    rollout_engine_attempts: int | None = field(
        default=None, metadata={"help": "How often a request to the engine is tried; None is 5."}
    )
    rollout_engine_weights: str | None = field(
        default=None,
        metadata={
            "help": "Directory that trainer and engine both see, in whose folder rollout_weights weights go to the "
            "engine; None is output_dir."
        },
    )

    def check_rollout_engine(self) -> None:
        """Raises `ValueError` for what the engine, or its absence, would ignore."""
        if self.rollout_engine not in ENGINES:
            raise ValueError(f"rollout_engine={self.rollout_engine!r} is not one of {', '.join(ENGINES)}")
        if self.rollout_engine == "transformers":
            for name in _ENGINES:
                if getattr(self, name) is not None:
                    # Without its value: an address may hold a password.
                    raise ValueError(f"{name} would be ignored: rollout_engine={self.rollout_engine!r}")
            return
        self._check_url()
        asked: dict[str, Any] = self.engine_retries
        for name, value in asked.items():
            kind: Any = int if name == "attempts" else (int, float)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ValueError(f"rollout_engine_{name}={value!r} is no number")
            try:
                Retries(**{name: value})
            except ValueError as error:
                raise ValueError(f"rollout_engine_{error}") from None
        if not isinstance(self.rollout_engine_weights, str | None):
            raise ValueError(f"rollout_engine_weights={self.rollout_engine_weights!r} is no directory")
        for name in _SERVERS:
            if (value := getattr(self, name)) is not None:
                raise ValueError(
                    f"{name}={value!r} would be ignored by rollout_engine={self.rollout_engine!r}, whose server is "
                    "started with its own algorithm, threshold and blocks"
                )
        for name, value, why in (
            ("scope", "canvas", "which stops after the block with EOS"),
            ("estimator", "forks", "which does not tell forks"),
        ):
            if getattr(self, name) == value:
                raise ValueError(f"{name}={value!r} does not go with rollout_engine={self.rollout_engine!r}, {why}")
        for name, only in (
            ("top_entropy_quantile", 1.0),
            ("surprisal_temperature", None),
            ("position_temperature", None),
        ):
            if (value := getattr(self, name)) != only:
                raise ValueError(
                    f"{name}={value!r} does not go with rollout_engine={self.rollout_engine!r}, which tells no entropies "
                    "and no confidences"
                )

    def _check_url(self) -> None:
        if self.rollout_engine_url is None:
            raise ValueError(f"rollout_engine={self.rollout_engine!r} needs rollout_engine_url, http://HOST:PORT")
        if not isinstance(self.rollout_engine_url, str):
            raise ValueError(f"rollout_engine_url={self.rollout_engine_url!r} is no address: http://HOST:PORT")
        parts = urlsplit(self.rollout_engine_url)
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                "rollout_engine_url holds a user, a password or a query, which every checkpoint would keep: "
                "http://HOST:PORT alone, with the key in SGLANG_API_KEY"
            )
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"rollout_engine_url={self.rollout_engine_url!r} is no address: http://HOST:PORT")

    @property
    def engine_retries(self) -> dict[str, Any]:
        """How the engine is asked: fields of `lockstitch.server.Retries`."""
        timeout, attempts = self.rollout_engine_timeout, self.rollout_engine_attempts
        return {"timeout": 600.0 if timeout is None else timeout, "attempts": 5 if attempts is None else attempts}
