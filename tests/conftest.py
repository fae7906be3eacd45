"""What several tests talk to: a real Apache Kafka, the embedded broker, an HTTP server."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator

import hypothesis
import pytest
import structlog
from fakes import fresh_names
from kafka_broker import EMBEDDED, ON_KAFKA, Kafka, running_kafka
from web_site import Site, serve

from streamer import fetch
from streamer.config import KafkaConfig
from streamer.kafka.embedded import EmbeddedBroker
from streamer.kafka.topics import create_topics
from streamer.log import LOUD_LIBRARIES

# How long an example takes says something of the machine, not of the code.
hypothesis.settings.register_profile("streamer", deadline=None)
hypothesis.settings.load_profile("streamer")

# Processes that tests interrupt would ignore it, too, where a shell runs the tests in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def own_kafka() -> Iterator[Kafka]:
    """An Apache Kafka of our own, with all its listeners."""
    with running_kafka() as kafka:
        yield kafka


@pytest.fixture(scope="session")
def apache_kafka(request: pytest.FixtureRequest) -> str:
    """Address of an Apache Kafka: KAFKA_BOOTSTRAP, or one of our own."""
    if bootstrap := os.environ.get("KAFKA_BOOTSTRAP"):
        return bootstrap
    kafka: Kafka = request.getfixturevalue("own_kafka")
    return kafka.bootstrap_servers


@pytest.fixture(scope="session")
def embedded_broker() -> Iterator[str]:
    """Address of an embedded broker."""
    broker = EmbeddedBroker()
    with asyncio.Runner() as runner:
        runner.run(broker.__aenter__())
        try:
            yield broker.bootstrap_servers
        finally:
            runner.run(broker.__aexit__(None, None, None))


@pytest.fixture(params=[*ON_KAFKA, EMBEDDED])
def names(request: pytest.FixtureRequest) -> KafkaConfig:
    """Each kind of broker and delivery in turn."""
    broker, delivery = request.param
    return fresh_names(request.getfixturevalue(broker), delivery)


@pytest.fixture
async def kafka(names: KafkaConfig) -> KafkaConfig:
    """Each kind of broker and delivery in turn, with topics of two partitions."""
    await create_topics(names, partitions=2)
    return names


@pytest.fixture
async def real_kafka(apache_kafka: str) -> KafkaConfig:
    """Apache Kafka, with topics of two partitions. Mark the test `needs_kafka`."""
    config = fresh_names(apache_kafka)
    await create_topics(config, partitions=2)
    return config


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """Whatever the test does to the logging is undone."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    levels = {name: logging.getLogger(name).level for name in LOUD_LIBRARIES}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, was in levels.items():
        logging.getLogger(name).setLevel(was)
    structlog.reset_defaults()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serve() as site:
        yield site


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries of a request do not wait."""

    async def no_sleep(_: float) -> None: ...

    monkeypatch.setattr(fetch.Fetcher._get_http.retry, "sleep", no_sleep)
