"""Loaded before pytest-django reads the settings: a home and a Postgres of the test run's own."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

HOME = Path(tempfile.mkdtemp(prefix="vbatch-test-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)

os.environ["VBATCH_HOME"] = str(HOME)
os.environ["VBATCH_ENGINE"] = "sim"
# Compiling our modules is a quarter of a server's start, and the tests start servers by the hundred.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
for name in ("VBATCH_AUTH", "VBATCH_VLLM_ARGS", "VBATCH_LENIENT_CREATE", "VBATCH_COMPLETION_WINDOWS"):
    os.environ.pop(name, None)

from vbatch_site.database import ensure_url  # noqa: E402 (reads the home set above)

ensure_url()
