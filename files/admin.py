"""Files in the admin."""

from django.contrib import admin

from files.models import File
from vbatch_site.admin import ReadOnlyAdmin


@admin.register(File)
class FileAdmin(ReadOnlyAdmin):
    """Files of all projects; their bytes are served by the API."""

    list_display = ["id", "filename", "purpose", "bytes", "project", "created_at", "expires_at", "deleted_at"]
    list_filter = ["purpose", "project"]
    list_select_related = ["project"]
    search_fields = ["id", "filename"]
