"""Prometheus metrics of the service."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import streamer
from streamer.batching import Batcher
from streamer.errors import ClassifyError, DecodeError, DetectError, LimitError, MessageError
from streamer.messages import ScoreUpdate
from streamer.types import EnsembleInfo

STAGE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Seconds: from one network call to the decoder's time limit."""

END_TO_END_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
"""Seconds: from an idle service to one that catches up with an hour."""

KNOWN_REASONS = {
    error.stage: frozenset(error.REASONS)
    for error in (MessageError, LimitError, DecodeError, DetectError, ClassifyError)
}
"""Values of the label `reason` by `stage`; any other becomes `other`, so the number of series is bounded."""

STATUSES: tuple[str, ...] = get_args(ScoreUpdate.model_fields["status"].annotation)


class Metrics:
    """All metrics, registered in `registry` and nowhere else.

    Named as Prometheus has it: base units at the end, `_total` for what only grows, `_ratio` for 0 to 1. No
    label takes values that others choose: video ids and error texts are in the log, not here.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, namespace="streamer", registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, namespace="streamer", registry=registry)

        self.chunks = counter("chunks_total", "Score updates published, by status.", "status")
        self.chunk_bytes = counter("chunk_bytes_total", "Bytes of chunks taken from Kafka.")
        self.frames = counter("frames_total", "Frames sampled.")
        self.faces = counter("faces_total", "Faces scored.")
        self.alerts = counter("alerts_raised_total", "Alerts raised.")
        self._dead_letters = counter("dead_letters_total", "Dead letters published.", "stage", "reason")
        self.evidence_messages = counter("evidence_messages_total", "Chunks of which evidence was published.")
        self.evidence_crops = counter("evidence_crops_total", "Crops of faces published as evidence.")
        self._stages = Histogram(
            "stage_duration_seconds",
            "Time of a chunk in a stage, waiting for a place in a batch included.",
            ("stage",),
            namespace="streamer",
            registry=registry,
            buckets=STAGE_BUCKETS,
        )
        self._end_to_end = Histogram(
            "end_to_end_latency_seconds",
            "From a chunk's timestamp in Kafka to its score update, whose delivery is not included.",
            namespace="streamer",
            registry=registry,
            buckets=END_TO_END_BUCKETS,
        )
        self.delivery_seconds = Histogram(
            "delivery_duration_seconds",
            "Time of one delivery of results; exactly once, that is a transaction.",
            namespace="streamer",
            registry=registry,
            buckets=STAGE_BUCKETS,
        )
        self.chunks_in_flight = gauge("chunks_in_flight", "Chunks being decoded and classified.")
        self.bytes_in_flight = gauge("in_flight_bytes", "Bytes of chunks fetched and not finished.")
        self.bytes_fill = gauge("in_flight_bytes_ratio", "Bytes in flight, of the most there may be.")
        self.queued = gauge("queued_chunks", "Chunks fetched and not finished, by partition.", "partition")
        self.queue_fill = gauge("queue_fill_ratio", "Queued chunks, of the most there may be.", "partition")
        self.lag = gauge("consumer_lag_records", "Records published and not finished.", "partition")
        self.withheld = gauge(
            "withheld_records",
            "Records not to be read yet: a transaction of a producer before them is open.",
            "partition",
        )
        self.sampling_rate = gauge(
            "sampling_rate_hertz", "Samples per second of video, less by lag, by partition.", "partition"
        )
        self.thinned_chunks = counter(
            "thinned_chunks_total", "Chunks counted that were sampled at a rate lowered by lag."
        )
        self.videos = gauge("videos", "Videos with rolling state, by partition.", "partition")
        self.unusable_states = gauge(
            "unusable_states",
            "Videos begun anew since their stored state is of another ensemble or version, or damaged.",
            "partition",
        )
        self.assigned_partitions = gauge("assigned_partitions", "Partitions that this process works on.")
        self.paused_partitions = gauge("paused_partitions", "Partitions paused by back-pressure.")
        self.rebalances = counter("rebalances_total", "Times the group's partitions were dealt anew.")
        self.lost_chunks = counter(
            "lost_chunks_total",
            "Records deleted by Kafka before they were read, markers of transactions among them included.",
        )
        self.replayed_chunks = counter(
            "replayed_chunks_total", "Records read again whose results had been published; not counted twice."
        )
        self.restored_videos = counter("restored_videos_total", "Videos whose state came from the changelog.")
        self.restore_seconds = gauge("restore_seconds", "Time that the last restore of state took.")
        self.kafka_silent_seconds = gauge("kafka_silent_seconds", "Since Kafka last answered.")
        self.missing_topics = gauge("missing_topics", "Topics of ours that Kafka does not have.")
        self.delivery_age = gauge("delivery_age_seconds", "Of the oldest delivery not acknowledged; or 0.")
        tasks = gauge("asyncio_tasks", "Tasks of the event loop; they follow the load and must not add up.")
        tasks.set_function(_count_tasks)
        self.cancelled_chunks = counter(
            "cancelled_chunks_total", "Chunks given up when a drain ran out of time; they are done again."
        )
        self._ensemble = Info("ensemble", "Networks loaded.", namespace="streamer", registry=registry)
        Info("build", "This program.", namespace="streamer", registry=registry).info(
            {"version": streamer.__version__}
        )
        ProcessCollector(registry=registry)
        # A series that appears with its first event has no increase there: all begin at 0.
        for status in STATUSES:
            self.chunks.labels(status)
        for stage, reasons in KNOWN_REASONS.items():
            for reason in (*reasons, "other"):
                self._dead_letters.labels(stage, reason)

    def dead_letter(self, stage: str, reason: str) -> None:
        """Count a dead letter."""
        stage = stage if stage in KNOWN_REASONS else "other"
        known = KNOWN_REASONS.get(stage, frozenset())
        self._dead_letters.labels(stage, reason if reason in known else "other").inc()

    def latency(self, latency_ms: Mapping[str, float]) -> None:
        """Observe a `ScoreUpdate.latency_ms`: the stages, and `total` as the end-to-end latency."""
        for stage, spent_ms in latency_ms.items():
            histogram = self._end_to_end if stage == "total" else self._stages.labels(stage)
            histogram.observe(spent_ms / 1000)

    def loaded(self, ensemble: EnsembleInfo) -> None:
        """Say which networks score from here on."""
        self._ensemble.info({"model_set": ensemble.model_set, "trained": str(ensemble.trained).lower()})

    def forget_partition(self, partition: int) -> None:
        """Drop the series of a partition that others work on now."""
        load = (self.queued, self.queue_fill, self.lag, self.withheld, self.sampling_rate)
        for gauge in (*load, self.videos, self.unusable_states):
            with suppress(KeyError):
                gauge.remove(str(partition))


def _count_tasks() -> int:
    """0 outside of a loop, where nobody serves /metrics either."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0


