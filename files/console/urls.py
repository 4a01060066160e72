"""The console's routes of this room."""

from django.urls import path

from files.console import pages, uploading

urlpatterns = [
    path("files", pages.files, name="files"),
    path("files/<str:file_id>", pages.detail, name="file"),
    path("files/<str:file_id>/download", pages.download, name="download"),
    path("files/<str:file_id>/delete", pages.delete, name="delete_file"),
    path("uploads", uploading.begin, name="begin_upload"),
    path("uploads/<str:upload_id>", uploading.state, name="upload"),
    path("uploads/<str:upload_id>/parts", uploading.part, name="add_part"),
    path("uploads/<str:upload_id>/complete", uploading.complete, name="complete_upload"),
]
