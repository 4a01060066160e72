"""The order in which an engine takes waiting requests. Pure: no Django.

vLLM reads it from the field `priority` of each request. That field is the server's: what a user puts there is
overridden, because whoever could name a number would go before everybody else.
"""

# Lower goes first. Zero is what vLLM gives requests without the field, such as those of an engine's other users.
LIVE = -1
BATCH = 0


def with_priority(body: bytes, priority: int) -> bytes:
    """Return a JSON object, which is not empty, with its priority set; all else stays as it was written.

    Of two equal keys the later one counts, so the user's own needs not be found and cut out.
    """
    return b'%b,"priority":%d}' % (body.rstrip()[:-1], priority)
