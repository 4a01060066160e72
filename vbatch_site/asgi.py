"""The web process's entry point: `uvicorn vbatch_site.asgi:application`."""

import os
import warnings

from vbatch_site.database import ensure_url

# WhiteNoise sends files from plain iterators. They are small, and an operator can't change it.
warnings.filterwarnings("ignore", message="StreamingHttpResponse must consume synchronous iterators")

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "vbatch_site.settings")
ensure_url()

from django.conf import settings  # noqa: E402 (the settings need the database's URL)
from django.core.asgi import get_asgi_application  # noqa: E402

from vbatch_site.openai.bodies import BodyGate  # noqa: E402
from vbatch_site.openai.crowd import Crowd  # noqa: E402

# Each request runs in a thread of its own, so connections are pooled per process instead of kept per thread.
_database = settings.DATABASES["default"]
_database["CONN_MAX_AGE"] = 0
_database["OPTIONS"]["pool"] = {"min_size": 1, "max_size": 16, "timeout": 20}

_django = get_asgi_application()

from vbatch_site.observed import Observed  # noqa: E402
from workers.live.app import LiveApi  # noqa: E402 (its models need Django set up)

application = Observed(Crowd(BodyGate(LiveApi(_django)), settings.VBATCH_WEB_REQUESTS))
