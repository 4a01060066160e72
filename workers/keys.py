"""The key of each engine: made from the server's secret and the service's id, so that it is stored nowhere.

A runner or a launcher gives it to the engine that it starts, and every web process can make it again.
"""

from django.utils.crypto import salted_hmac

_SALT = "vbatch.workers.engine"


def engine_key(service_id: int) -> str:
    """Return the bearer key of one service's engine; it changes with VBATCH_SECRET_KEY."""
    return salted_hmac(_SALT, str(service_id), algorithm="sha256").hexdigest()
