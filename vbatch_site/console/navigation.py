"""The sidebar of console and admin."""

from typing import Any

from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse

from vbatch_site.console.roles import Right, may

# (title, URL name, right); a page whose room has not added it yet is left out.
_WORK = [
    ("Dashboard", "console:dashboard", Right.VIEW),
    ("Batches", "console:batches", Right.VIEW),
    ("New batch", "console:new_batch", Right.OPERATE),
    ("Files", "console:files", Right.VIEW),
]
_MACHINES = [
    ("Models", "console:models", Right.VIEW),
    ("Workers and GPUs", "console:workers", Right.VIEW),
    ("Services", "console:services", Right.VIEW),
]
_ACCESS = [
    ("API keys", "console:keys", Right.VIEW),
    ("Webhooks", "console:webhooks", Right.VIEW),
    ("System", "console:system", Right.VIEW),
]
_ADMIN = [
    ("Projects", "admin:vbatch_site_project_changelist"),
    ("Users", "admin:auth_user_changelist"),
    ("Roles", "admin:auth_group_changelist"),
    ("Queued tasks", "admin:django_q_ormq_changelist"),
    ("Failed tasks", "admin:django_q_failure_changelist"),
    ("All tables", "admin:index"),
]


def sidebar(request: HttpRequest) -> list[dict[str, Any]]:
    """Return the groups of links that the user may follow."""
    groups = [("", _WORK), ("Machines", _MACHINES), ("Access", _ACCESS)]
    found = [{"title": title, "items": _links(request, items)} for title, items in groups]
    admin_items = [
        {"title": title, "link": reverse(name), "permission": _may_open_admin, "active": _is_at(request, name)}
        for title, name in _ADMIN
    ]
    return [*found, {"title": "Administration", "items": admin_items}]


def _may_open_admin(request: HttpRequest) -> bool:
    return may(request.user, Right.ADMINISTER)


def _is_at(request: HttpRequest, name: str) -> bool:
    return request.path == reverse(name)


def _links(request: HttpRequest, items: list[tuple[str, str, Right]]) -> list[dict[str, Any]]:
    links = []
    for title, name, right in items:
        try:
            url = reverse(name)
        except NoReverseMatch:
            continue
        if may(request.user, right):
            links.append({"title": title, "link": url, "active": _is_active(request.path, url, name)})
    return links


def _is_active(path: str, url: str, name: str) -> bool:
    """Return whether a page belongs to a link: the page itself, or one below it that has no link of its own."""
    if path == url:
        return True
    below = path.startswith(url + "/") and name != "console:dashboard"
    return below and not (name == "console:batches" and path.startswith("/console/batches/new"))
