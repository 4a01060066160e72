"""Simulate vLLM's OpenAI server: a program of its own, for tests, fault injection and measuring the control plane.

    python -m workers.sim --host 127.0.0.1 --port 8000 --model some/model --served-model-name NAME

It answers on vLLM's routes, in vLLM's shapes, with vLLM's refusals, and computes nothing: a chat gets
"echo: <the last user text, at most 200 characters>". A token is four characters, both ways. Without max_tokens a chat
or a response ends by itself (finish_reason "stop") and a completion after 16 tokens, as in vLLM; a text that max_tokens
cuts ends with "length". `ignore_eos` with max_tokens fills the answer up to exactly that many tokens, `min_tokens`
up to at least that many. Every answer that has a `system_fingerprint` carries "vllm-sim" there, so that no simulated
answer can pass for a real one. Nothing here imports Django.

Arguments (vLLM's names; every other one is ignored)

    --host, --port, --uds           where to listen
    --model                         what /v1/models gives as root
    --served-model-name             one or more names; the model's own without it
    --lora-modules                  name=path or JSON, one or more: further names that are answered
    --api-key                       one or more; else VLLM_API_KEY; without either every caller is let in
    --max-model-len                 longer prompts are refused
    --scheduling-policy priority    the waiting line is ordered by the request's `priority`, lowest first

Environment

    VBATCH_SIM_LINES_PER_SECOND     requests started a second over the whole server; 0: no limit
    VBATCH_SIM_LATENCY_MS           time to the first token
    VBATCH_SIM_TOKENS_PER_SECOND    decode speed of each request; 0: instant
    VBATCH_SIM_STARTUP              seconds in which every route answers 503
    VBATCH_SIM_STARTUP_FAIL         1: print an error as vLLM would and exit with 1
    VBATCH_SIM_CONCURRENCY          requests worked on at once, the others wait; 0: no limit
    VBATCH_SIM_CONTENTION           part by which each further request that is worked on slows down both the first token
                                    and the pace of all: 0.1 is much like a GPU, 11 at once take twice the time of one
    VBATCH_SIM_FAILURE_RATE         part (0..1) answered 500, decided by the user text and how often it came before:
                                    the same run fails in the same places, and a retry can succeed
    VBATCH_SIM_WAKE_GARBLES         1: texts are wrong after a /wake_up
    VBATCH_SIM_REQUEST_LOG          file that gets the user text of each request taken, one JSON string a line
    VBATCH_SIM_ORDERS               file whose markers (below) every request is taken to have, for as long as it exists

A variable that isn't a number in its range ends the program with 2.

Markers, anywhere in the body of a request

    [[sim:crash]]           the process ends at once with 139, like a segmentation fault
    [[sim:hang]]            no answer until the client goes away; the place in the line stays taken
    [[sim:slow:SECONDS]]    that much later
    [[sim:400]] [[sim:500]] that status, in vLLM's envelope
    [[sim:503once]]         503 the first time this text comes, an answer afterwards
    [[sim:garbage]]         200 and a body that isn't JSON
    [[sim:truncate]]        half of the body that content-length promised, then the connection closes
    [[sim:200error]]        200 and an error envelope as the body
    [[sim:bytes]]           200 and an answer with a byte that isn't UTF-8

Of its own, without a key: GET /sim/stats gives {"running", "waiting", "completed", "failed", "aborted",
"max_running", "priorities"}: requests worked on now, in line now, answered 200, answered otherwise after they were
taken, dropped because their client went away, the most ever worked on at once, and how many came with each priority.
"""
