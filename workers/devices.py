"""Which GPUs a gpu worker's engines may use: every worker of a host owns a part of them for as long as it lives."""

import fcntl
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from workers import machine

_NAME_BYTES = 200  # more than a holder's name has


class NoSlotError(Exception):
    """All engine slots of this host are taken by other workers."""


def visible() -> list[str]:
    """Return the GPUs of this host that vbatch may use, as CUDA names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    return [str(index) for index in range(machine.gpu_count())]


def present() -> list[str]:
    """Return all GPUs of this host: first those that its gpu workers never use."""
    return [*_spare(), *visible()]


def _spare() -> list[str]:
    own = visible()
    if not all(name.isdigit() for name in own):
        return []  # named by serial number: which index each is can't be told without CUDA
    return [name for name in map(str, range(machine.gpu_count())) if name not in own]


def part(devices: Sequence[str], slots: int, index: int) -> list[str]:
    """Return the devices of one of several slots: as even as they divide, neighbours together."""
    first, last = len(devices) * index // slots, len(devices) * (index + 1) // slots
    return list(devices[first:last])


class SlotLock:
    """The right to one engine slot of this host, held until the process ends, however it ends.

    Whoever gets the lock knows that the one who had it is gone, without waiting for its leases to run out.
    """

    def __init__(self, folder: Path, slots: int, holder: str) -> None:
        """Take the first free slot and note who has it; raise NoSlotError when there is none."""
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(slots):
            # The folder may be shared between hosts.
            descriptor = os.open(folder / f"{socket.gethostname()}-{index}.lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            self.index, self.slots, self._descriptor = index, slots, descriptor
            self.predecessor = os.pread(descriptor, _NAME_BYTES, 0).decode(errors="replace")
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, holder.encode(), 0)
            return
        raise NoSlotError(f"all {slots} engine slots of this host are taken")

    def environment(self) -> dict[str, str]:
        """Return what an engine of this slot needs to see its own GPUs and no others."""
        devices = visible()
        # More slots than GPUs: they share, which is for whoever set the number to know.
        own = part(devices, self.slots, self.index) or devices
        return {"CUDA_VISIBLE_DEVICES": ",".join(own)} if devices else {}

    def give_back(self) -> None:
        """Free the slot."""
        os.close(self._descriptor)
