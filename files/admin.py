"""Files in the admin."""

from django.contrib import admin

from files.models import File, Upload, UploadPart
from vbatch_site.admin import ReadOnlyAdmin


@admin.register(File)
class FileAdmin(ReadOnlyAdmin):
    """Files of all projects; their bytes are served by the API."""

    list_display = ["id", "filename", "purpose", "bytes", "project", "created_at", "expires_at", "deleted_at"]
    list_filter = ["purpose", "project"]
    list_select_related = ["project"]
    search_fields = ["id__startswith", "filename__startswith"]
    search_help_text = "The beginning of an id or of a name"


@admin.register(Upload)
class UploadAdmin(ReadOnlyAdmin):
    """Uploads in parts, until a day after their end."""

    list_display = [
        "id",
        "filename",
        "purpose",
        "state",
        "bytes",
        "received_bytes",
        "received_parts",
        "project",
        "created_at",
    ]
    list_filter = ["state", "purpose", "project"]
    list_select_related = ["project"]
    search_fields = ["id__startswith", "filename__startswith"]
    search_help_text = "The beginning of an id or of a name"


@admin.register(UploadPart)
class UploadPartAdmin(ReadOnlyAdmin):
    """Bytes on their way into an upload's file."""

    ordering = ["-id"]
    list_display = ["id", "upload_id", "bytes", "stored", "created_at"]
    search_fields = ["upload_id__exact"]
    search_help_text = "The id of an upload"
