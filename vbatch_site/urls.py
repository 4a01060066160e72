"""All routes."""

from django.contrib import admin
from django.templatetags.static import static
from django.urls import URLPattern, URLResolver, include, path
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularSwaggerSplitView

from batches.console import urls as batches_console
from files.console import urls as files_console
from vbatch_site.console import urls as site_console
from vbatch_site.console.landing import landing, llms
from vbatch_site.health import health
from vbatch_site.metrics import metrics
from vbatch_site.openai.schema import SchemaView
from vbatch_site.readiness import ready
from workers.console import urls as workers_console

# One name space, joined here because the rooms may not import later ones.
_ROOMS = (site_console, files_console, batches_console, workers_console)
console = ([route for room in _ROOMS for route in room.urlpatterns], "console")

urlpatterns: list[URLPattern | URLResolver] = [
    path("v1/", include("files.urls")),
    path("v1/", include("batches.urls")),
    path("v1/", include("workers.urls")),
    path("api/v1/", include("workers.services_api.urls")),
    path("api/schema/", SchemaView.as_view(), name="schema"),
    path("docs/", SpectacularSwaggerSplitView.as_view(), name="docs"),
    path("docs", RedirectView.as_view(pattern_name="docs")),
    path("health", health),
    path("ready", ready),
    path("metrics", metrics),
    path("admin/", admin.site.urls),
    path("", landing, name="landing"),
    path("llms.txt", llms, name="llms"),
    path("favicon.ico", RedirectView.as_view(url=static("console/favicon.svg"))),
    path("console", RedirectView.as_view(pattern_name="console:dashboard")),
    path("console/", include(console)),
]
