"""The console's routes of this room; each other room has its own, joined in vbatch_site/urls.py."""

from django.urls import path

from vbatch_site.console import dashboard, keys, system

urlpatterns = [
    path("", dashboard.dashboard, name="dashboard"),
    path("keys", keys.keys, name="keys"),
    path("keys/issue", keys.issue, name="issue_key"),
    path("keys/<int:pk>/rotate", keys.rotate, name="rotate_key"),
    path("keys/<int:pk>/revoke", keys.revoke, name="revoke_key"),
    path("system", system.system, name="system"),
]
