"""How a request can end: a closed list, of which every request gets exactly one."""

from __future__ import annotations

# name: what happened; docs/loadtest.md prints it
OUTCOMES = {
    "ok": "HTTP 200, server-sent events with at least one token (or an end at once), and their proper end",
    "connect_error": "no connection could be made",
    "disconnected": "the connection broke before the answer's headers, or they were no HTTP",
    "broken_stream": "the connection broke, or the stream ended, before its end mark",
    "stalled": "nothing moved for stall_s seconds, in either direction",
    "timed_out": "not complete after timeout_s seconds",
    "busy": "HTTP 429 or 503: the server has too much to do",
    "refused": "another HTTP status from 400 to 499",
    "server_error": "another HTTP status from 500 to 599",
    "error_event": "the stream told of an error",
    "not_sse": "HTTP 200, but no server-sent events of a chat completion, or another status without a meaning here",
    "cut_off": "in flight when the run ended: its bound was reached and drain_s had passed, or it was interrupted",
    "not_sent": "due before the run ended, but still waiting for its turn (max_in_flight)",
}
OK = "ok"
