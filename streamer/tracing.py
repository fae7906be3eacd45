"""One trace per chunk, from its producer through Kafka to its score: OpenTelemetry, extra `otel`.

The context travels in the header `traceparent` (W3C Trace Context): a chunk that brings one goes on with that
trace, another begins one, and the score update carries it on. A chunk is one span, from when it was taken to
when its result was safe; its events say when work on it began and when it was counted. Where spans go, and
how many are kept, is said by OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_ENDPOINT`,
`OTEL_TRACES_SAMPLER`, `OTEL_SERVICE_NAME` ...).

Off, there is no `Tracing` at all: nothing is imported, and a chunk costs a comparison with None.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from streamer.config import TracingConfig
from streamer.errors import ChunkError, ConfigError, missing_extra
from streamer.log import printable
from streamer.messages import Headers, ScoreUpdate, VideoChunk

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

CLOSE_SECONDS = 3.0
"""For the last spans to be sent; a collector that is away must not hold up the end of a process."""


def open_tracing(config: TracingConfig) -> Tracing | None:
    """None if it is off. Raises ConfigError if the extra is missing. To be closed."""
    if config.exporter == "none":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"tracing.exporter = {config.exporter!r}: {error.name} is missing: {missing_extra('otel')}"
        ) from error
    named = Resource.create({SERVICE_NAME: "streamer"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=named, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


class Tracing:
    """Makes spans with `provider`, which it owns."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("streamer")
        self._propagator = TraceContextTextMapPropagator()
        self._kinds = SpanKind

    def begin(self, topic: str, partition: int, offset: int, headers: Headers) -> ChunkTrace:
        """The span of a record that was taken, within its producer's trace if it has one."""
        carrier = {
            name.lower(): value.decode("latin-1")
            for name, value in headers
            if value is not None and name.lower() in self._propagator.fields
        }
        span = self._tracer.start_span(
            f"process {topic}",
            context=self._propagator.extract(carrier),
            kind=self._kinds.CONSUMER,
            attributes={
                "messaging.system": "kafka",
                "messaging.operation.type": "process",
                "messaging.destination.name": topic,
                "messaging.destination.partition.id": str(partition),
                "messaging.kafka.offset": offset,
            },
        )
        return ChunkTrace(span, self._headers(span))

    @contextmanager
    def sending(self, topic: str, chunk: VideoChunk) -> Iterator[Headers]:
        """The span of a chunk that is published within the block; yields its record's headers."""
        attributes: dict[str, Any] = {
            "messaging.system": "kafka",
            "messaging.operation.type": "send",
            "messaging.destination.name": topic,
            "streamer.video_id": printable(chunk.video_id),
            "streamer.seq": chunk.seq,
        }
        with self._tracer.start_as_current_span(
            f"send {topic}", kind=self._kinds.PRODUCER, attributes=attributes
        ) as span:
            yield self._headers(span)

    def close(self) -> None:
        """Send what is left, for a while; idempotent."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

    def _headers(self, span: Span) -> Headers:
        from opentelemetry.trace import set_span_in_context

        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span))
        return [(name, value.encode("latin-1")) for name, value in carrier.items()]


class ChunkTrace:
    """The span of one chunk. Never ended, it is never sent: the chunk was given up, and is done again."""

    def __init__(self, span: Span, headers: Headers) -> None:
        self.headers = headers
        """Of what is published because of it."""
        self._span = span

    def begun(self) -> None:
        """It was its turn."""
        self._span.add_event("begun")

    def counted(self, update: ScoreUpdate) -> None:
        """It is in the rolling state."""
        self._span.add_event("counted")
        self._span.set_attributes(
            {
                "streamer.video_id": printable(update.video_id),
                "streamer.seq": update.seq,
                "streamer.status": update.status,
                **{f"streamer.latency_ms.{stage}": spent for stage, spent in update.latency_ms.items()},
            }
        )

    def refused(self, error: ChunkError) -> None:
        """It is a dead letter."""
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attribute("error.type", error.reason)
        self._span.set_status(Status(StatusCode.ERROR, printable(str(error)[:500])))

    def end(self) -> None:
        """Its result is safe."""
        self._span.end()
