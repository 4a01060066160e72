"""Models, engines and workers in the admin."""

from django.contrib import admin

from vbatch_site.admin import ReadOnlyAdmin, SiteAdmin
from workers.models import LiveDemand, LiveTraffic, ServedModel, Service, Worker


@admin.register(ServedModel)
class ServedModelAdmin(SiteAdmin):
    """The catalogue."""

    list_display = ["name", "source", "enabled", "load_seconds", "load_failed_at"]
    list_filter = ["enabled"]
    search_fields = ["name", "source"]
    readonly_fields = ["created_at", "load_seconds", "load_error", "load_failed_at"]


@admin.register(Service)
class ServiceAdmin(ReadOnlyAdmin):
    """Engines, running and past."""

    list_display = ["model", "state", "launcher", "job_id", "worker", "created_at", "ready_at", "ended_at", "error"]
    list_filter = ["state", "launcher"]
    list_select_related = ["model", "worker"]
    search_fields = ["model__name", "job_id", "group_id"]


@admin.register(Worker)
class WorkerAdmin(ReadOnlyAdmin):
    """Engine slots, living and past."""

    list_display = ["id", "host", "pid", "started_at", "seen_at", "stopped_at"]
    search_fields = ["id", "host"]


@admin.register(LiveDemand)
class LiveDemandAdmin(ReadOnlyAdmin):
    """Models that live requests wait for, or waited for lately."""

    list_display = ["model", "since", "wanted_at", "taken_by", "taken_at"]
    list_select_related = ["model"]


@admin.register(LiveTraffic)
class LiveTrafficAdmin(ReadOnlyAdmin):
    """What web processes saw of live requests to engines lately."""

    unread = ("first_tokens",)
    list_display = ["service", "process", "seen_at", "in_flight"]
    list_select_related = ["service"]
