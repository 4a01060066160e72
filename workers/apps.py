"""The workers app."""

from django.apps import AppConfig


class WorkersConfig(AppConfig):
    name = "workers"
    verbose_name = "Models and workers"

    def ready(self) -> None:
        """Tell the batches room which models there are, and start a runner in each gpu worker process."""
        from django_q.signals import post_spawn

        from batches import catalogue as door
        from vbatch_site import doctor as site_doctor
        from vbatch_site import metrics as site_metrics
        from vbatch_site import readiness
        from vbatch_site import repair as site_repair
        from vbatch_site.erasure import Room, register
        from workers import catalogue, doctor, erasure, metrics, process, repair

        site_metrics.add(metrics.of_workers)
        readiness.register("gpu_cluster", metrics.gpu_cluster)
        readiness.register("engine", metrics.engine)

        door.provide(catalogue.answerable, catalogue.engines)
        register("workers", Room(erasure.empty, erasure.is_empty))
        post_spawn.connect(process.start_runner, dispatch_uid="workers.start_runner")
        site_repair.register(repair.killed)
        site_doctor.register("clusters", doctor.look_at_clusters)
        site_doctor.register("input files", doctor.look_at_inputs)
        site_doctor.register("engine", doctor.look_at_engine)
        site_doctor.register("models", doctor.look_at_models)
        site_doctor.register("GPU", doctor.look_at_gpus)
        self._furnish_console()

    def _furnish_console(self) -> None:
        from vbatch_site.console import registry
        from vbatch_site.console.registry import Panel
        from workers.console import machines

        registry.add_warnings(machines.warnings)
        registry.add_components(machines.components)
        registry.add_panel(Panel("console/workers/_strip.html", machines.strip, order=30, wide=True))
        registry.add_panel(Panel("console/workers/_board_gpus.html", machines.graphics, order=70))
