"""How the console writes times, numbers, sizes, states and ids."""

import json
from datetime import UTC, datetime
from typing import Any

from django import template
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from vbatch_site.console import charts

register = template.Library()

NONE = mark_safe('<span class="vb-none" title="none">&ndash;</span>')  # noqa: S308 (fixed text)


@register.filter
def ago(at: datetime | None) -> SafeString:
    """Return a moment relative to now, with the absolute one on hover; the page's script keeps it fresh."""
    if at is None:
        return NONE
    seconds = (timezone.now() - at).total_seconds()
    text = (
        f"{charts.duration(seconds)} ago"
        if seconds >= 1
        else "now"
        if seconds > -1
        else f"in {charts.duration(-seconds)}"
    )
    stamp = at.astimezone(timezone.get_current_timezone())
    return format_html(
        '<time class="vb-time" datetime="{}" title="{} UTC">{}</time>',
        stamp.isoformat(timespec="seconds"),
        stamp.strftime("%Y-%m-%d %H:%M:%S"),
        _one_unit(text),
    )


@register.filter
def since(seconds: float | None) -> SafeString:
    """Return a moment given in unix seconds as `ago` does."""
    return ago(None if seconds is None else datetime.fromtimestamp(seconds, UTC))


def _one_unit(text: str) -> str:
    """Keep the largest unit: "3 min 5 s ago" is more than a column needs."""
    words = text.split()
    suffix = words[-1:] if words[-1] == "ago" else []
    prefix = words[:1] if words[0] == "in" else []
    body = words[len(prefix) : len(words) - len(suffix)]
    return " ".join([*prefix, *body[:2], *suffix])


@register.filter
def lasted(seconds: float | None) -> str | SafeString:
    """Return a length of time in seconds in its two largest units."""
    return NONE if seconds is None else charts.duration(float(seconds))


@register.filter
def millis(value: float | None) -> str | SafeString:
    """Return a length of time in milliseconds."""
    if not value:
        return NONE
    return (
        f"{value:.0f} ms"
        if value < 1000
        else f"{value / 1000:.2f} s"
        if value < 60_000
        else charts.duration(value / 1000)
    )


@register.filter
def number(value: float | None) -> str | SafeString:
    """Return a number with thin groups of thousands."""
    if value is None:
        return NONE
    text = f"{value:,.0f}" if isinstance(value, int) or value >= 100 else f"{value:,.1f}"
    return text.replace(",", "\u202f")


@register.filter
def size(value: float | None) -> str | SafeString:
    """Return bytes in a unit of three digits."""
    if value is None:
        return NONE
    amount = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


@register.simple_tag
def ident(value: str | None, url: str = "", keep: int = 10) -> SafeString:
    """Return an id: its kind and last characters as a link, and a button that copies all of it."""
    if not value:
        return NONE
    head, _, tail = value.partition("_") if value.startswith("batch_") else value.partition("-")
    kind = value[: len(head) + 1] if tail else ""
    text = value if len(value) <= keep + len(kind) + 2 else f"{kind}\u2026{value[-keep:]}"
    body = (
        format_html('<a href="{}" title="{}">{}</a>', url, value, text)
        if url
        else format_html('<span title="{}">{}</span>', value, text)
    )
    return format_html('<span class="vb-id">{}{}</span>', body, copy(value))


@register.simple_tag
def copy(value: str, label: str = "") -> SafeString:
    """Return a button that copies a text."""
    name = f"Copy {value}" if len(value) <= 80 else "Copy"
    return format_html(
        '<button type="button" class="vb-copy" data-copy="{}" aria-label="{}" title="Copy">{}</button>',
        value,
        label or name,
        label or mark_safe('<svg viewBox="0 0 16 16" aria-hidden="true"><path d="M5 5h8v9H5zM3 11V2h8"/></svg>'),  # noqa: S308
    )


@register.simple_tag
def status(word: str, tone: str = "") -> SafeString:
    """Return a state as a word and a colour."""
    return format_html('<span class="vb-status vb-tone-{}">{}</span>', tone or "none", word.replace("_", " "))


@register.simple_tag
def bar(done: int, failed: int, total: int, active: bool = False, label: str = "") -> SafeString:
    """Return a progress bar in two colours; widths are attributes of an image, not inline styles."""
    share = 100 / total if total else 0
    text = label or f"{done} completed, {failed} failed, {max(total - done - failed, 0)} remaining"
    return format_html(
        '<svg class="vb-bar{}" viewBox="0 0 100 6" preserveAspectRatio="none" role="img" aria-label="{}">'
        '<rect class="vb-bar-done" width="{}" height="6"/>'
        '<rect class="vb-bar-failed" x="{}" width="{}" height="6"/></svg>',
        " vb-bar-active" if active else "",
        text,
        f"{done * share:.3f}",
        f"{done * share:.3f}",
        f"{failed * share:.3f}",
    )


@register.filter
def leaf(name: str | None) -> str:
    """Return a model's name without the folder or owner before it."""
    return (name or "").rstrip("/").rpartition("/")[2]


@register.filter
def middle(text: str, keep: int = 36) -> str:
    """Return a name that is too long without its middle: what it ends with tells files apart."""
    return text if len(text) <= keep else f"{text[: keep - 19]}\u2026{text[-18:]}"


@register.filter
def percent(part: float | None, whole: float | None) -> str:
    """Return a share; 100 % only when nothing is missing."""
    if not whole or not part:
        return "0 %"
    if part >= whole:
        return "100 %"
    return f"{min(100 * part / whole, 99.9):.1f} %"


@register.filter
def pretty(value: Any) -> str:
    """Return JSON to read; text that is none as it is."""
    if isinstance(value, bytes | memoryview):
        value = bytes(value).decode("utf-8", "replace")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return str(value)
    return json.dumps(value, indent=2, ensure_ascii=False)


@register.filter
def plain(value: Any) -> str:
    """Return a fact as a person would write it: a list as its words, a switch as yes or no."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return " ".join(str(item) for item in value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


@register.filter
def words(name: str) -> str:
    """Return a field's name in words."""
    return name.replace("_", " ")


@register.filter
def get(mapping: dict[str, Any], key: str) -> Any:
    """Return a mapping's value."""
    return mapping.get(key)
