"""Who did what to which object: rows that are only ever added, from the API, the console, the admin and commands.

Requests are noted by the middleware below, each under the name that its route has anyway, so that a new route can't be
forgotten. A change that has a transaction calls `note_change` in it: it stands or falls with its note, and the
middleware adds none. What is not a request calls `note` itself.
"""

import getpass
from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import Any, NamedTuple

from django.conf import settings
from django.contrib.admin.models import LogEntry
from django.contrib.auth import user_logged_in, user_logged_out, user_login_failed
from django.db import connection, transaction
from django.db.models.signals import post_save
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from vbatch_site.models import ApiKey, AuditEntry, Project, Scope, key_revoked

_SWEPT_AT_ONCE = 10_000  # rows
_MAX_IDS = 100  # of an action on many rows of the admin
_UNSAFE = ("POST", "PUT", "PATCH", "DELETE")

_current: ContextVar[HttpRequest | None] = ContextVar("audited_request", default=None)


def address_of(request: HttpRequest) -> str | None:
    """Return where a request came from; None when the server listens on a socket file."""
    try:
        return str(ip_address(request.META.get("REMOTE_ADDR", "")))
    except ValueError:
        return None


def note(action: str, object_id: str = "", *, project: Project | None = None, **detail: Any) -> None:
    """Write down that whoever this is did something to an object; never prompts, answers or secrets in the detail."""
    request = _current.get()
    via, actor, owner = _who(request)
    owner = project or owner
    AuditEntry.objects.create(
        via=via,
        actor=actor[:150],
        action=action[:100],
        object_id=object_id[:200],
        project=owner.name if owner else "",
        address=address_of(request) if request else None,
        request_id=getattr(request, "request_id", ""),
        detail=detail or None,
    )


def note_change(object_id: str = "") -> None:
    """Note what the present request does, as the middleware would; call inside the transaction that does it.

    The id is that of what is changed or made. Outside of a request nothing is noted.
    """
    request = _current.get()
    if request is not None and request.resolver_match and (named := _name(request)):
        request.noted = True  # type: ignore[attr-defined]
        # What was made of the object that the path names is found by the object's id, and has its own beside it.
        more: dict[str, Any] = (
            {} if not object_id or object_id in named.object_id or not named.object_id else {"made": object_id}
        )
        note(named.action, named.object_id or object_id, **more)


def _who(request: HttpRequest | None) -> tuple[str, str, Project | None]:
    """Return the road, the actor, and the project that the actor acts for."""
    if request is None:
        return "command", _system_user(), None
    user: Any = getattr(request, "user", None)
    if isinstance(user, Project):
        key: ApiKey | None = getattr(request, "auth", None)
        return "api", f"key {key.prefix}" if key else "no key", user
    via = "admin" if request.path.startswith("/admin/") else "console"
    return via, user.get_username() if user is not None and user.is_authenticated else "anonymous", None


def _system_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


class AuditMiddleware:
    """Note each request that changed something; stands next to the views, where it is known who asks."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer one request."""
        token = _current.set(request)
        try:
            response = self.get_response(request)
            if request.method in _UNSAFE and response.status_code < 400 and request.resolver_match:
                _note_request(request, response)
        finally:
            _current.reset(token)
        return response


def _note_request(request: HttpRequest, response: HttpResponseBase) -> None:
    if getattr(request, "noted", False):
        return
    match: Any = request.resolver_match
    if not _is_admin(match):
        answer = getattr(response, "data", None)
        if named := _name(request):
            note(named.action, named.object_id or (answer.get("id", "") if isinstance(answer, dict) else ""))
    # Changes of single rows come through the admin's own log.
    elif request.user.is_authenticated and (named := _name(request)):
        note(named.action, ids=request.POST.getlist("_selected_action")[:_MAX_IDS])


class _Named(NamedTuple):
    action: str
    object_id: str  # empty where the path has none


def _is_admin(match: Any) -> bool:
    return getattr(match.func, "cls", None) is None and "admin" in match.namespaces


def _name(request: HttpRequest) -> _Named | None:
    """Return what a request does by the name of its route, None for what is not noted."""
    match: Any = request.resolver_match
    view = getattr(match.func, "cls", None)
    if view is not None:
        handler = getattr(view, (request.method or "").lower(), None)
        named = _Named(getattr(handler, "operation", match.route), str(next(iter(match.kwargs.values()), "")))
        # A live request makes no object, and there may be thousands a minute.
        return named if getattr(view, "scope", None) != Scope.LIVE else None
    if not request.user.is_authenticated:
        return None  # sent to the login, which is noted below
    if _is_admin(match):
        action = request.POST.get("action")
        return _Named(f"{action} {match.url_name}", "") if action else None
    return _Named(match.url_name or match.route, " ".join(str(value) for value in match.kwargs.values()))


def on_admin_log(sender: Any, instance: LogEntry, created: bool, **_: Any) -> None:
    """Note what the admin logs: an addition, a change or a deletion of one row, with the names of changed fields."""
    if created:
        model = instance.content_type.model if instance.content_type else ""
        verb = {1: "add", 2: "change", 3: "delete"}.get(instance.action_flag, "")
        note(f"{verb} {model}", str(instance.object_id), changed=instance.get_change_message()[:500])


def on_key(sender: Any, instance: ApiKey, created: bool, **_: Any) -> None:
    """Note each new key, however it was issued."""
    if created:
        note("issueKey", instance.prefix, project=instance.project, name=instance.name, scopes=instance.scopes)


def on_revoked(sender: Any, instance: ApiKey, **_: Any) -> None:
    """Note each key that was revoked."""
    note("revokeKey", instance.prefix, project=instance.project, name=instance.name)


def on_login(sender: Any, request: HttpRequest | None, **_: Any) -> None:
    """Note who logged in."""
    note("logIn")


def on_logout(sender: Any, request: HttpRequest | None, **_: Any) -> None:
    """Note who logged out."""
    note("logOut")


def on_login_failed(sender: Any, request: HttpRequest | None = None, **_: Any) -> None:
    """Note that somebody could not log in; not the name, which may be a password in the wrong field."""
    note("logInFailed")


def listen() -> None:
    """Hear of what is no request of its own; called once, when the apps are ready."""
    post_save.connect(on_admin_log, sender=LogEntry, dispatch_uid="audit.admin_log")
    post_save.connect(on_key, sender=ApiKey, dispatch_uid="audit.key")
    key_revoked.connect(on_revoked, dispatch_uid="audit.revoked")
    user_logged_in.connect(on_login, dispatch_uid="audit.login")
    user_logged_out.connect(on_logout, dispatch_uid="audit.logout")
    user_login_failed.connect(on_login_failed, dispatch_uid="audit.login_failed")


def sweep(now: datetime) -> None:
    """Delete entries that are older than they are kept: the one thing that the table's trigger lets pass."""
    if not settings.VBATCH_AUDIT_DAYS:
        return
    old = AuditEntry.objects.filter(at__lt=now - timedelta(days=settings.VBATCH_AUDIT_DAYS))
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL vbatch.audit_sweep = 'on'")
        AuditEntry.objects.filter(pk__in=old.values("pk")[:_SWEPT_AT_ONCE]).delete()
