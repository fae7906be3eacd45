"""What this user may do, as the broker says: `streamer doctor` must not write or join to find out."""

from __future__ import annotations

from aiokafka.errors import (
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    IncompatibleBrokerVersion,
)
from aiokafka.protocol.admin import DescribeGroupsRequest_v3, DescribeGroupsResponse_v3
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Schema, String

from streamer.config import KafkaConfig
from streamer.kafka.client import CONNECT_SECONDS, admin_client

READ, WRITE = "Read", "Write"

OPERATION_BITS = {READ: 1 << 3, WRITE: 1 << 4}
"""Of the sets of operations in Kafka's answers: bit n is the operation of code n."""

NOT_TOLD = -(2**31)
"""A set of operations of a broker that does not tell."""

NOT_SPOKEN = (IncompatibleBrokerVersion, NotImplementedError)
"""What aiokafka raises where the broker speaks no version of a message that we do."""


def needed_rights(kafka: KafkaConfig) -> dict[str, tuple[str, ...]]:
    """Operations that the service needs, by topic."""
    return {
        kafka.chunks_topic: (READ,),
        kafka.scores_topic: (WRITE,),
        kafka.dead_letters_topic: (WRITE,),
        kafka.state_topic: (READ, WRITE),
        kafka.evidence_topic: (WRITE,),
    }


async def lacking_rights(
    kafka: KafkaConfig, *, connect_seconds: float = CONNECT_SECONDS
) -> dict[str, list[str]]:
    """Operations that the service needs and this user is denied, by topic.

    Nothing is said of a topic that is not there, nor by a broker that does not tell (before 2.3, the embedded
    one). Raises BrokerError.
    """
    needed = needed_rights(kafka)
    async with admin_client(kafka, connect_seconds=connect_seconds) as admin:
        try:
            answer = await admin._send_request(_Metadata(list(needed)))
        except NOT_SPOKEN:
            return {}
    allowed = {topic[1]: topic[4] for topic in answer.topics if topic[0] == 0 and topic[4] != NOT_TOLD}
    return {
        name: [each for each in needed[name] if not operations & OPERATION_BITS[each]]
        for name, operations in allowed.items()
    }


async def may_join(kafka: KafkaConfig, *, connect_seconds: float = CONNECT_SECONDS) -> bool | None:
    """Whether this user may join the group. Raises BrokerError.

    None: the broker does not tell; it is of before 2.3, or has not had any group yet.
    """
    async with admin_client(kafka, connect_seconds=connect_seconds) as admin:
        try:
            coordinator = await admin.find_coordinator(kafka.group_id)
            answer = await admin._send_request(_DescribeGroup(kafka.group_id), coordinator)
        except GroupAuthorizationFailedError:
            return False
        except (*NOT_SPOKEN, GroupCoordinatorNotAvailableError):
            return None
    [(_, *_, operations)] = answer.groups
    return None if operations == NOT_TOLD else bool(operations & OPERATION_BITS[READ])


# aiokafka 0.14 has no such version of the first, and reads the answer to the second as an older one, without
# the operations.


class _MetadataResponse(Response):  # type: ignore[misc]  # aiokafka has no types
    API_KEY = 3
    API_VERSION = 8
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            Array(("node_id", Int32), ("host", String("utf-8")), ("port", Int32), ("rack", String("utf-8"))),
        ),
        ("cluster_id", String("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("topic", String("utf-8")),
                ("is_internal", Boolean),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", Array(Int32)),
                        ("isr", Array(Int32)),
                        ("offline_replicas", Array(Int32)),
                    ),
                ),
                ("authorized_operations", Int32),
            ),
        ),
        ("cluster_authorized_operations", Int32),
    )


class _MetadataRequest(RequestStruct):  # type: ignore[misc]  # aiokafka has no types
    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        ("topics", Array(String("utf-8"))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
    )


class _Metadata(Request[_MetadataRequest]):  # type: ignore[misc]  # aiokafka has no types
    API_KEY = 3

    def __init__(self, topics: list[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_MetadataRequest]) -> _MetadataRequest:
        return request_struct_class(self._topics, False, False, True)


class _DescribeGroupsRequest(RequestStruct):  # type: ignore[misc]  # aiokafka has no types
    API_KEY = 15
    API_VERSION = 3
    RESPONSE_TYPE = DescribeGroupsResponse_v3
    SCHEMA = DescribeGroupsRequest_v3.SCHEMA


class _DescribeGroup(Request[_DescribeGroupsRequest]):  # type: ignore[misc]  # aiokafka has no types
    API_KEY = 15

    def __init__(self, group_id: str) -> None:
        self._group_id = group_id

    def build(self, request_struct_class: type[_DescribeGroupsRequest]) -> _DescribeGroupsRequest:
        return request_struct_class([self._group_id], True)
