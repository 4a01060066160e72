"""What tests of the workers share."""

from collections.abc import Iterator

import pytest

from workers.tests.simulated import Sim, serving


@pytest.fixture(scope="module")
def sim() -> Iterator[Sim]:
    """Serve without any knob; tests that need one start their own."""
    with serving("--enforce-eager", "--gpu-memory-utilization", "0.5", "--lora-modules", "poet=/adapters/poet") as sim:
        yield sim
