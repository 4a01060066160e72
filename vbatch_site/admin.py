"""Projects and keys in the admin; and the bases that the other rooms' admin classes share."""

from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group, User
from django.core.paginator import Paginator
from django.db import connection, transaction
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.html import conditional_escape, format_html
from django.utils.safestring import SafeString, mark_safe
from django_q.admin import FailAdmin, QueueAdmin, ScheduleAdmin, TaskAdmin
from django_q.models import Failure, OrmQ, Schedule, Success
from django_q.tasks import async_task
from unfold.admin import ModelAdmin, checkbox
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.templatetags import unfold_list
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget

from vbatch_site import erasure
from vbatch_site.console.roles import Right, may
from vbatch_site.models import ApiKey, AuditEntry, IdempotencyKey, Project, RequestBucket, Scope, Tally, all_areas
from vbatch_site.openai.auth import is_trusted_network

# Between the issue of a successor and the death of the old key: time to bring the new one to every program.
ROTATION_OVERLAP = timedelta(days=1)

if TYPE_CHECKING:
    AnyPaginator = Paginator[Any]
    KeyModelForm = forms.ModelForm[ApiKey]
else:
    AnyPaginator = Paginator
    KeyModelForm = forms.ModelForm


def environment(request: HttpRequest) -> list[str] | None:
    """Return the badge of every page: what a person must not overlook about this server."""
    if settings.VBATCH_ENGINE == "sim":
        return ["Simulated engine", "danger"]
    return ["Open to all without a key", "warning"] if is_trusted_network() else None


class EstimatingPaginator(AnyPaginator):
    """Takes a whole table's row count from the planner's statistics: counting a million rows takes a second."""

    @cached_property
    def count(self) -> int:
        """Return the number of rows, estimated for a large table without filters."""
        query: Any = self.object_list
        if query.query.where:
            return int(query.count())
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT reltuples::bigint FROM pg_class WHERE oid = %s::regclass", [query.model._meta.db_table]
            )
            estimate = int(cursor.fetchone()[0])
        return estimate if estimate > 10_000 else int(query.count())


def _headers_once(build: Callable[[Any], Iterable[Any]]) -> Callable[[Any], list[Any]]:
    """Keep a list's headers: Unfold builds all of them anew for each row, which is a third of the page's time."""

    def headers(changelist: Any) -> list[Any]:
        if not hasattr(changelist, "built_headers"):
            changelist.built_headers = list(build(changelist))
        return cast(list[Any], changelist.built_headers)

    return headers


unfold_list.result_headers = _headers_once(unfold_list.result_headers)


_ANY_ROW = "any-row"


@cache
def _box() -> str:
    return str(checkbox.render(ACTION_CHECKBOX_NAME, _ANY_ROW))


class SiteAdmin(ModelAdmin):  # type: ignore[misc]  # Unfold ships no types
    """What every list here has in common."""

    show_full_result_count = False
    paginator = EstimatingPaginator
    list_per_page = 50

    def action_checkbox(self, obj: Model) -> SafeString:
        """Return the box that ticks a row: Unfold's, rendered once and not for each row."""
        return mark_safe(_box().replace(_ANY_ROW, conditional_escape(str(obj.pk))))  # noqa: S308 (escaped here)

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Return whether the user may steer; actions ask for it by name."""
        return may(request.user, Right.OPERATE)

    def has_administer_permission(self, request: HttpRequest) -> bool:
        """Return whether the user may manage keys, models and the like."""
        return may(request.user, Right.ADMINISTER)


class ReadOnlyAdmin(SiteAdmin):
    """Rows that only the machine writes, perhaps a million of them."""

    # Sorted by what has an index and by nothing else. Unfold works a column's links out anew for each cell.
    sortable_by: tuple[str, ...] = ()
    list_per_page = 25
    unread: tuple[str, ...] = ()  # fields that may be large and that no list shows

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Return the rows without what may be large; the page of one row reads it when it shows it."""
        rows: QuerySet[Any] = super().get_queryset(request).defer(*self.unread)
        return rows

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Refuse."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Refuse."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Refuse."""
        return False


class _Q2Admin(SiteAdmin):
    """What the task queue's lists have in common; their tables grow with the traffic."""

    list_filter_submit = True


# Registered by django-q2 on Django's own class, which looks foreign here.
for _model, _base in ((Schedule, ScheduleAdmin), (Success, TaskAdmin), (Failure, FailAdmin), (OrmQ, QueueAdmin)):
    admin.site.unregister(_model)
    admin.site.register(_model, type(f"{_model.__name__}Admin", (_Q2Admin, _base), {}))

# The same for users and groups, which are the console's people and roles.
for _model in (User, Group):
    admin.site.unregister(_model)


@admin.register(User)
class PersonAdmin(SiteAdmin, UserAdmin):  # type: ignore[misc, type-arg]
    """People who sign in here; a role is a group."""

    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm


