"""API keys: issued, shown once, revoked."""

from typing import Any

from django import forms
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone

from vbatch_site.admin import ROTATION_OVERLAP
from vbatch_site.console import registry
from vbatch_site.console.pages import back, complain, page, say, show
from vbatch_site.console.roles import Right
from vbatch_site.console.tables import Query, newest_first
from vbatch_site.models import ApiKey, Project, Scope, all_areas

_STATES = {"live": "Live", "expired": "Expired", "revoked": "Revoked"}


class KeyForm(forms.Form):
    """What a new key is for."""

    name = forms.CharField(max_length=100, strip=True)
    project = forms.ModelChoiceField(Project.objects.filter(deleted_at=None))
    expires_at = forms.DateTimeField(required=False)
    scopes = forms.MultipleChoiceField(choices=Scope.choices, initial=all_areas)

    def clean_expires_at(self) -> Any:
        """Refuse a key that would be over already."""
        at = self.cleaned_data["expires_at"]
        if at is not None and at <= timezone.now():
            raise forms.ValidationError("This moment is past.")
        return at


def state_of(key: ApiKey) -> tuple[str, str]:
    """Return a key's state as a word and a tone."""
    if key.revoked_at is not None:
        return "revoked", "none"
    if key.expires_at is not None and key.expires_at <= timezone.now():
        return "expired", "warning"
    return "live", "success"


@page()
def keys(request: HttpRequest) -> HttpResponse:
    """List keys; their secrets are nowhere to be shown."""
    return _list(request, KeyForm(initial={"project": Project.default().pk}))


def _list(request: HttpRequest, form: KeyForm, *, status: int = 200) -> HttpResponse:
    query = Query(request, "state", "project", "q", "before")
    rows = ApiKey.objects.select_related("project")
    now = timezone.now()
    if query["state"] == "revoked":
        rows = rows.exclude(revoked_at=None)
    elif query["state"] == "expired":
        rows = rows.filter(revoked_at=None, expires_at__lte=now)
    elif query["state"] == "live":
        rows = rows.filter(revoked_at=None).exclude(expires_at__lte=now)
    if query["project"]:
        rows = rows.filter(project__name=query["project"])
    if query["q"]:
        rows = rows.filter(name__icontains=query["q"])
    listed = newest_first(rows, query)
    uses = registry.key_uses([key.pk for key in listed.rows])
    for key in listed.rows:
        key.word, key.tone = state_of(key)
        key.use = uses.get(key.pk)
    context = {
        "title": "API keys",
        "query": query,
        "page": listed,
        "choices": query.choices("state", _STATES),
        "form": form,
        "projects": Project.objects.filter(deleted_at=None),
        "scopes": Scope.choices,
        "overlap": ROTATION_OVERLAP.total_seconds(),
    }
    return show(request, "console/site/keys.html", context, part="console/site/_keys.html", status=status)


@page(Right.ADMINISTER, methods=("POST",))
def issue(request: HttpRequest) -> HttpResponseBase:
    """Issue a key and show its text, in this one answer."""
    form = KeyForm(request.POST)
    if not form.is_valid():
        return _list(request, form, status=422)
    wanted = form.cleaned_data
    key, text = ApiKey.issue(
        wanted["project"], wanted["name"], scopes=wanted["scopes"], expires_at=wanted["expires_at"]
    )
    return shown_once(request, key, text)


def shown_once(request: HttpRequest, key: ApiKey, text: str) -> HttpResponse:
    """Answer with a new key's text; it is in no message, session or log."""
    context = {"title": "New API key", "key": key, "text": text, "base_url": request.build_absolute_uri("/v1")}
    return show(request, "console/site/key_issued.html", context)


@page(Right.ADMINISTER, methods=("POST",))
def rotate(request: HttpRequest, pk: int) -> HttpResponseBase:
    """Issue a successor and show its text; the old key works on for the overlap."""
    key = get_object_or_404(ApiKey.objects.select_related("project"), pk=pk)
    now = timezone.now()
    if not key.is_live(now) or key.successor_id:
        complain(request, f"{key.name} ({key.prefix}) has ended or has a successor already.")
        return back(request, reverse("console:keys"))
    return shown_once(request, *key.rotate(now, ROTATION_OVERLAP))


@page(Right.ADMINISTER, methods=("POST",))
def revoke(request: HttpRequest, pk: int) -> HttpResponseBase:
    """Make a key useless from the next request on."""
    key = get_object_or_404(ApiKey.objects.select_related("project"), pk=pk)
    if key.revoke(timezone.now()):
        say(request, f"{key.name} ({key.prefix}) is revoked.")
    return back(request, reverse("console:keys"))
