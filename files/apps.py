"""The files app."""

from django.apps import AppConfig


class FilesConfig(AppConfig):
    name = "files"
    verbose_name = "Files"

    def ready(self) -> None:
        """Make the folder that uploads arrive in."""
        from files import storage

        storage.prepare()