@admin.register(Group)
class RoleAdmin(SiteAdmin, GroupAdmin):  # type: ignore[misc]
    """Roles; the first three come with the server."""


@admin.register(Project)
class ProjectAdmin(SiteAdmin):
    """Tenants."""

    list_display = ["name", "weight", "created_at", "deleted_at"]
    search_fields = ["name"]
    fields = [
        "name",
        "created_at",
        "weight",
        "requests_per_minute",
        "batches_per_hour",
        "queued_requests",
        "queued_tokens",
        "storage_bytes",
    ]

    def get_readonly_fields(self, request: HttpRequest, obj: Project | None = None) -> list[str]:
        """Keep the name of a project that exists: keys and scripts refer to it."""
        return ["created_at", "name"] if obj else ["created_at"]

    def get_deleted_objects(
        self, objs: Any, request: HttpRequest
    ) -> tuple[list[str], dict[str, int], set[str], list[str]]:
        """Name what goes without loading every row of it, which is what Django would do."""
        named = [f"{project.name}: keys, files and their bytes, batches, results, webhooks" for project in objs]
        return named, {"projects": len(named)}, set(), []

    def delete_model(self, request: HttpRequest, obj: Project) -> None:
        """Close the project and have it deleted in the background, bytes included."""
        with transaction.atomic():
            erasure.close(obj)
            async_task("vbatch_site.tasks.erase", obj.pk, cluster="default")

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Project]) -> None:
        """Do so with several."""
        for project in queryset:
            self.delete_model(request, project)


class ApiKeyForm(KeyModelForm):
    """What a person chooses of a key."""

    scopes = forms.MultipleChoiceField(
        choices=Scope.choices, initial=all_areas, widget=UnfoldAdminCheckboxSelectMultipleWidget
    )


@admin.register(ApiKey)
class ApiKeyAdmin(SiteAdmin):
    """Keys: issued here, shown once, rotated and revoked here."""

    form = ApiKeyForm
    list_display = ["name", "prefix", "project", "scopes", "created_at", "last_used_at", "expires_at", "revoked_at"]
    list_filter = ["project"]
    list_select_related = ["project"]
    search_fields = ["name", "prefix"]
    fields = [
        "project",
        "name",
        "scopes",
        "expires_at",
        "prefix",
        "created_at",
        "last_used_at",
        "last_used_from",
        "revoked_at",
        "successor",
    ]
    actions = ["rotate", "revoke"]

    def get_readonly_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> list[str]:
        """Let a person choose what a new key is for, and nothing else."""
        written_by_us = ["prefix", "created_at", "last_used_at", "last_used_from", "revoked_at", "successor"]
        return [*written_by_us, "project"] if obj else written_by_us

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        """Issue the key, and show its text this once."""
        if not change:
            draft, text = ApiKey.draft(obj.project, obj.name)
            obj.prefix, obj.key_hash = draft.prefix, draft.key_hash
            self._show(request, text)
        super().save_model(request, obj, form, change)

    def _show(self, request: HttpRequest, text: str) -> None:
        note = format_html("The key is <code>{}</code>. It is shown this once; copy it now.", text)
        self.message_user(request, note, messages.WARNING)

    @admin.action(description="Rotate: issue a successor, the old key works one more day", permissions=["administer"])
    def rotate(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        """Issue successors, and show their texts this once."""
        now = timezone.now()
        for key in queryset.select_related("project"):
            if not key.is_live(now) or key.successor_id:
                self.message_user(request, f"{key} has ended or has a successor already.", messages.WARNING)
                continue
            self._show(request, key.rotate(now, ROTATION_OVERLAP)[1])

    @admin.action(description="Revoke", permissions=["administer"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        """Make keys useless from the next request on."""
        revoked = [key for key in queryset if key.revoke(timezone.now())]
        self.message_user(request, f"{len(revoked)} keys revoked.")


@admin.register(AuditEntry)
class AuditAdmin(ReadOnlyAdmin):
    """Who did what."""

    unread = ("detail",)
    list_display = ["at", "actor", "action", "object_id", "project", "via", "address"]
    list_filter = ["via"]
    # The whole id: a part of it could only be found by reading the whole table.
    search_fields = ["object_id__exact"]


@admin.register(IdempotencyKey)
class IdempotencyKeyAdmin(ReadOnlyAdmin):
    """What clients' keys of requests stand for, for a day."""

    ordering = ["-created_at"]
    list_display = ["key", "object_id", "project", "created_at"]
    list_select_related = ["project"]


@admin.register(RequestBucket)
class RequestBucketAdmin(ReadOnlyAdmin):
    """How much of their requests a minute projects have used."""

    list_display = ["project", "full_at"]
    list_select_related = ["project"]


@admin.register(Tally)
class TallyAdmin(ReadOnlyAdmin):
    """What the metrics' counters are added up from."""

    list_display = ["name", "project_id", "model", "label", "value"]
