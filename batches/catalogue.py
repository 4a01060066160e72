"""Which models there are: `workers` knows, and tells this room at start, so that imports point one way."""

from collections.abc import Callable

from batches.validation import Catalogue

_provider: Callable[[], Catalogue] | None = None


def provide(provider: Callable[[], Catalogue]) -> None:
    """Name the function that knows the models."""
    global _provider
    _provider = provider


def known_models() -> Catalogue:
    """Return the models and the endpoints that each answers."""
    return _provider() if _provider is not None else {}
