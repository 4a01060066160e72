"""What is broken when: a pure function of a seed and a number, so that any strike can be had again."""

from dataclasses import dataclass
from random import Random

# When a strike falls, seen from the batch that it shall hurt.
RUNNING, FINALIZING, UPLOADING = "running", "finalizing", "uploading"
# Running too, on a tree whose engine and whose Postgres are others' and reached over a network.
FAR = "running with engine and Postgres elsewhere"

# What may be broken at each moment. The disk matters only to who writes files.
AT: dict[str, tuple[str, ...]] = {
    RUNNING: (
        "worker killed",
        "workers killed",
        "worker frozen",
        "gpu cluster killed",
        "engine killed",
        "engine frozen",
        "engine fails",
        "engine hangs",
        "engine is slow",
        "engine lies",
        "engine stops half-way",
        "engine says 200 to an error",
        "engine talks nonsense",
        "default cluster killed",
        "web killed",
        "web frozen",
        "postgres killed",
        "postgres frozen",
        "connections ended",
        "guard killed",
        "clock set ahead",
        "clock set back",
        "clock wrong",
        "tree killed",
        "root killed",
        "tree stopped",
    ),
    FAR: (
        "network cut",
        "network stalled",
        "outside postgres killed",
        "postgres frozen",
        "worker killed",
        "gpu cluster killed",
        "connections ended",
        "web killed",
    ),
    FINALIZING: (
        "default worker killed",
        "default cluster killed",
        "default cluster frozen",
        "postgres killed",
        "connections ended",
        "tree killed",
        "clock set ahead",
        "clock set back",
        "clock wrong",
        "disk full",
        "disk read-only",
    ),
    UPLOADING: (
        "web killed",
        "web frozen",
        "postgres killed",
        "connections ended",
        "clock set ahead",
        "clock set back",
        "disk full",
        "disk read-only",
    ),
}
# What a person does to a second batch meanwhile.
STEERING = ("cancelled", "paused", "expired", "input deleted")

# After these there is no tree for another fault to hit at the same time.
ALONE = frozenset({"tree killed", "root killed", "tree stopped"})
_SEVERAL = 0.4  # part of the strikes that are several faults at once
_STEERED = 0.4  # part of the strikes in which a second batch is steered
_WEIGHTS = {RUNNING: 6, FINALIZING: 3, UPLOADING: 1, FAR: 2}


@dataclass(frozen=True, slots=True)
class Strike:
    """One or more faults at one moment."""

    moment: str
    faults: tuple[str, ...]
    steering: str = ""
    delay: float = 0.0  # seconds from the moment to the faults

    def __str__(self) -> str:
        steered = f", another batch {self.steering}" if self.steering else ""
        return f"{' + '.join(self.faults)} while {self.moment}{steered}"


def strike(seed: int, number: int) -> Strike:
    """Return one strike of a seed's endless row; the first ones take each fault alone."""
    singles = [(moment, fault) for moment, faults in AT.items() for fault in faults]
    order = Random(f"{seed}").sample(singles, len(singles))  # noqa: S311
    random = Random(f"{seed}:{number}")  # noqa: S311
    delay = random.uniform(0, 0.1)
    if number < len(order):
        moment, fault = order[number]
        return Strike(moment, (fault,), delay=delay)
    moment = random.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
    count = random.choice((2, 2, 3)) if random.random() < _SEVERAL else 1
    faults = tuple(random.sample([fault for fault in AT[moment] if count == 1 or fault not in ALONE], count))
    steering = random.choice(STEERING) if random.random() < _STEERED else ""
    return Strike(moment, faults, steering, delay)
