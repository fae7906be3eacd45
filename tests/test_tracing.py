"""One trace per chunk, through Kafka's headers; spans are kept in memory."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from fakes import BAD, FakePipeline, chunk, running, service_config, until
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from streamer.config import KafkaConfig, TracingConfig
from streamer.errors import ConfigError, DecodeError
from streamer.kafka.client import READ_COMMITTED, client_arguments
from streamer.kafka.publish import ChunkPublisher
from streamer.messages import Headers, decode_score
from streamer.tracing import Tracing, open_tracing

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736


@pytest.fixture
def memory() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(memory: InMemorySpanExporter) -> Tracing:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    return Tracing(provider)


def ids_of(headers: Headers) -> tuple[int, int]:
    """(trace id, span id) of a `traceparent`."""
    (value,) = [value for name, value in headers if name == "traceparent"]
    assert value is not None
    _, trace_id, span_id, _ = value.decode().split("-")
    return int(trace_id, 16), int(span_id, 16)


def own_ids(span: ReadableSpan) -> tuple[int, int]:
    context = span.get_span_context()
    assert context is not None
    return context.trace_id, context.span_id


@pytest.mark.parametrize("spelling", ["traceparent", "Traceparent"])
def test_a_chunk_goes_on_with_its_producers_trace(
    tracing: Tracing, memory: InMemorySpanExporter, spelling: str
) -> None:
    brought = [(spelling, TRACEPARENT.encode()), ("tracestate", b"vendor=1"), ("other", None)]
    trace = tracing.begin("chunks", 3, 41, brought)
    trace.begun()
    trace.end()
    (span,) = memory.get_finished_spans()
    assert (span.name, span.kind) == ("process chunks", SpanKind.CONSUMER)
    assert span.parent is not None
    assert (span.parent.trace_id, span.parent.span_id) == (TRACE_ID, 0x00F067AA0BA902B7)
    assert ids_of(trace.headers) == own_ids(span)
    assert dict(trace.headers)["tracestate"] == b"vendor=1"
    assert span.attributes is not None
    assert span.attributes["messaging.kafka.offset"] == 41
    assert [event.name for event in span.events] == ["begun"]


@pytest.mark.parametrize(
    "brought",
    [
        b"",
        b"nonsense",
        b"\xff" * 55,
        TRACEPARENT.encode()[:-1],
        b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01",
        b"1" * 9999,
    ],
)
def test_a_header_that_is_none_begins_a_trace(
    tracing: Tracing, memory: InMemorySpanExporter, brought: bytes
) -> None:
    tracing.begin("chunks", 0, 0, [("traceparent", brought), ("tracestate", b"\xff\x00")]).end()
    (span,) = memory.get_finished_spans()
    assert span.parent is None


def test_a_refused_chunk_says_why(tracing: Tracing, memory: InMemorySpanExporter) -> None:
    trace = tracing.begin("chunks", 0, 0, [])
    trace.refused(DecodeError("not_media", "no container \ud800 format"))
    trace.end()
    (span,) = memory.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["error.type"] == "not_media"
    assert span.status.status_code == StatusCode.ERROR
    assert (span.status.description or "").isprintable()


async def scores_with_headers(kafka: KafkaConfig, n: int) -> list[tuple[Any, Headers]]:
    """(update, headers) of the first n records of the scores topic."""
    consumer = AIOKafkaConsumer(
        kafka.scores_topic,
        **client_arguments(kafka),
        auto_offset_reset="earliest",
        isolation_level=READ_COMMITTED,
    )
    await consumer.start()
    try:
        async with asyncio.timeout(120):
            records = [await consumer.getone() for _ in range(n)]
    finally:
        await consumer.stop()
    return [(decode_score(record.value), record.headers) for record in records]


@pytest.mark.timeout(400)
@pytest.mark.needs_kafka
async def test_one_trace_from_the_producer_to_the_score(
    real_kafka: KafkaConfig, tracing: Tracing, memory: InMemorySpanExporter
) -> None:
    async with running(service_config(real_kafka), FakePipeline(), tracing):
        async with ChunkPublisher(real_kafka, tracing=tracing) as publisher:
            await publisher.send_chunk(chunk("ours", 0))
            await publisher.send_chunk(chunk("ours", 1, BAD))
        async with ChunkPublisher(real_kafka) as publisher:  # another producer, with a trace of its own
            raw = [("content-type", b"video/mp2t"), ("traceparent", TRACEPARENT.encode())]
            await publisher.send_raw(b"media", b"theirs", raw)
        scores = await scores_with_headers(real_kafka, 3)
        await until(lambda: len(memory.get_finished_spans()) == 5, seconds=60)
    spans = {own_ids(span): span for span in memory.get_finished_spans()}
    for update, headers in scores:
        consumed = spans[ids_of(headers)]
        assert consumed.kind == SpanKind.CONSUMER
        assert consumed.attributes is not None
        assert consumed.attributes["streamer.video_id"] == update.video_id
        assert consumed.attributes["streamer.status"] == update.status
        assert [event.name for event in consumed.events] == ["begun", "counted"]
        assert consumed.parent is not None
        parent = (consumed.parent.trace_id, consumed.parent.span_id)
        if update.video_id == "theirs":
            assert parent == (TRACE_ID, 0x00F067AA0BA902B7)
        else:
            assert spans[parent].kind == SpanKind.PRODUCER
            assert spans[parent].attributes is not None
            assert spans[parent].attributes["streamer.seq"] == update.seq
    assert {update.status for update, _ in scores} == {"scored", "undecodable"}


@pytest.mark.needs_kafka
async def test_off_there_are_no_headers(real_kafka: KafkaConfig) -> None:
    async with running(service_config(real_kafka), FakePipeline()):
        async with ChunkPublisher(real_kafka) as publisher:
            await publisher.send_chunk(chunk("v", 0))
        ((_, headers),) = await scores_with_headers(real_kafka, 1)
    assert headers == ()


def test_off_is_none_and_loads_nothing() -> None:
    assert open_tracing(TracingConfig()) is None
    code = (
        "import sys, streamer.service; from streamer.config import TracingConfig;"
        "from streamer.tracing import open_tracing; open_tracing(TracingConfig());"
        "print([m for m in sys.modules if m.startswith('opentelemetry')])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_without_the_extra_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"tracing\.exporter = 'otlp': .* pip install -e '\.\[otel\]'"):
        open_tracing(TracingConfig(exporter="otlp"))


def test_spans_reach_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """As OTLP over HTTP, where OpenTelemetry's own variables say."""
    posted: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr("streamer.tracing.CLOSE_SECONDS", 60.0)
        tracing = open_tracing(TracingConfig(exporter="otlp"))
        assert tracing is not None
        tracing.begin("chunks", 0, 0, []).end()
        tracing.close()
        server.shutdown()
        thread.join()
    ((path, body),) = posted
    assert path == "/v1/traces"
    resource_spans = ExportTraceServiceRequest.FromString(body).resource_spans[0]
    names = {pair.key: pair.value.string_value for pair in resource_spans.resource.attributes}
    assert names["service.name"] == "streamer"
    assert [span.name for span in resource_spans.scope_spans[0].spans] == ["process chunks"]


@pytest.mark.timeout(60)
def test_a_collector_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()

    class Stuck(TracerProvider):
        def shutdown(self) -> None:
            answers.wait(120)

    monkeypatch.setattr("streamer.tracing.CLOSE_SECONDS", 0.1)
    Tracing(Stuck(shutdown_on_exit=False)).close()
    assert not answers.is_set()
    answers.set()
