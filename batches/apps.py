"""The batches app."""

from django.apps import AppConfig


class BatchesConfig(AppConfig):
    name = "batches"
    verbose_name = "Batches"

    def ready(self) -> None:
        """Turn what happens to batches into webhook events, and start a courier in each default worker process."""
        from django_q.signals import post_spawn

        from batches import erasure, signals
        from batches.webhooks import events, process
        from vbatch_site.erasure import Room, register

        register("batches", Room(erasure.empty, erasure.is_empty))
        signals.moved.connect(events.on_move, dispatch_uid="batches.webhooks.on_move")
        signals.progressed.connect(events.on_progress, dispatch_uid="batches.webhooks.on_progress")
        post_spawn.connect(process.start_courier, dispatch_uid="batches.webhooks.start_courier")
