"""Routes of webhooks, below /v1/."""

from django.urls import path

from batches.webhooks import views

_ENDPOINT = "webhook_endpoints/<str:webhook_endpoint_id>"
_DELIVERY = "webhook_deliveries/<str:webhook_delivery_id>"

urlpatterns = [
    path("webhook_endpoints", views.EndpointsView.as_view()),
    path(_ENDPOINT, views.EndpointView.as_view()),
    path(f"{_ENDPOINT}/rotate_secret", views.RotateSecretView.as_view()),
    path(f"{_ENDPOINT}/test", views.TestView.as_view()),
    path(f"{_ENDPOINT}/enable", views.EnableView.as_view()),
    path("webhook_event_types", views.EventTypesView.as_view()),
    path("webhook_deliveries", views.DeliveriesView.as_view()),
    path(_DELIVERY, views.DeliveryView.as_view()),
    path(f"{_DELIVERY}/redeliver", views.RedeliverView.as_view()),
]
