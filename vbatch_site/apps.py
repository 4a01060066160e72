"""The site itself as an app: projects, keys, the wire format."""

import sys
from contextlib import suppress

from django.apps import AppConfig


class SiteConfig(AppConfig):
    name = "vbatch_site"
    verbose_name = "Projects and keys"

    def ready(self) -> None:
        """Start the audit, and make the folder that whitenoise looks for, though what it serves is in the packages."""
        from django.conf import settings

        from vbatch_site import audit, checks, doctor  # noqa: F401 (checks register themselves)

        audit.listen()
        if sys.argv[1:2] == ["qcluster"]:
            from vbatch_site.cluster import prepare

            prepare()
        with suppress(OSError):
            settings.STATIC_ROOT.mkdir(parents=True, exist_ok=True)

        doctor.register("settings", doctor.look_at_settings)
        doctor.register("database", doctor.look_at_database)
        doctor.register("clock", doctor.look_at_clock)
        doctor.register("disk", doctor.look_at_disk)

        from vbatch_site.console import dashboard, registry, system

        registry.add_warnings(dashboard.warnings)
        registry.add_components(system.components)

        from vbatch_site import metrics, readiness

        metrics.add(metrics.of_site)
        readiness.register("database", readiness.database)
        readiness.register("default_cluster", readiness.default_cluster)
