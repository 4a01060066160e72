"""The files app."""

from django.apps import AppConfig


class FilesConfig(AppConfig):
    name = "files"
    verbose_name = "Files"

    def ready(self) -> None:
        """Make the folder that uploads arrive in, and take part in deleting projects."""
        from files import erasure, storage
        from vbatch_site.erasure import Room, register

        register("files", Room(erasure.empty, erasure.is_empty))
        storage.prepare()
