"""Which models there are: `workers` knows, and tells this room at start, so that imports point one way."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from batches.validation import Catalogue


@dataclass(frozen=True, slots=True)
class Engine:
    """How a model is run, as far as it says how many tokens a request has."""

    source: str  # a folder or a model hub's id
    arguments: tuple[str, ...]
    context: int | None  # tokens


_provider: Callable[[], Catalogue] | None = None
_engines: Callable[[Iterable[str]], dict[str, Engine]] | None = None


def provide(provider: Callable[[], Catalogue], engines: Callable[[Iterable[str]], dict[str, Engine]]) -> None:
    """Name the functions that know the models."""
    global _provider, _engines
    _provider, _engines = provider, engines


def known_models() -> Catalogue:
    """Return the models and the endpoints that each answers."""
    return _provider() if _provider is not None else {}


def engines(models: Iterable[str]) -> dict[str, Engine]:
    """Return how each of these models is run, those that are known."""
    return _engines(models) if _engines is not None else {}
