"""Routes of the Models API, below /v1/."""

from django.urls import path

from workers import views

urlpatterns = [
    path("models", views.ModelsView.as_view()),
    path("models/<path:name>", views.ModelView.as_view()),
]
