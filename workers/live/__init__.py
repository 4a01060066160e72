"""Live requests: passed through to a running engine of their model, streamed or not.

    app       the ASGI application in front of Django's: routes, refusals, sending
    bodies    what is read of a request, and what is added to it
    roster    which engines run, and waiting for one to
    upstream  connections to engines
    pulse     what the runners are told of live requests, so that they feed fewer lines of batches

Django gives each request a thread for as long as it lasts. A stream lasts minutes and needs none, so these routes are
answered on the event loop before Django sees them; only looking up a key and the engines takes a thread, for a moment.
"""
