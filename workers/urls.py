"""Routes of the Models API and of live requests, below /v1/."""

from django.urls import path

from workers import views
from workers.live.views import routes

urlpatterns = [
    path("models", views.ModelsView.as_view()),
    path("models/<path:name>", views.ModelView.as_view()),
    *routes(),
]
