"""The service: chunks from Kafka in, rolling scores out, until told to stop.

What is done with the partitions is `streamer.assignment`'s work. How results and offsets become durable is
`streamer.kafka.deliver`'s: in one transaction, or one before the other; over contiguous runs of finished
chunks in either case. `Service.run` is the page to read; its numbered steps are the methods below it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol, Self

import structlog
from prometheus_client import CollectorRegistry

from streamer.assignment import Assignment
from streamer.batching import Batcher
from streamer.config import Config
from streamer.endpoints import Endpoints
from streamer.errors import StreamerError
from streamer.gpu import gpu_collector
from streamer.kafka.client import CONNECT_SECONDS
from streamer.kafka.consume import ChunkConsumer
from streamer.kafka.deliver import Delivery, make_delivery
from streamer.kafka.presence import Presence
from streamer.kafka.topics import needed_topics, require_topics
from streamer.messages import VideoChunk
from streamer.metrics import Metrics, PipelineCollector
from streamer.outcome import Predict
from streamer.rolling import RollingScores
from streamer.states import PartitionStates
from streamer.tasks import call_on_signal, cancel_all
from streamer.tracing import Tracing
from streamer.types import ChunkPrediction, EnsembleInfo

COMMIT_SECONDS = 1.0
"""Between commits; what a crash makes us do again."""

LOOK_SECONDS = 10.0
"""Between looks whether Kafka and our topics are there."""

LAG_SECONDS = 5.0
"""Between looks at the ends of the partitions, for the lag in the metrics."""

LOAD_SECONDS = 0.25
"""Between updates of the gauges of queues and bytes."""

IDLE_SECONDS = 0.01
"""Between looks into the client's buffer while it is empty; 100 looks a second cost 2 % of a core."""

