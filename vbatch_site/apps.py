"""The site itself as an app: projects, keys, the wire format."""

from django.apps import AppConfig


class SiteConfig(AppConfig):
    name = "vbatch_site"
    verbose_name = "Projects and keys"
