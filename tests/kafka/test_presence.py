from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from streamer.config import KafkaConfig
from streamer.errors import BrokerError
from streamer.kafka.presence import AWAY_SECONDS, SILENT_SECONDS, Presence
from streamer.kafka.topics import needed_topics

KAFKA = KafkaConfig(bootstrap_servers="broker:9092")
NEEDED = needed_topics(KAFKA)
ALL = {*NEEDED, "of others"}


class Broker:
    """Answers, or not."""

    def __init__(self) -> None:
        self.topics: set[str] | None = set(ALL)
        self.now = 1000.0
        self.presence = Presence(KAFKA, self.ask, NEEDED, clock=lambda: self.now)

    async def ask(self) -> set[str]:
        if self.topics is None:
            raise BrokerError("cannot read topics")
        return self.topics


@pytest.fixture
def broker() -> Broker:
    return Broker()


async def test_all_is_there(broker: Broker) -> None:
    broker.now += SILENT_SECONDS + 1
    await broker.presence.look()
    assert (broker.presence.why_not(), broker.presence.silent_seconds) == (None, 0.0)


async def test_broker_that_is_away_is_waited_for_then_an_error(broker: Broker) -> None:
    broker.topics = None
    broker.now += SILENT_SECONDS - 1
    await broker.presence.look()
    assert broker.presence.why_not() is None
    broker.now += 2
    await broker.presence.look()
    assert broker.presence.why_not() == "Kafka has not answered for 16 s"
    broker.now += AWAY_SECONDS
    with pytest.raises(BrokerError, match="broker:9092 has not answered for 76 s"):
        await broker.presence.look()
    broker.topics = ALL
    await broker.presence.look()
    assert broker.presence.why_not() is None


async def test_log_tells_when_the_broker_goes_and_when_it_comes_back(broker: Broker) -> None:
    with capture_logs() as lines:
        for topics in (None, None, None, ALL, ALL, None, ALL):
            broker.topics = topics
            broker.now += 10
            await broker.presence.look()
    assert [(line["event"], line.get("seconds", line.get("after_seconds"))) for line in lines] == [
        ("the broker does not answer, waiting", 10),
        ("the broker answers again", 40),
        ("the broker does not answer, waiting", 10),
        ("the broker answers again", 20),
    ]


async def test_after_a_long_sleep_one_question_without_an_answer_is_no_absence(broker: Broker) -> None:
    """Of a process that was frozen or a machine that was suspended: its connections are closed."""
    await broker.presence.look()
    broker.topics = None
    broker.now += 3600
    await broker.presence.look()
    broker.topics = ALL
    broker.now += 10
    await broker.presence.look()
    assert broker.presence.why_not() is None


async def test_topic_that_is_missing_twice_is_gone(broker: Broker) -> None:
    broker.topics = ALL - {KAFKA.scores_topic}
    await broker.presence.look()
    assert broker.presence.why_not() == "Kafka has no topic video-scores"
    broker.topics = ALL - {KAFKA.state_topic}
    await broker.presence.look()  # another one, for the first time
    with pytest.raises(BrokerError, match=r"no topic video-state any more: .*`streamer topics create`"):
        await broker.presence.look()


async def test_topic_that_comes_back_was_not_gone(broker: Broker) -> None:
    for topics in (ALL - {KAFKA.chunks_topic}, ALL, ALL - {KAFKA.chunks_topic}):
        broker.topics = topics
        await broker.presence.look()
    assert broker.presence.missing == {KAFKA.chunks_topic}
