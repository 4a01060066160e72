"""All routes."""

from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularSwaggerView

from vbatch_site.health import health
from vbatch_site.openai.schema import SchemaView

urlpatterns: list[URLPattern | URLResolver] = [
    path("v1/", include("files.urls")),
    path("v1/", include("batches.urls")),
    path("v1/", include("workers.urls")),
    path("api/schema/", SchemaView.as_view(), name="schema"),
    path("docs/", SpectacularSwaggerView.as_view(), name="docs"),
    path("docs", RedirectView.as_view(pattern_name="docs")),
    path("health", health),
    path("admin/", admin.site.urls),
]
