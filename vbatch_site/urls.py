"""All routes."""

from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path

from vbatch_site.health import health

urlpatterns: list[URLPattern | URLResolver] = [
    path("v1/", include("files.urls")),
    path("v1/", include("batches.urls")),
    path("v1/", include("workers.urls")),
    path("health", health),
    path("admin/", admin.site.urls),
]
