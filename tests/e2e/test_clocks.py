"""Where the time to the first token goes, as the real server tells it: in answers, metrics, logs and traces."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import httpx
import pytest
from clips import clip
from messages import data_uri, text, user, video
from requirements import require
from serving import Server, metric, start, stop

STAGES = ("receive", "fetch", "extract", "preprocess", "queue", "prefill")
QUESTION = text("What moves?")
ROUTE = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


def body(*parts: dict[str, Any], stream: bool = True, tokens: int = 8, **more: Any) -> bytes:
    options = {"stream_options": {"include_usage": True}} if stream else {}
    fixed = {"model": "cope-tiny", "temperature": 0, "max_completion_tokens": tokens, "ignore_eos": True}
    return json.dumps({**fixed, "messages": user(*parts), "stream": stream, **options, **more}).encode()


def ask(server: Server, content: Any, **headers: str) -> tuple[dict[str, Any], float | None]:
    """The usage block, and the time to the first token by the client's own clock if the answer is a stream."""
    usage, first = None, None
    with httpx.Client(base_url=server.url, timeout=120) as client:
        client.get("/health")  # the connection is there
        begun = time.perf_counter()
        with client.stream("POST", ROUTE, content=content, headers={**JSON, **headers}) as answer:
            if not answer.headers["content-type"].startswith("text/event-stream"):
                answer.read()
                assert answer.status_code == 200, answer.text
                return answer.json()["usage"], None
            for line in answer.iter_lines():
                event = json.loads(line[6:]) if line.startswith("data: {") else {"choices": []}
                if first is None and any(choice["delta"].get("content") for choice in event["choices"]):
                    first = time.perf_counter() - begun
                usage = event.get("usage") or usage
    assert usage is not None and first is not None
    return usage, first


def check_sum(timings: dict[str, float]) -> None:
    """Within 5 % or 2 ms, as promised."""
    assert list(timings) == [*STAGES, "ttft", "e2e"]
    assert all(timings[stage] >= 0 for stage in STAGES)
    total = sum(timings[stage] for stage in STAGES)
    assert total == pytest.approx(timings["ttft"], rel=0.05, abs=0.002)
    assert timings["ttft"] <= timings["e2e"]


def count(server: Server, name: str, kind: str, cache: str) -> float:
    return metric(server, f'cope_{name}_seconds_count{{cache="{cache}",input="{kind}"}}')


@pytest.mark.alone
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(
    ("options", "kind", "cache"),
    [
        (None, "text", "none"),
        ({}, "codec", "cold"),
        ({}, "codec", "warm"),
        ({"frames": 8}, "dense", "cold"),
        ({"frames": 8}, "dense", "warm"),
    ],
    ids=["text", "cold codec", "warm codec", "cold dense", "warm dense"],
)
def test_stages_add_up_to_ttft(
    server: Server, options: dict[str, Any] | None, kind: str, cache: str, stream: bool
) -> None:
    names = ("time_to_first_token", "e2e_latency")
    parts = [QUESTION] if options is None else [video(clip(12, seed=300 + stream), **options), QUESTION]
    if cache == "warm":
        ask(server, body(*parts))
    before = [count(server, name, kind, cache) for name in names]
    usage, first = ask(server, body(*parts, stream=stream))
    timings = usage["timings"]
    check_sum(timings)
    assert timings["receive"] > 0 and timings["preprocess"] > 0 and timings["prefill"] > 0
    if options is None:
        assert timings["fetch"] == timings["extract"] == 0
    else:
        assert timings["fetch"] > 0 and timings["extract"] > 0
    if first is not None:
        assert timings["ttft"] < first < timings["ttft"] + 0.25  # the client shares the machine with the server
    after = [count(server, name, kind, cache) for name in names]
    assert [a - b for a, b in zip(after, before, strict=True)] == [1 if stream else 0, 1]


@pytest.mark.alone
def test_a_slow_upload_shows_as_receive(server: Server) -> None:
    content = body(video(clip(4, seed=310)), QUESTION)

    def slowly() -> Iterator[bytes]:
        yield content[:1000]
        time.sleep(0.4)
        yield content[1000:]

    timings = ask(server, slowly())[0]["timings"]
    check_sum(timings)
    assert timings["receive"] >= 0.35


