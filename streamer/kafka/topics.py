"""The topics: making them, and telling whether they are there."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import TopicAlreadyExistsError, for_code

from streamer.config import KafkaConfig
from streamer.errors import BrokerError
from streamer.kafka.client import CONNECT_SECONDS, admin_client, describe
from streamer.messages import MAX_EVIDENCE_BYTES

ENVELOPE_BYTES = 1024 * 1024
"""What a dead letter may add to the record it carries (headers, texts), and a record to its chunk."""

DAY_MS = 24 * 60 * 60 * 1000
EVIDENCE_DAYS = 7
"""Pictures of people are kept so long, and a day more: Kafka deletes whole segments, and one holds a day."""

MISSING_TOPIC_ADVICE = (
    "make the topics with `streamer topics create`; if they are there, this user is not allowed to see them"
)

LEADER_SECONDS = 10.0
"""Until every partition of a new topic has a leader."""


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as it should be made."""

    name: str
    configs: dict[str, str] = field(default_factory=dict)


class TopicFound(NamedTuple):
    """A topic that is there now."""

    new: bool
    """Made just now."""
    partitions: int


@dataclass(frozen=True, slots=True)
class BrokerInfo:
    """What a cluster says of itself."""

    cluster_id: str
    brokers: int
    topics: dict[str, int]
    """Number of partitions by name."""


def topic_specs(kafka: KafkaConfig) -> list[TopicSpec]:
    """The topics that the service uses, that of evidence even if none is published: it may be, one day."""
    largest = {"max.message.bytes": str(kafka.max_message_bytes)}
    with_envelope = {"max.message.bytes": str(kafka.max_message_bytes + ENVELOPE_BYTES)}
    # Video does not compress. And a compressed batch may unpack to a thousand times its size inside the
    # consumer; stored uncompressed, the broker unpacks it and refuses what is too large.
    uncompressed = {"compression.type": "uncompressed"}
    # Records carry the broker's time: where their writer's clock is wrong, it refuses those stamped an hour
    # ahead, and would delete those stamped long ago. And limits per minute must not rest on what a producer
    # makes up.
    stamped = {"message.timestamp.type": "LogAppendTime"}
    return [
        TopicSpec(kafka.chunks_topic, largest | uncompressed | stamped),
        TopicSpec(kafka.scores_topic, stamped),
        TopicSpec(kafka.dead_letters_topic, with_envelope | uncompressed | stamped),
        TopicSpec(kafka.state_topic, {"cleanup.policy": "compact"} | stamped),
        TopicSpec(
            kafka.evidence_topic,
            {
                "cleanup.policy": "delete",
                "retention.ms": str(EVIDENCE_DAYS * DAY_MS),
                "segment.ms": str(DAY_MS),
                "max.message.bytes": str(MAX_EVIDENCE_BYTES + ENVELOPE_BYTES),
            }
            | uncompressed
            | stamped,
        ),
    ]


async def create_topics(
    kafka: KafkaConfig,
    *,
    partitions: int = 4,
    replication: int = -1,
    connect_seconds: float = CONNECT_SECONDS,
) -> dict[str, TopicFound]:
    """Make the topics that are missing; what there is then, by name. Those that are there stay as they are.

    partitions: the same for all, since state is kept by input partition. replication: -1 takes the
    broker's default. Returns when every partition has a leader. Raises BrokerError.
    """
    made: dict[str, bool] = {}
    async with admin_client(kafka, connect_seconds=connect_seconds) as admin:
        wanted = [
            # An empty assignment: aiokafka takes "the broker's default" (-1) only next to one.
            NewTopic(
                spec.name,
                partitions,
                replication,
                replica_assignments={} if replication == -1 else None,
                topic_configs=spec.configs,
            )
            for spec in topic_specs(kafka)
        ]
        response = await admin.create_topics(wanted)
        for name, code, *text in response.topic_errors:
            error_type = for_code(code)
            if code and error_type is not TopicAlreadyExistsError:
                raise BrokerError(
                    f"topic {name} could not be created: {describe(error_type(*filter(None, text)))}"
                )
            made[name] = code == 0
        partitions_of = await _wait_for_leaders(admin, list(made))
    return {name: TopicFound(new, partitions_of[name]) for name, new in made.items()}


async def _wait_for_leaders(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, int]:
    """Number of partitions by name. The broker answers before a new topic's can be written to."""
    deadline = time.monotonic() + LEADER_SECONDS
    while True:
        described = {topic["topic"]: topic["partitions"] for topic in await admin.describe_topics()}
        if all(
            name in described and all(partition["leader"] >= 0 for partition in described[name])
            for name in names
        ):
            return {name: len(described[name]) for name in names}
        if time.monotonic() > deadline:
            raise BrokerError(f"topics {', '.join(names)} have no leader after {LEADER_SECONDS:.0f} s")
        await asyncio.sleep(0.05)


