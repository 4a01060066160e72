"""Let forked processes end with the one that forked them, however it dies. Linux only.

django-q2's cluster is a tree: the program forks a sentinel, and that forks workers. A kill -9 of the upper levels would
leave the lower ones at work with nobody to stop them.
"""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def tie() -> None:
    """Have all that this process and its descendants fork from here on killed when its parent ends."""
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def remember() -> None:
        nonlocal parent
        parent = os.getpid()

    def follow() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)  # it died in between

    os.register_at_fork(before=remember, after_in_child=follow)
