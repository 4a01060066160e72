"""The files app."""

from django.apps import AppConfig


class FilesConfig(AppConfig):
    name = "files"
    verbose_name = "Files"

    def ready(self) -> None:
        """Make the folder that uploads arrive in, and take part in deleting projects."""
        from files import doctor, erasure, repair, storage, watch
        from vbatch_site import doctor as site_doctor
        from vbatch_site import metrics, readiness
        from vbatch_site import repair as site_repair
        from vbatch_site.erasure import Room, register

        metrics.add(watch.of_storage)
        readiness.register("storage", watch.storage_verdict)
        register("files", Room(erasure.empty, erasure.is_empty))
        site_doctor.register("storage", doctor.look)
        site_repair.register(repair.leftovers)
        storage.prepare()