STALLED_SECONDS = 30.0
"""/healthz calls the loop dead when it has not come round for so long."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Predictor(Protocol):
    """What the service needs of `streamer.pipeline.Pipeline`."""

    @property
    def ensemble(self) -> EnsembleInfo: ...

    @property
    def path(self) -> str: ...

    @property
    def batchers(self) -> Sequence[Batcher[Any, Any]]: ...

    @property
    def worker_restarts(self) -> Mapping[str, int]: ...

    @property
    def decoders(self) -> Mapping[str, int]: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: Any) -> None: ...

    async def predict(
        self, chunk: VideoChunk, *, sampling_share: float, pictures: bool = False
    ) -> ChunkPrediction: ...


class Service:
    """One process of the consumer group. `await Service(config, lambda: Pipeline(config)).run()`."""

    def __init__(
        self,
        config: Config,
        open_pipeline: Callable[[], Predictor],
        *,
        connect_seconds: float = CONNECT_SECONDS,
        tracing: Tracing | None = None,
    ) -> None:
        """open_pipeline: called in a thread, since loading networks blocks; /healthz answers meanwhile."""
        self._config = config
        self._open_pipeline = open_pipeline
        self._connect_seconds = connect_seconds
        self._tracing = tracing
        self.metrics = Metrics(CollectorRegistry())
        self._stop_asked = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._failure: BaseException | None = None
        self._starting = "starting"
        self._last_round = time.monotonic()
        self._endpoints: Endpoints | None = None
        self._pipeline: Predictor
        self._delivery: Delivery
        self._states: PartitionStates
        self._consumer: ChunkConsumer
        self._assignment: Assignment
        self._presence: Presence

    @property
    def http_port(self) -> int | None:
        """Port of the endpoints while they run."""
        return self._endpoints.port if self._endpoints else None

    def why_not_ready(self) -> str | None:
        """None if networks are loaded, partitions dealt and Kafka takes our results, else what is missing."""
        if self._stop_asked.is_set():
            return "stopping"
        if self._starting or self._consumer.rebalancing:
            return self._starting or "partitions are being dealt"
        return self._presence.why_not() or self._assignment.why_stuck()

    def why_not_alive(self) -> str | None:
        """None if the main loop comes round, else why not."""
        stalled = time.monotonic() - self._last_round
        if not self._starting and stalled > STALLED_SECONDS + self._config.service.drain_seconds:
            return f"the main loop has not come round for {stalled:.0f} s"
        return None

    def stop(self) -> None:
        """Stop taking chunks, finish those under way, commit, end. Called again: end without finishing."""
        if self._stop_asked.is_set():
            self._stop_now.set()
        self._stop_asked.set()

    async def run(self) -> None:
        """Work until `stop`, SIGTERM or SIGINT. Raises StreamerError if it cannot start or go on."""
        async with AsyncExitStack() as resources:
            # 1. signals and endpoints first, so that a slow start can be watched and broken off
            resources.enter_context(call_on_signal(self.stop))
            await self._listen(resources)
            # 2. a broker that is not there is found out before the networks are loaded
            await self._until_stopped(self._connect(resources))
            # 3. networks
            await self._until_stopped(self._load(resources))
            if self._stop_asked.is_set():
                return
            # 4. a member of the group
            await self._join(resources)
            # 5. work; the side tasks end with it
            try:
                await self._work()
            except Exception as error:  # noqa: BLE001  # raised again at the end
                self._fail(error)
            except asyncio.CancelledError:
                self._stop_now.set()
                raise
            finally:
                # 6. no more intake: finish under one budget, commit, give up the rest
                await self._shut_down()
        if self._failure is not None:
            raise self._failure

    async def _listen(self, resources: AsyncExitStack) -> None:
        service = self._config.service
        self._endpoints = await resources.enter_async_context(
            Endpoints(
                self.metrics.registry,
                host=service.http_host,
                port=service.http_port,
                alive=self.why_not_alive,
                ready=self.why_not_ready,
                path=lambda: self._pipeline.path,
            )
        )
        resources.callback(setattr, self, "_endpoints", None)

    async def _connect(self, resources: AsyncExitStack) -> None:
        self._starting = "connecting to Kafka"
        kafka = self._config.kafka
        evidence = self._config.evidence.publish
        await require_topics(kafka, evidence=evidence, connect_seconds=self._connect_seconds)
        delivery = make_delivery(kafka, connect_seconds=self._connect_seconds)
        self._delivery = await resources.enter_async_context(delivery)
        self._states = PartitionStates(
            kafka, self._new_rolling, self.metrics, connect_seconds=self._connect_seconds
        )

    async def _load(self, resources: AsyncExitStack) -> None:
        self._starting = "loading networks"
        pipeline = await asyncio.to_thread(self._open_pipeline)
        self._pipeline = await resources.enter_async_context(pipeline)
        counts = PipelineCollector(pipeline.batchers, pipeline.worker_restarts, pipeline.decoders)
        self.metrics.registry.register(counts)
        self.metrics.loaded(pipeline.ensemble)
        log.info("networks loaded", **asdict(pipeline.ensemble), path=pipeline.path)
        resources.callback(self.metrics.registry.unregister, counts)
        if (gpu := gpu_collector(self._config)) is not None:
            self.metrics.registry.register(gpu)
            resources.callback(self.metrics.registry.unregister, gpu)

    async def _join(self, resources: AsyncExitStack) -> None:
        self._starting = "joining the group"
        kafka = self._config.kafka
        self._consumer = ChunkConsumer(
            kafka,
            drain_seconds=self._config.service.drain_seconds,
            on_revoked=lambda partitions: self._assignment.hand_over(partitions),
            on_assigned=self._take_over,
            on_error=self._fail,
            on_lost=lambda *about: self._assignment.note_lost(*about),
            connect_seconds=self._connect_seconds,
        )
        self._assignment = Assignment(
            self._config,
            self.metrics,
            predict=self._predict(),
            consumer=self._consumer,
            delivery=self._delivery,
            states=self._states,
            own=self._own,
            stop_now=self._stop_now.wait,
            tracing=self._tracing,
        )
        needed = needed_topics(kafka, evidence=self._config.evidence.publish)
        self._presence = Presence(kafka, self._consumer.topics, needed)
        resources.push_async_callback(self._consumer.stop)
        await self._consumer.start()
        log.info("waiting for partitions", group=kafka.group_id, topic=kafka.chunks_topic)

    async def _take_over(self, partitions: frozenset[int]) -> None:
        """Begin with these, unless we end: then we leave the group in a moment, and others have them."""
        if not self._stop_asked.is_set():
            await self._assignment.take_over(partitions)

    def _predict(self) -> Predict:
        if not self._config.evidence.publish:
            return self._pipeline.predict
        if not self._pipeline.ensemble.trained:
            log.warning("no evidence is published: scores of untrained members say nothing about a face")
            return self._pipeline.predict
        return partial(self._pipeline.predict, pictures=True)

    async def _work(self) -> None:
        """Take records while there is room, until told to stop."""
        assignment = self._assignment
        side_tasks = [
            self._own(self._every(COMMIT_SECONDS, assignment.commit), "commit"),
            self._own(self._every(LAG_SECONDS, assignment.measure_lag), "lag"),
            self._own(self._every(LOOK_SECONDS, self._presence.look), "look"),
            self._own(self._every(LOAD_SECONDS, self._show_load), "load"),
        ]
        try:
            while not self._stop_asked.is_set():
                self._last_round = time.monotonic()
                if self._consumer.rebalancing:
                    await self._until_stopped(self._consumer.wait_through_rebalance())
                    continue
                self._starting = ""
                self._consumer.switch(assignment.intake.switches())
                records = await self._consumer.take(assignment.intake.open())
                for record in records:
                    assignment.begin(record)
                await asyncio.sleep(0 if records else IDLE_SECONDS)
        finally:
            await cancel_all(side_tasks)

    async def _show_load(self) -> None:
        self._assignment.show_load()
        self.metrics.kafka_silent_seconds.set(self._presence.silent_seconds)
        self.metrics.missing_topics.set(len(self._presence.missing))

    def _new_rolling(self) -> RollingScores:
        config = self._config
        return RollingScores(config.rolling, config.alert, config.faces, self._pipeline.ensemble)

    async def _shut_down(self) -> None:
        """Finish within the budget (not after a failure), commit, cancel the rest."""
        self._assignment.stop_intake()
        if self._failure is None:
            log.info("stopping", drain_seconds=self._config.service.drain_seconds)
            polling = asyncio.create_task(self._keep_polling())
            try:
                await self._assignment.drain()
            finally:
                await cancel_all([polling])
        await self._assignment.finish()

    async def _keep_polling(self) -> None:
        """Stay a member of the group while the last chunks are finished."""
        while True:
            await self._consumer.wait_through_rebalance()

    async def _every(self, seconds: float, action: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            await action()

    async def _until_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Await `work`, or cancel it when the service is to stop."""
        task, stopped = asyncio.create_task(work), asyncio.create_task(self._stop_asked.wait())
        try:
            await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            await cancel_all((task, stopped))

    def _own(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """A task whose failure stops the service."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._watch)
        return task

    def _watch(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Remember the first failure and stop, without finishing: what is not committed is done again."""
        if self._failure is None:
            self._failure = error
            if not isinstance(error, StreamerError):
                log.error("unexpected failure", exc_info=error)
        self._stop_asked.set()
        self._stop_now.set()
