"""Packages for tests that need node's registry."""

import os
import subprocess
from pathlib import Path

import pytest

_SECONDS = 180


def cannot(reason: str) -> None:
    """Skip where something can't be had, and fail where it must be: in CI."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def npm_pack(name: str, into: Path) -> Path:
    """Return the path of a package's archive, fetched through npm's own client."""
    try:
        done = subprocess.run(
            ["npm", "pack", name, "--silent"], cwd=into, check=True, capture_output=True, text=True, timeout=_SECONDS
        )
    except (OSError, subprocess.SubprocessError) as error:
        cannot(f"npm could not fetch {name}: {error}")
        raise
    return into / done.stdout.strip().splitlines()[-1]
