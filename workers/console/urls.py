"""The console's routes of this room."""

from django.urls import path

from workers.console import launching, machines, telling

urlpatterns = [
    path("models", machines.models, name="models"),
    path("models/<int:pk>/switch", machines.switch, name="switch_model"),
    path("models/<int:pk>/load", telling.load, name="load_model"),
    path("workers", machines.workers, name="workers"),
    path("workers/<str:worker_id>", machines.worker, name="worker"),
    path("workers/<str:worker_id>/<str:action>", telling.tell, name="worker_action"),
    path("services", launching.services, name="services"),
    path("services/start/<str:category>/<str:name>", launching.start, name="start_service"),
    path("services/<int:pk>", launching.service, name="service"),
    path("services/<int:pk>/cancel", launching.cancel, name="cancel_service"),
]