@pytest.mark.alone
def test_a_slow_host_shows_as_fetch(server: Server) -> None:
    data = clip(4, seed=311)

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(0.4)
            self.send_response(200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    host = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=host.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{host.server_address[1]}/clip.mp4"
        timings = ask(server, body(video(url), video(data_uri(data)), QUESTION))[0]["timings"]
    finally:
        host.shutdown()
        host.server_close()
    check_sum(timings)
    assert timings["fetch"] + timings["extract"] >= 0.4 > timings["receive"]
    assert timings["fetch"] > 0.1


@pytest.mark.alone
def test_the_stages_on_metrics_add_up_too(server: Server) -> None:
    def sums() -> tuple[float, float]:
        return metric(server, "cope_stage_seconds_sum"), metric(server, "cope_time_to_first_token_seconds_sum")

    def tokens() -> list[float]:
        return [metric(server, f'cope_video_tokens_total{{kind="{kind}"}}') for kind in ("i", "p", "text")]

    before, spent = sums(), tokens()
    usage, _ = ask(server, body(video(clip(12, seed=312)), QUESTION))
    after = sums()
    assert after[0] - before[0] == pytest.approx(after[1] - before[1], rel=0.05, abs=0.002)
    assert after[1] - before[1] == pytest.approx(usage["timings"]["ttft"], abs=1e-5)
    account = usage["video"]
    counted = [a - b for a, b in zip(tokens(), spent, strict=True)]
    i_and_p = account["i_tokens"], account["p_tokens"]
    assert counted == [*i_and_p, usage["prompt_tokens"] - sum(i_and_p)]


@pytest.mark.alone
@pytest.mark.parametrize("more", [{"n": 2, "temperature": 1.0}, {"use_beam_search": True, "n": 2}], ids=str)
def test_several_answers_have_one_clock(server: Server, more: dict[str, Any]) -> None:
    check_sum(ask(server, body(QUESTION, stream=False, **more))[0]["timings"])


@pytest.mark.alone
def test_a_long_answer_in_one_piece_knows_when_it_began(server: Server) -> None:
    ask(server, body(QUESTION))
    timings = ask(server, body(QUESTION, stream=False, tokens=64))[0]["timings"]
    check_sum(timings)
    assert timings["ttft"] < timings["e2e"] / 2


def test_refusals_are_counted_by_their_code(server: Server) -> None:
    name = 'cope_rejected_total{code="invalid_option"}'
    before = metric(server, name)
    answer = httpx.post(f"{server.url}{ROUTE}", content=body(video(b"x", fps=0), QUESTION), headers=JSON, timeout=60)
    assert answer.status_code == 400
    assert metric(server, name) == before + 1


class Collector(http.server.ThreadingHTTPServer):
    """Takes what an OTLP exporter sends over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Collect)
        self.posted: list[bytes] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def spans(self) -> list[Any]:
        """All spans so far."""
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        requests = [ExportTraceServiceRequest.FromString(posted) for posted in self.posted]
        return [
            span
            for request in requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class _Collect(http.server.BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.posted.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Collector]]:
    """A server that logs in JSON and traces to a collector."""
    require("ENGINE", find_spec("vllm") is not None, "vLLM is not installed (make setup)")
    collector = Collector()
    endpoint = f"http://127.0.0.1:{collector.server_address[1]}/v1/traces"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        log = tmp_path_factory.mktemp("log") / "server.log"
        words = ("--log-format", "json", "--otlp-traces-endpoint", endpoint)
        running = start(tmp_path_factory.mktemp("media"), log, *words)
    try:
        yield running, collector
    finally:
        stop(running)
        collector.shutdown()
        collector.server_close()


def logged(server: Server, request_id: str) -> dict[str, Any]:
    """The line of a request; it comes after the answer's last byte."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        lines = [json.loads(line) for line in server.log.read_text().splitlines() if '"chat request"' in line]
        found = [line for line in lines if line["request_id"] == request_id]
        if found:
            (line,) = found
            return dict(line)
        time.sleep(0.05)
    pytest.fail(f"no line of {request_id}")


def test_each_request_has_a_line(observed: tuple[Server, Collector]) -> None:
    server, _ = observed
    usage, _ = ask(server, body(video(clip(12, seed=320)), QUESTION), **{"X-Request-Id": "first"})
    line = logged(server, "chatcmpl-first")
    assert (line["status"], line["complete"], line["input"], line["cache"]) == (200, True, "codec", "cold")
    assert (line["video"], line["prompt_tokens"]) == (usage["video"], usage["prompt_tokens"])
    stages = {name: seconds for name, seconds in usage["timings"].items() if name != "e2e"}
    assert {name: line["timings"][name] for name in stages} == stages
    ask(server, body(video(clip(12, seed=320)), QUESTION, stream=False), **{"X-Request-Id": "second"})
    assert logged(server, "chatcmpl-second")["cache"] == "warm"
    refused = {"content": body(video(b"no video"), QUESTION), "headers": {**JSON, "X-Request-Id": "third"}}
    assert httpx.post(f"{server.url}{ROUTE}", timeout=60, **refused).status_code == 400
    line = logged(server, "chatcmpl-third")
    assert (line["status"], line["timings"]["ttft"], line["video"]) == (400, None, None)


def test_a_client_that_leaves_has_a_line_too(observed: tuple[Server, Collector]) -> None:
    server, _ = observed
    before = count(server, "e2e_latency", "text", "none")
    headers = {**JSON, "X-Request-Id": "gone"}
    with pytest.raises(httpx.ReadTimeout):
        long = body(QUESTION, stream=False, tokens=3000)
        httpx.post(f"{server.url}{ROUTE}", content=long, headers=headers, timeout=httpx.Timeout(30, read=0.3))
    line = logged(server, "chatcmpl-gone")
    assert (line["status"], line["input"]) == (499, "text")
    assert count(server, "e2e_latency", "text", "none") == before


def test_stages_are_spans_of_one_trace(observed: tuple[Server, Collector]) -> None:
    server, collector = observed
    trace = "0af7651916cd43dd8448eb211c80319c"
    ask(server, body(video(clip(12, seed=321)), QUESTION), traceparent=f"00-{trace}-b7ad6b7169203331-01")
    deadline = time.monotonic() + 20
    while True:
        spans = {span.name: span for span in collector.spans() if span.trace_id.hex() == trace}
        if {"cope.chat", "llm_request"} <= set(spans) or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert {f"cope.{stage}" for stage in STAGES} < set(spans)
    whole = spans["cope.chat"]
    assert whole.parent_span_id.hex() == "b7ad6b7169203331"
    assert {span.parent_span_id for name, span in spans.items() if name != "cope.chat"} == {whole.span_id}
    assert spans["cope.prefill"].start_time_unix_nano >= spans["cope.extract"].end_time_unix_nano
