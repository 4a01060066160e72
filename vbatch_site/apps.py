"""The site itself as an app: projects, keys, the wire format."""

from contextlib import suppress

from django.apps import AppConfig


class SiteConfig(AppConfig):
    name = "vbatch_site"
    verbose_name = "Projects and keys"

    def ready(self) -> None:
        """Make the folder that whitenoise looks for, though everything in it is found in the packages."""
        from django.conf import settings

        with suppress(OSError):
            settings.STATIC_ROOT.mkdir(parents=True, exist_ok=True)

        from vbatch_site.console import dashboard, registry, system

        registry.add_warnings(dashboard.warnings)
        registry.add_components(system.components)
