"""Routes of the Files and Uploads APIs, below /v1/."""

from django.urls import path

from files import views

urlpatterns = [
    path("files", views.FilesView.as_view()),
    path("files/<str:file_id>", views.FileView.as_view()),
    path("files/<str:file_id>/content", views.FileContentView.as_view()),
    path("uploads", views.UploadsView.as_view()),
    path("uploads/<str:upload_id>/parts", views.PartsView.as_view()),
    path("uploads/<str:upload_id>/complete", views.CompleteView.as_view()),
    path("uploads/<str:upload_id>/cancel", views.CancelUploadView.as_view()),
]
