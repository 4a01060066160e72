"""Routes of the Services API, below /api/v1/."""

from django.urls import path

from workers.services_api import views

urlpatterns = [
    path("services", views.ServicesView.as_view()),
    path("services/targets", views.TargetsView.as_view()),
    path("services/<str:service_id>", views.ServiceView.as_view()),
    path("services/<str:service_id>/status", views.StatusView.as_view()),
    path("services/<str:service_id>/logs", views.LogsView.as_view()),
    path("services/<str:service_id>/metrics", views.MetricsView.as_view()),
    path("service-groups", views.GroupsView.as_view()),
    path("service-groups/<str:group_id>", views.GroupView.as_view()),
    path("service-groups/<str:group_id>/status", views.GroupStatusView.as_view()),
    path("recipes", views.RecipesView.as_view()),
    path("recipes/<str:category>/<str:name>", views.RecipeView.as_view()),
    path("vllm/services", views.VllmServicesView.as_view()),
    path("vllm/<str:service_id>/models", views.VllmModelsView.as_view()),
    path("vllm/<str:service_id>/prompt", views.VllmPromptView.as_view()),
]
