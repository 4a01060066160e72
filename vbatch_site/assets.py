"""Static files under hashed names, collected once for every change and shared by all servers of an installation.

Without a collection (the installation may be read-only) plain names are served from the packages, as in tests.
"""

import hashlib
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.staticfiles.finders import get_finders
from whitenoise.storage import CompressedManifestStaticFilesStorage

logger = logging.getLogger(__name__)

_STAMP = "collected"

# Unfold's head asks for a chart library of 69 KB (compressed) on every page; our plots are SVG and no page has a chart.
# And for whole fonts of 115 KB each.
_INSTEAD = {
    "unfold/js/chart/chart.js": "console/no-chart.js",
    "unfold/fonts/inter/styles.css": "console/fonts/whole.css",
}


class AssetStorage(CompressedManifestStaticFilesStorage):  # type: ignore[misc]  # it ships no types
    """Hashed names for what was collected, plain ones otherwise."""

    manifest_strict = False
    # Packages refer to source maps that they do not ship.
    support_js_module_import_aggregation = False

    def stored_name(self, name: str) -> str:
        """Return the name under which a file is served."""
        return str(self.hashed_files.get(self.hash_key(self.clean_name(name)), name))

    def url(self, name: str | None, force: bool = False) -> str:
        """Return the address of a file, hashed if it was collected."""
        return str(super().url(_INSTEAD.get(name or "", name), force=True))


def _state() -> str:
    """Return a digest of all static files there are: names, sizes and times."""
    digest = hashlib.sha256()
    for finder in get_finders():
        for name, storage in finder.list([]):
            stat = os.stat(storage.path(name))
            digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def collect() -> bool:
    """Collect static files if any changed; return whether hashed ones can be served."""
    root = Path(settings.STATIC_ROOT)
    try:
        state = _state()
        if (root / _STAMP).is_file() and (root / _STAMP).read_text() == state:
            return True
        root.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=root.parent, prefix=".static-"))
    except OSError as error:
        logger.warning("static files keep their plain names: %s", error, extra={"action": "collect_static"})
        return False
    try:
        storage: Any = AssetStorage(location=str(new), base_url=settings.STATIC_URL)
        _copy(new)
        names = [str(path.relative_to(new)) for path in new.rglob("*") if path.is_file()]
        paths = {name: (storage, name) for name in names}
        for _, _, processed in storage.post_process(paths, dry_run=False):
            if isinstance(processed, Exception):
                raise processed
        (new / _STAMP).write_text(state)
        new.chmod(0o755)
        old = Path(tempfile.mkdtemp(dir=root.parent, prefix=".static-"))
        if root.exists():
            root.rename(old / "old")
        new.rename(root)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        # Another server that starts now may have been faster; either way plain names work.
        logger.warning("static files were not collected: %s", error, extra={"action": "collect_static"})
        shutil.rmtree(new, ignore_errors=True)
        return (root / _STAMP).is_file()
    return True


def _copy(into: Path) -> None:
    for finder in get_finders():
        for name, storage in finder.list([]):
            target = into / name
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(storage.path(name), target)
