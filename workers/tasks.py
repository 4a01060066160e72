"""What django-q2 calls on the gpu cluster."""

from workers import process


def wake() -> None:
    """Let this process's runner look for work now."""
    process.wake()
