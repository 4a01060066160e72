"""Read what the simulated server is told: its arguments and its environment."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class KnobError(ValueError):
    """A variable holds what it can't."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """How the server behaves; the names follow VBATCH_SIM_*."""

    lines_per_second: float = 0.0
    latency_seconds: float = 0.0
    tokens_per_second: float = 0.0
    startup_seconds: float = 0.0
    startup_fail: bool = False
    concurrency: int = 0
    contention: float = 0.0
    failure_rate: float = 0.0
    wake_garbles: bool = False
    request_log: str = ""
    orders: str = ""

    @property
    def instant(self) -> bool:
        """Tell whether a request with a free place is answered without any wait."""
        return not (self.lines_per_second or self.latency_seconds or self.tokens_per_second)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Knobs:
        """Read the variables; an empty one counts as unset."""

        def number(name: str, *, most: float = float("inf")) -> float:
            text = environment.get(name, "") or "0"
            try:
                value = float(text)
            except ValueError:
                raise KnobError(f"{name} is not a number: {text!r}") from None
            if not 0 <= value <= most:
                raise KnobError(f"{name} is out of range: {text!r}")
            return value

        return cls(
            lines_per_second=number("VBATCH_SIM_LINES_PER_SECOND"),
            latency_seconds=number("VBATCH_SIM_LATENCY_MS") / 1000,
            tokens_per_second=number("VBATCH_SIM_TOKENS_PER_SECOND"),
            startup_seconds=number("VBATCH_SIM_STARTUP"),
            startup_fail=bool(number("VBATCH_SIM_STARTUP_FAIL", most=1)),
            concurrency=int(number("VBATCH_SIM_CONCURRENCY", most=1_000_000)),
            contention=number("VBATCH_SIM_CONTENTION"),
            failure_rate=number("VBATCH_SIM_FAILURE_RATE", most=1),
            wake_garbles=bool(number("VBATCH_SIM_WAKE_GARBLES", most=1)),
            request_log=environment.get("VBATCH_SIM_REQUEST_LOG", ""),
            orders=environment.get("VBATCH_SIM_ORDERS", ""),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says."""

    host: str
    port: int
    uds: str | None
    model: str
    served_names: tuple[str, ...]
    lora_names: tuple[str, ...]
    api_keys: tuple[str, ...]
    max_model_len: int | None
    by_priority: bool

    @classmethod
    def from_arguments(cls, arguments: Sequence[str], environment: Mapping[str, str]) -> Options:
        """Parse vLLM's arguments; leave out the ones that say nothing here."""
        # No abbreviations: --max-model-len-something of a later vLLM must not be taken for --max-model-len.
        parser = argparse.ArgumentParser(prog="python -m workers.sim", allow_abbrev=False)
        parser.add_argument("--host", default="127.0.0.1")
        parser.add_argument("--port", type=int, default=8000)
        parser.add_argument("--uds")
        parser.add_argument("--model", default="sim")
        parser.add_argument("--served-model-name", nargs="+", default=[])
        parser.add_argument("--lora-modules", nargs="+", default=[])
        parser.add_argument("--api-key", nargs="+", default=[])
        parser.add_argument("--max-model-len", type=int)
        parser.add_argument("--scheduling-policy", default="fcfs")
        known, _ = parser.parse_known_args(arguments)
        key = environment.get("VLLM_API_KEY", "")
        return cls(
            host=known.host,
            port=known.port,
            uds=known.uds,
            model=known.model,
            served_names=tuple(known.served_model_name) or (known.model,),
            lora_names=tuple(_lora_name(module) for module in known.lora_modules),
            api_keys=tuple(known.api_key) or ((key,) if key else ()),
            max_model_len=known.max_model_len,
            by_priority=known.scheduling_policy == "priority",
        )


def _lora_name(module: str) -> str:
    if module.startswith("{"):
        return str(json.loads(module)["name"])
    return module.partition("=")[0]
