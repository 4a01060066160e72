"""The workers app."""

from django.apps import AppConfig


class WorkersConfig(AppConfig):
    name = "workers"
    verbose_name = "Models and workers"

    def ready(self) -> None:
        """Tell the batches room which models there are, and start a runner in each gpu worker process."""
        from django_q.signals import post_spawn

        from batches import catalogue as door
        from workers import catalogue, process

        door.provide(catalogue.answerable, catalogue.engines)
        post_spawn.connect(process.start_runner, dispatch_uid="workers.start_runner")
