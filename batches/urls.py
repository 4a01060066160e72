"""Routes of the Batch API, below /v1/."""

from django.urls import include, path

from batches import views

urlpatterns = [
    path("batches", views.BatchesView.as_view()),
    path("batches/preflight", views.PreflightView.as_view()),
    path("batches/<str:batch_id>", views.BatchView.as_view()),
    path("batches/<str:batch_id>/cancel", views.CancelView.as_view()),
    path("batches/<str:batch_id>/pause", views.PauseView.as_view()),
    path("batches/<str:batch_id>/resume", views.ResumeView.as_view()),
    path("batches/<str:batch_id>/retry", views.RetryView.as_view()),
    path("batches/<str:batch_id>/results", views.ResultsView.as_view()),
    path("queue", views.QueueView.as_view()),
    path("", include("batches.webhooks.urls")),
]
