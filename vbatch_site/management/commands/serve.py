"""Run everything that one machine needs, until it is told to stop."""

import fcntl
import secrets
import signal
import socket
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from vbatch_site import assets, database, repair
from vbatch_site.models import ApiKey, Project
from vbatch_site.supervisor import Supervisor, cluster, web

ADMIN_NAME = "admin"


class Command(BaseCommand):
    help = "Runs the web server and both clusters on this machine; Ctrl-C stops all of it."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("--host", default=settings.VBATCH_HOST, help="address to listen on")
        parser.add_argument("--port", type=int, default=settings.VBATCH_PORT, help="port to listen on")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run until a signal."""
        host, port = options["host"], options["port"]
        with only_one():
            check_port(host, port)
            call_command("migrate", interactive=False, verbosity=0)
            repair.run()
            assets.collect()
            supervisor = Supervisor([web(host, port), cluster("default"), cluster("gpu")])
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, supervisor.on_signal)
            self.greet(host, port)
            supervisor.start()
            try:
                for program in supervisor.watch(also=self.revive_database):
                    self.stderr.write(f"vbatch: {program.name} ended by itself; starting it again.")
            finally:
                self.stdout.write("vbatch: stopping.")
                supervisor.stop()

    def revive_database(self) -> None:
        """Start the embedded Postgres again if it was killed."""
        if database.revive():
            self.stderr.write("vbatch: Postgres ended by itself; started it again.")

    def greet(self, host: str, port: int) -> None:
        """Say where things are and, on the first start, the secrets that are shown once."""
        base = f"http://{'localhost' if host in ('127.0.0.1', '0.0.0.0', '::') else host}:{port}"  # noqa: S104
        lines = [f"API      {base}/v1", f"Console  {base}/console/"]
        users = get_user_model()._default_manager
        if not users.exists():
            password = secrets.token_urlsafe(12)
            users.create_superuser(ADMIN_NAME, password=password)
            _, key = ApiKey.issue(Project.default(), "first key")
            lines += [f"         user {ADMIN_NAME}, password {password}", f"Key      {key}"]
            lines.append("         (password and key are shown this once)")
        if settings.VBATCH_ENGINE == "sim":
            lines.append("Engine   simulated: answers are made up (VBATCH_ENGINE=sim)")
        if settings.VBATCH_AUTH == "optional":
            lines.append("Keys     not required (VBATCH_AUTH=optional): only for a network you trust")
        self.stdout.write("\n".join(lines))
        self.stdout.flush()


@contextmanager
def only_one() -> Iterator[None]:
    """Hold the home folder's lock, or end with one line."""
    settings.VBATCH_HOME.mkdir(parents=True, exist_ok=True)
    with (settings.VBATCH_HOME / "serve.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(
                f"Already running on {settings.VBATCH_HOME}; stop it first, or set VBATCH_HOME to another folder."
            ) from None
        yield


def check_port(host: str, port: int) -> None:
    """End with one line when the port can't be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CommandError(
                f"Can't listen on {host}:{port} ({error.strerror}); set VBATCH_PORT to a free port."
            ) from None
