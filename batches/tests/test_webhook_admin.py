"""Webhooks in the admin: seen by all who may look, acted on by those who may administer."""

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.test import Client
from django.utils import timezone

from batches.webhooks import endpoints
from batches.webhooks.events import draft
from batches.webhooks.models import WebhookDelivery, WebhookEndpoint
from batches.webhooks.payload import EventType
from vbatch_site.models import Project
from vbatch_site.tests.receiver import Receiver

pytestmark = pytest.mark.django_db

ENDPOINTS = "/admin/batches/webhookendpoint/"
DELIVERIES = "/admin/batches/webhookdelivery/"


@pytest.fixture(autouse=True)
def this_machine(settings: object) -> None:
    """Let tests go to receivers on this machine."""
    settings.VBATCH_WEBHOOK_ALLOW_PRIVATE = True  # type: ignore[attr-defined]


@pytest.fixture
def administrator(client: Client) -> Client:
    client.force_login(get_user_model().objects.create_superuser("op", password="x"))
    return client


@pytest.fixture
def viewer() -> Client:
    """Somebody who may look at rows and do no more."""
    user = get_user_model().objects.create_user("viewer", password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__startswith="view_webhook"))
    client = Client()
    client.force_login(user)
    return client


def _endpoint(url: str = "http://127.0.0.1:1/") -> WebhookEndpoint:
    return endpoints.create(Project.default(), {"name": "e", "url": url, "event_types": ["batch.failed"]})[0]


def _delivery(endpoint: WebhookEndpoint) -> WebhookDelivery:
    delivery = draft(endpoint, "evt_x", EventType.FAILED, b'{"seen": "yes"}', timezone.now())
    delivery.state = "exhausted"
    delivery.save()
    return delivery


def _act(client: Client, url: str, action: str, pk: str) -> str:
    return client.post(url, {"action": action, "_selected_action": [pk]}, follow=True).content.decode()


def test_deliveries_are_filtered_by_endpoint_event_and_state(administrator: Client) -> None:
    one, other = _delivery(_endpoint()), _delivery(_endpoint())
    query = {"endpoint": one.endpoint_id, "event_type__exact": "batch.failed", "state__exact": "exhausted"}
    page = administrator.get(DELIVERIES, query).content.decode()
    assert one.pk in page and other.pk not in page
    detail = administrator.get(f"{DELIVERIES}{one.pk}/change/").content.decode()
    assert "&quot;seen&quot;: &quot;yes&quot;" in detail


def test_a_dead_letter_is_sent_again(administrator: Client) -> None:
    delivery = _delivery(_endpoint())
    _act(administrator, DELIVERIES, "redeliver", delivery.pk)
    delivery.refresh_from_db()
    assert delivery.state == "pending"


def test_an_endpoint_is_disabled_and_enabled_and_its_secret_is_not_shown(administrator: Client) -> None:
    endpoint = _endpoint()
    _act(administrator, ENDPOINTS, "disable", endpoint.pk)
    endpoint.refresh_from_db()
    assert endpoint.disabled_at and endpoint.disabled_reason == "by op"
    delivery = _delivery(endpoint)
    assert "disabled or deleted" in _act(administrator, DELIVERIES, "redeliver", delivery.pk)
    _act(administrator, ENDPOINTS, "enable", endpoint.pk)
    endpoint.refresh_from_db()
    assert endpoint.disabled_at is None
    assert endpoint.sealed_secret not in administrator.get(f"{ENDPOINTS}{endpoint.pk}/change/").content.decode()


def test_a_test_shows_what_came_back(administrator: Client) -> None:
    with Receiver(503) as receiver:
        endpoint = _endpoint(receiver.url)
        assert "e: status 503" in _act(administrator, ENDPOINTS, "send_test", endpoint.pk)
        assert receiver.json()["type"] == "batch.failed"
        assert WebhookDelivery.objects.get().state == "exhausted"


@pytest.mark.parametrize("action", ["disable", "send_test"])
def test_a_viewer_can_only_look(viewer: Client, action: str) -> None:
    with Receiver() as receiver:
        endpoint = _endpoint(receiver.url)
        assert endpoint.pk in viewer.get(ENDPOINTS).content.decode()
        _act(viewer, ENDPOINTS, action, endpoint.pk)
        endpoint.refresh_from_db()
        assert endpoint.disabled_at is None
        assert not receiver.connections
