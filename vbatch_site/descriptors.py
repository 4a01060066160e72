"""How many files and connections one process may have open. Pure: no Django."""

import resource


def raise_limit() -> None:
    """Let this process open as many as the machine allows: the usual soft limit is 1,024, for what uses select()."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
