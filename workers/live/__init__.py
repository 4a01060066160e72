"""Live requests: passed through to a running engine of their model, streamed or not.

    app       the ASGI application in front of Django's: routes, refusals, sending
    door      who may ask: key, scope and rate
    bodies    what is read of a request's body
    roster    which engines run, and waiting for one to
    rows      connections to the database for the event loop
    upstream  connections to engines
    pulse     what the runners are told of live requests, so that they feed fewer lines of batches

Django gives each request a thread for as long as it lasts. A stream lasts minutes and needs none, so these routes are
answered on the event loop before Django sees them, with one query for each request; what is written once a second or
less takes a thread, for a moment.
"""
