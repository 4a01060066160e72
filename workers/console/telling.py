"""What a person tells a worker: drain, stop, resume, load, unload; and why that can't be told now."""

from typing import Any

from django.conf import settings
from django.http import Http404, HttpRequest
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from django.urls import reverse

from batches.console.shown import Action
from vbatch_site.console.pages import back, complain, page, say
from vbatch_site.console.roles import Right, may
from workers import steering
from workers.models import ServedModel, Wanted, Worker

_ORDERS = {
    "drain": (steering.drain, "{} finishes what it has in hand and takes nothing more."),
    "stop": (steering.stop, "{} finishes what it has in hand, and stops its engine."),
    "resume": (steering.resume, "{} takes work again."),
    "unload": (steering.unload, "{} stops its engine once nothing is in hand."),
}
_STOPS = "The lines in its hands are finished, then its engine stops and the GPU is free. Resume has it work again."


def worker_actions(worker: Any, user: Any) -> list[Action]:
    """Return what a user may tell a worker that has its state on it; nothing that the user's role forbids."""
    if not may(user, Right.ADMINISTER):
        return []
    refusal = "" if worker.alive else f"It is {worker.word}."
    if worker.wanted in (Wanted.DRAIN, Wanted.STOP):
        return [Action("resume", "Resume", refusal)]
    question = "Stop this worker after what it has in hand?"
    return [
        Action("drain", "Drain", refusal),
        Action("stop", "Stop after this", refusal, question, _STOPS),
    ]


def unload_refusal(waiting: int) -> str:
    """Return why a model that has so many lines waiting can't be unloaded, empty where it can."""
    return f"{waiting:,} lines wait for it: it would be loaded again. Drain the worker instead." if waiting else ""


def load_refusal(model: ServedModel, takers: int) -> str:
    """Return why a model can't be loaded now, empty where it can; `takers` is the number of workers that could."""
    if not model.enabled:
        return "It is disabled."
    if settings.VBATCH_LAUNCHER == "slurm":
        return "Under SLURM workers load nothing: start a service."
    return "" if takers else "No worker is free to load it."


@page(Right.ADMINISTER, methods=("POST",))
def tell(request: HttpRequest, worker_id: str, action: str) -> HttpResponseBase:
    """Tell a worker what to do."""
    if action not in _ORDERS:
        raise Http404
    worker = get_object_or_404(Worker, pk=worker_id)
    order, said = _ORDERS[action]
    try:
        order(worker.pk)
        say(request, said.format(worker.pk))
    except steering.TooLate:
        complain(request, f"{worker.pk} has ended, or is told otherwise.")
    return back(request, reverse("console:models" if action == "unload" else "console:workers"))


@page(Right.ADMINISTER, methods=("POST",))
def load(request: HttpRequest, pk: int) -> HttpResponseBase:
    """Have a worker load a model."""
    model = get_object_or_404(ServedModel, pk=pk)
    worker = Worker.objects.filter(pk=request.POST.get("worker", "").replace("\0", "")).first()
    if refusal := load_refusal(model, 1 if worker else 0):
        complain(request, refusal)
        return back(request, reverse("console:models"))
    try:
        steering.load(worker.pk if worker else "", model)
        say(request, f"{model.name} is being loaded, after what the worker is at.")
    except steering.TooLate:
        complain(request, "The worker has ended, or takes no work.")
    return back(request, reverse("console:models"))
