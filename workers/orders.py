"""From a recipe and a request to what launchers start: how many servers, where, with which arguments."""

import os
import sys
from dataclasses import dataclass

from django.conf import settings

from workers import catalogue, devices, machine
from workers.engine import EngineSpec, command, split_arguments
from workers.launchers import Order
from workers.launchers.slurm import has_gpus
from workers.models import Launcher, ServedModel
from workers.recipes import Recipe, RecipeError, Value
from workers.recipes import Settings as Wanted

# Of this process's environment, what a job on another machine needs too: never our own secrets.
_PASSED = ("VLLM_", "HF_", "HUGGING_FACE_", "VBATCH_SIM_", "LD_LIBRARY_PATH", "http_proxy", "https_proxy", "no_proxy")
# Parameters that become something else than a variable of the engine's environment.
_TRANSLATED = {"VLLM_MODEL", "VLLM_HOST", "VLLM_PORT", "VLLM_TENSOR_PARALLEL_SIZE", "CUDA_VISIBLE_DEVICES"}
_REPLICAS_WITHOUT_GPU = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One server of a request."""

    nodes: int
    gpu: int  # on each node
    port: int
    is_replica: bool = False


def plan(recipe: Recipe, wanted: Wanted, launcher: str, parallel: int = 1) -> list[Plan]:
    """Return the servers that a request comes to, of a model that its entry splits over so many GPUs.

    Raises RecipeError for what can't be had here, or LaunchError.
    """
    nodes = wanted.integer("nodes", 1)
    gpu = _gpus(wanted, launcher, wanted.integer("VLLM_TENSOR_PARALLEL_SIZE") or parallel)
    per_replica = wanted.integer("gpu_per_replica")
    if not per_replica:
        if launcher == Launcher.LOCAL:
            if nodes > 1:
                raise RecipeError(
                    "This server starts services on one host; several nodes need VBATCH_LAUNCHER=slurm.",
                    "config.resources.nodes",
                    "not_available",
                )
            _check_devices(wanted, gpu)
        return [Plan(nodes=nodes, gpu=gpu, port=wanted.integer("VLLM_PORT"))]
    if 0 < gpu < per_replica:
        raise RecipeError(
            f"A node's {gpu} GPUs are fewer than the {per_replica} of one replica.",
            "config.gpu_per_replica",
            "invalid_value",
        )
    on_node = wanted.integer("replicas") or (gpu // per_replica if gpu else _REPLICAS_WITHOUT_GPU)
    base = wanted.integer("base_port")
    share = per_replica if gpu else 0
    if launcher == Launcher.LOCAL:
        _check_devices(wanted, share * nodes * on_node)
    return [
        Plan(nodes=1, gpu=share, port=base + index if base else 0, is_replica=True) for index in range(nodes * on_node)
    ]


def _gpus(wanted: Wanted, launcher: str, parallel: int) -> int:
    """Return the GPUs of a node: what was asked for, and a recipe's own number only where there are GPUs at all."""
    gpu = wanted.integer("gpu")
    if not gpu:
        return 0
    if "gpu" not in wanted.given:
        gpu = max(gpu, parallel)
    # The simulated engine computes nothing.
    is_free_to_choose = "gpu" not in wanted.given or settings.VBATCH_ENGINE == "sim"
    if launcher == Launcher.LOCAL:
        if not _here():
            if is_free_to_choose:
                return 0
            raise RecipeError("This host has no GPU.", "config.resources.gpu", "gpu_not_available")
    elif is_free_to_choose and not has_gpus():
        return 0
    return gpu


def _here() -> list[str]:
    """Return the GPUs of this host; the simulated engine takes a name for a GPU."""
    return devices.present() if machine.gpu_count() or settings.VBATCH_ENGINE == "sim" else []


def _check_devices(wanted: Wanted, gpu: int) -> None:
    """Refuse GPUs that this host does not have."""
    here = _here()
    if not gpu:
        return
    named = [device for device in wanted.text("CUDA_VISIBLE_DEVICES").split(",") if device]
    for device in named:
        if device not in here:
            raise RecipeError(
                f"There is no GPU {device} on this host; there are {', '.join(here)}.",
                "config.environment.CUDA_VISIBLE_DEVICES",
                "gpu_not_available",
            )
    if gpu > len(here):
        raise RecipeError(
            f"{gpu} GPUs were asked for and this host has {len(here)}.", "config.resources.gpu", "gpu_not_available"
        )


def order(plan: Plan, name: str, model: ServedModel, recipe: Recipe, wanted: Wanted, launcher: str) -> Order:
    """Return what the launcher is handed for one server."""
    is_local = launcher == Launcher.LOCAL
    kind = settings.VBATCH_ENGINE
    source = catalogue.source_of(model)
    parallel = wanted.integer("VLLM_TENSOR_PARALLEL_SIZE") or plan.gpu
    arguments = [*wanted.arguments]
    if parallel > 1:
        arguments += ["--tensor-parallel-size", str(parallel)]
    if plan.nodes > 1:
        arguments += ["--pipeline-parallel-size", str(plan.nodes), "--distributed-executor-backend", "mp"]
    is_on_cpu = kind == "vllm" and not plan.gpu
    on_cpu = machine.engine_arguments() if is_on_cpu else ""
    spec = EngineSpec(
        name=model.name,
        source=source,
        # What a person set for this service wins over the catalogue's and the server's.
        arguments=(*split_arguments(on_cpu, settings.VBATCH_VLLM_ARGS, model.engine_args), *arguments),
        kind=kind,
        log=settings.VBATCH_HOME / "services" / name / "log",
    )
    image = recipe.image if kind == "vllm" else ""
    python = "python3" if image else sys.executable
    return Order(
        name=name,
        program=tuple(command(spec, python)),
        headless_program=(python, "-m", "vllm.entrypoints.cli.main", "serve", source, "--headless", *spec.arguments),
        environment={
            **(machine.engine_environment() if is_on_cpu and is_local else {}),
            **_environment(recipe, wanted.environment, is_local=is_local),
        },
        nodes=plan.nodes,
        cpu=wanted.integer("cpu", 1),
        memory=wanted.text("memory"),
        minutes=wanted.integer("time_limit"),
        gpu=plan.gpu,
        # Nobody outside asks a service of this host.
        listen=wanted.text("VLLM_HOST") or ("127.0.0.1" if is_local else "0.0.0.0"),  # noqa: S104
        port=plan.port,
        image=image,
        image_arguments=("--bind", source) if image and source.startswith("/") else (),
        images=str(settings.VBATCH_HOME / "images"),
        account=wanted.text("account"),
        partition=wanted.text("partition"),
        qos=wanted.text("qos"),
    )


def _environment(recipe: Recipe, asked: dict[str, Value], *, is_local: bool) -> dict[str, str]:
    """Return the variables that the engine gets on top of its machine's own."""
    found = {name: value for name, value in os.environ.items() if not is_local and name.startswith(_PASSED)}
    for name, value in asked.items():
        if value is not None and name not in _TRANSLATED and not recipe.parameters[name].argument:
            found[name] = str(value)
    named = asked.get("CUDA_VISIBLE_DEVICES")
    # On this host the launcher says which GPUs are whose.
    if named is not None and not is_local:
        found["CUDA_VISIBLE_DEVICES"] = str(named)
    return found
