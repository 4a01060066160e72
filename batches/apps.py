"""The batches app."""

from django.apps import AppConfig


class BatchesConfig(AppConfig):
    name = "batches"
    verbose_name = "Batches"

    def ready(self) -> None:
        """Turn what happens to batches into webhook events, and start a courier in each default worker process."""
        from django_q.signals import post_spawn

        from batches import counting, doorbell, erasure, metrics, revival, signals, traces
        from batches.webhooks import events, process
        from files.deletion import deleted
        from vbatch_site.erasure import Room, register
        from vbatch_site.metrics import add

        add(metrics.of_batches)
        traces.connect()
        register("batches", Room(erasure.empty, erasure.is_empty))
        signals.moved.connect(counting.move, dispatch_uid="batches.counting.move")
        signals.moved.connect(events.on_move, dispatch_uid="batches.webhooks.on_move")
        signals.progressed.connect(events.on_progress, dispatch_uid="batches.webhooks.on_progress")
        deleted.connect(lambda **_: doorbell.ring_remove(), weak=False, dispatch_uid="batches.ring_remove")
        post_spawn.connect(process.start_courier, dispatch_uid="batches.webhooks.start_courier")
        post_spawn.connect(revival.ring_at_start, dispatch_uid="batches.revival")
        self._furnish_console()

    def _furnish_console(self) -> None:
        from batches.console import board, gate, hooks, uses
        from files.console import pages
        from vbatch_site.console import registry
        from vbatch_site.console.registry import Panel

        registry.add_tiles(board.tiles)
        registry.add_warnings(gate.warnings)
        registry.add_warnings(hooks.warnings)
        registry.add_control(Panel("console/batches/_intake.html", gate.control))
        registry.add_key_uses(uses.of_keys)
        registry.add_panel(Panel("console/batches/_board_throughput.html", board.throughput, order=10, wide=True))
        registry.add_panel(Panel("console/batches/_board_active.html", board.active, order=20, wide=True))
        registry.add_panel(Panel("console/batches/_board_events.html", board.events, order=60))
        pages.add_user(uses.of_file, uses.count, uses.narrow)