async def describe_broker(kafka: KafkaConfig, *, connect_seconds: float = CONNECT_SECONDS) -> BrokerInfo:
    """Ask the cluster who it is.

    Raises BrokerError if it cannot be reached, refuses us, or answers that no broker is in service: one that
    starts, or that has missed its heartbeats, is out of service for a while, and is waited for.
    """
    async with admin_client(kafka, connect_seconds=connect_seconds) as admin:
        deadline = time.monotonic() + connect_seconds
        while not (cluster := await admin.describe_cluster())["brokers"]:
            if time.monotonic() > deadline:
                raise BrokerError(f"Kafka at {kafka.bootstrap_servers} has no broker in service")
            await asyncio.sleep(0.2)
        # All topics, never one by name: a broker with auto-creation would make it on being asked.
        topics = await admin.describe_topics()
    return BrokerInfo(
        cluster_id=str(cluster["cluster_id"]),
        brokers=len(cluster["brokers"]),
        topics={topic["topic"]: len(topic["partitions"]) for topic in topics},
    )


async def describe_differences(
    kafka: KafkaConfig, *, connect_seconds: float = CONNECT_SECONDS
) -> dict[str, list[str]]:
    """Settings of topics that `create_topics` would have chosen otherwise, in words, by topic.

    Retention is everybody's own. Of a topic that is not there, or whose settings this user may not see,
    nothing is said. Raises BrokerError, also if the broker does not tell settings.
    """
    specs = {spec.name: spec.configs for spec in topic_specs(kafka)}
    async with admin_client(kafka, connect_seconds=connect_seconds) as admin:
        answers = await admin.describe_configs(
            [ConfigResource(ConfigResourceType.TOPIC, name) for name in specs]
        )
    found = {topic[3]: {e[0]: e[1] for e in topic[4]} for answer in answers for topic in answer.resources}
    return {
        name: [
            f"{key} is {found[name][key]}, `streamer topics create` sets {wanted}"
            for key, wanted in settings.items()
            if key in found.get(name, {}) and not _serves(key, found[name][key], wanted)
        ]
        for name, settings in specs.items()
    }


def _serves(key: str, found: str, wanted: str) -> bool:
    if key == "max.message.bytes":
        return int(found) >= int(wanted)
    return key in ("retention.ms", "segment.ms") or found == wanted


def needed_topics(kafka: KafkaConfig, *, evidence: bool = False) -> list[str]:
    """Topics that the service cannot do without. evidence: whether it publishes any."""
    needed = [kafka.chunks_topic, kafka.scores_topic, kafka.dead_letters_topic, kafka.state_topic]
    return [*needed, kafka.evidence_topic] if evidence else needed


async def require_topics(
    kafka: KafkaConfig, *, evidence: bool = False, connect_seconds: float = CONNECT_SECONDS
) -> BrokerInfo:
    """Like `describe_broker`, but raises BrokerError too if the service could not work with these topics."""
    info = await describe_broker(kafka, connect_seconds=connect_seconds)
    _require(kafka, info, needed_topics(kafka, evidence=evidence))
    if (why := why_states_do_not_fit(kafka, info)) is not None:
        raise BrokerError(why)
    return info


async def require_chunks_topic(kafka: KafkaConfig, *, connect_seconds: float = CONNECT_SECONDS) -> None:
    """Raises BrokerError unless there is what a producer needs; it need not be allowed to see more."""
    info = await describe_broker(kafka, connect_seconds=connect_seconds)
    _require(kafka, info, [kafka.chunks_topic])


def _require(kafka: KafkaConfig, info: BrokerInfo, needed: list[str]) -> None:
    if missing := [name for name in needed if name not in info.topics]:
        raise BrokerError(
            f"Kafka at {kafka.bootstrap_servers} has no topic {', '.join(missing)}; {MISSING_TOPIC_ADVICE}"
        )


def why_states_do_not_fit(kafka: KafkaConfig, info: BrokerInfo) -> str | None:
    """None if the state topic has a partition for each of the chunks topic, or one of them is missing."""
    chunks, states = info.topics.get(kafka.chunks_topic, 0), info.topics.get(kafka.state_topic, 0)
    if not 0 < states < chunks:
        return None
    return (
        f"topic {kafka.state_topic} has {states} partitions and {kafka.chunks_topic} has {chunks}: state "
        f"is kept by the number of the input's partition; give the state topic as many"
    )
