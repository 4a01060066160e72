"""The batches app."""

from django.apps import AppConfig


class BatchesConfig(AppConfig):
    name = "batches"
    verbose_name = "Batches"

    def ready(self) -> None:
        """Turn what happens to batches into webhook events, and start a courier in each default worker process."""
        from django_q.signals import post_spawn

        from batches import signals
        from batches.webhooks import events, process

        signals.moved.connect(events.on_move, dispatch_uid="batches.webhooks.on_move")
        signals.progressed.connect(events.on_progress, dispatch_uid="batches.webhooks.on_progress")
        post_spawn.connect(process.start_courier, dispatch_uid="batches.webhooks.start_courier")