class PipelineCollector(Collector):
    """Reads the pipeline's own counts whenever the metrics are asked for."""

    def __init__(
        self,
        batchers: Sequence[Batcher[Any, Any]],
        worker_restarts: Mapping[str, int],
        decoders: Mapping[str, int],
    ) -> None:
        """worker_restarts: decode workers replaced so far, by reason. decoders: see `DecodePool.decoders`."""
        self._batchers = batchers
        self._worker_restarts = worker_restarts
        self._decoders = decoders

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        batches = CounterMetricFamily("streamer_batches", "Batches run.", labels=["network"])
        items = CounterMetricFamily("streamer_batch_items", "Images in the batches run.", labels=["network"])
        fill = GaugeMetricFamily(
            "streamer_batch_fill_ratio", "Mean size of a batch, of the most it may hold.", labels=["network"]
        )
        failures = CounterMetricFamily(
            "streamer_batch_failures", "Batches in which a network failed.", labels=["network"]
        )
        for batcher in self._batchers:
            batches.add_metric([batcher.name], batcher.batches)
            items.add_metric([batcher.name], batcher.size)
            fill.add_metric([batcher.name], batcher.fill)
            failures.add_metric([batcher.name], batcher.failures)
        restarts = CounterMetricFamily(
            "streamer_decode_worker_restarts",
            "Decode workers replaced after a crash or a time limit.",
            labels=["reason"],
        )
        for reason, count in self._worker_restarts.items():
            restarts.add_metric([reason], count)
        decoded = CounterMetricFamily(
            "streamer_decoded_chunks",
            "Chunks decoded, by what decoded them: `nvdec`, or `cpu_` and why; with gpu.nvdec alone.",
            labels=["decoder"],
        )
        for decoder, count in self._decoders.items():
            decoded.add_metric([decoder], count)
        yield from (batches, items, fill, failures, restarts, decoded)
