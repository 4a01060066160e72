"""What rooms add to the dashboard and to the system page; rooms register when their app starts."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest


@dataclass(frozen=True, slots=True)
class Tile:
    """One number that leads to the rows it counts."""

    label: str
    value: int
    url: str
    tone: str = ""  # "", "info", "success", "warning" or "danger"


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person should look at."""

    text: str
    url: str = ""
    tone: str = "warning"


@dataclass(frozen=True, slots=True)
class Component:
    """One line of the system page."""

    name: str
    state: str  # "up", "down" or "unknown"
    detail: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """A section of the dashboard: its template and what that is given."""

    template: str
    build: Callable[[HttpRequest], dict[str, Any]]
    order: int = 0
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A panel ready to be shown."""

    template: str
    data: dict[str, Any]
    wide: bool


@dataclass(frozen=True, slots=True)
class KeyUse:
    """What a key did lately."""

    batches: str  # in 30 days; a number, or that and a plus
    url: str
    running: int


_tiles: list[Callable[[], Iterable[Tile]]] = []
_warnings: list[Callable[[], Iterable[Notice]]] = []
_components: list[Callable[[], Iterable[Component]]] = []
_panels: list[Panel] = []
_controls: list[Panel] = []
_key_uses: list[Callable[[list[int]], dict[int, KeyUse]]] = []


def add_tiles(provider: Callable[[], Iterable[Tile]]) -> None:
    """Add numbers to the dashboard."""
    _tiles.append(provider)


def add_warnings(provider: Callable[[], Iterable[Notice]]) -> None:
    """Add warnings to the dashboard."""
    _warnings.append(provider)


def add_components(provider: Callable[[], Iterable[Component]]) -> None:
    """Add lines to the system page."""
    _components.append(provider)


def add_panel(panel: Panel) -> None:
    """Add a section to the dashboard."""
    _panels.append(panel)
    _panels.sort(key=lambda known: known.order)


def add_control(panel: Panel) -> None:
    """Add a section to the system page: something that can be switched there."""
    _controls.append(panel)


def add_key_uses(provider: Callable[[list[int]], dict[int, KeyUse]]) -> None:
    """Name the function that knows what keys did, by their ids."""
    _key_uses.append(provider)


def tiles() -> list[Tile]:
    """Return all rooms' numbers."""
    return [tile for provider in _tiles for tile in provider()]


def warnings() -> list[Notice]:
    """Return all rooms' warnings."""
    return [warning for provider in _warnings for warning in provider()]


def components() -> list[Component]:
    """Return all rooms' lines of the system page."""
    return [component for provider in _components for component in provider()]


def sections(request: HttpRequest) -> list[Section]:
    """Return all rooms' panels with their data."""
    return [Section(panel.template, panel.build(request), panel.wide) for panel in _panels]


def controls(request: HttpRequest) -> list[Section]:
    """Return all rooms' sections of the system page with their data."""
    return [Section(panel.template, panel.build(request), panel.wide) for panel in _controls]


def key_uses(ids: list[int]) -> dict[int, KeyUse]:
    """Return what these keys did."""
    return {key: use for provider in _key_uses for key, use in provider(ids).items()}
