"""Findings of the doctor: each names what is wrong, and what `run` would end with."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError, KafkaConnectionError
from aiokafka.protocol.admin import CreateAclsRequest
from fakes import fresh_names
from kafka_broker import EMBEDDED, ON_KAFKA, PASSWORD, USERNAME, Kafka, restartable_kafka
from members import make_engines, make_member

from streamer.config import Config, KafkaConfig, KafkaSecurity
from streamer.doctor import Check, _detectors, _kafka, all_checks, examine
from streamer.kafka.client import admin_client
from streamer.kafka.topics import create_topics
from streamer.load_config import load_config

NOWHERE = "127.0.0.1:1"

LITERAL, ALLOW = 3, 3
"""Of an ACL: its resource is this one name; what it says is allowed. As Kafka's protocol numbers them."""


class ResourceType(IntEnum):
    """Likewise."""

    TOPIC, GROUP, TRANSACTIONAL_ID = 2, 3, 5


class AclOperation(IntEnum):
    """Likewise."""

    READ, WRITE, DESCRIBE = 3, 4, 8


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_engines(tmp_path_factory.mktemp("doctor") / "engines", one=0.0)


def config_with(
    engines: Path,
    *,
    kafka: KafkaConfig | None = None,
    members: tuple[str, ...] = ("one",),
    **sections: dict[str, Any],
) -> Config:
    broker = kafka.model_dump() if kafka else {"bootstrap_servers": NOWHERE}
    classify = {"engines": str(engines), "members": members} | sections.pop("classify", {})
    decode = {"workers": 1} | sections.pop("decode", {})
    base = {"kafka": broker, "classify": classify, "service": {"http_port": 0}, "decode": decode}
    return load_config(None, base | sections)


async def checks_of(config: Config) -> list[Check]:
    """Nobody is waited for at NOWHERE."""
    with pytest.MonkeyPatch.context() as patch:
        if config.kafka.bootstrap_servers == NOWHERE:
            patch.setattr("streamer.doctor.CONNECT_SECONDS", 0.1)
        return [check async for check in all_checks(config, None)]


def failures(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks if check.state == "fail"}


@pytest.mark.parametrize("names", [ON_KAFKA[0], EMBEDDED], indirect=True)
async def test_all_well(engines: Path, kafka: KafkaConfig, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_with(engines, kafka=kafka)
    assert await examine(config, None, json=True) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["usable"] is True
    by_name = {check["name"]: check for check in found["checks"]}
    assert by_name["backend openvino"]["state"] == "ok"
    assert by_name["ensemble"]["state"] == "ok"
    assert by_name["one"]["text"].startswith("classifier, constant")
    assert by_name["worker processes"]["text"].startswith("decoded ")
    assert by_name["seccomp"]["text"] == "their system calls are filtered"
    assert by_name[f"topic {kafka.chunks_topic}"]["text"] == "2 partitions"
    assert ("transactions" in by_name) == (kafka.delivery == "exactly_once")


async def test_system_calls_not_filtered(engines: Path) -> None:
    checks = {check.name: check for check in await checks_of(config_with(engines, decode={"seccomp": "off"}))}
    assert checks["seccomp"].state == "note"
    assert checks["seccomp"].text.endswith('not filtered: decode.seccomp is "off"')


async def test_no_broker(engines: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert await examine(config_with(engines), Path("config.toml"), json=False) == 3
    out = capsys.readouterr().out
    assert "✗ 127.0.0.1:1" in out
    assert "`streamer run` cannot work: 1 problem" in out


async def test_the_broker_of_the_demo_is_offered_only_for_the_default(engines: Path) -> None:
    (check,) = failures(await checks_of(config_with(engines))).values()
    assert "no Kafka reachable" in check.text
    assert "streamer demo" not in check.text


@pytest.mark.needs_kafka
async def test_topics_that_were_made_otherwise(engines: Path, real_kafka: KafkaConfig) -> None:
    exchanged = {"state_topic": real_kafka.scores_topic, "scores_topic": real_kafka.state_topic}
    other = real_kafka.model_copy(update={"max_message_bytes": 2 * real_kafka.max_message_bytes} | exchanged)
    checks = {check.name: check for check in await checks_of(config_with(engines, kafka=other))}
    for name, said in (
        (other.chunks_topic, "max.message.bytes is 16777216, `streamer topics create` sets 33554432"),
        (other.state_topic, "cleanup.policy is delete, `streamer topics create` sets compact"),
    ):
        assert checks[f"topic {name}"].state == "note"
        assert said in checks[f"topic {name}"].text


async def test_missing_topics(engines: Path, embedded_broker: str) -> None:
    kafka = fresh_names(embedded_broker, "at_least_once")
    found = failures(await checks_of(config_with(engines, kafka=kafka)))
    names = (kafka.chunks_topic, kafka.scores_topic, kafka.dead_letters_topic, kafka.state_topic)
    needed = {f"topic {name}" for name in names}
    assert set(found) == needed
    assert all("streamer topics create" in check.text and check.exit_code == 3 for check in found.values())
    found = failures(await checks_of(config_with(engines, kafka=kafka, evidence={"publish": True})))
    assert set(found) == needed | {f"topic {kafka.evidence_topic}"}


async def test_too_few_partitions_of_the_state_topic(engines: Path, embedded_broker: str) -> None:
    """`run` refuses them as well."""
    kafka = fresh_names(embedded_broker, "at_least_once")
    await create_topics(kafka, partitions=2)
    small = kafka.model_copy(update={"state_topic": f"{kafka.state_topic}-small"})
    await create_topics(small, partitions=1)
    found = failures(await checks_of(config_with(engines, kafka=small)))
    assert set(found) == {f"topic {small.state_topic}"}
    check = found[f"topic {small.state_topic}"]
    assert "give the state topic as many" in check.text
    assert check.exit_code == 3


async def test_a_broker_without_transactions(engines: Path, embedded_broker: str) -> None:
    kafka = fresh_names(embedded_broker, "exactly_once")
    await create_topics(kafka, partitions=1)
    found = failures(await checks_of(config_with(engines, kafka=kafka)))
    assert set(found) == {"transactions"}
    assert "at_least_once" in found["transactions"].text
    assert found["transactions"].exit_code == 3


async def test_networks(tmp_path: Path) -> None:
    engines = make_engines(tmp_path / "engines", good=0.0, changed=0.0)
    make_member(engines, "random", 0.0, trained=False)
    (engines / "changed.onnx").write_bytes(b"something else")
    config = config_with(engines, members=("good", "changed"))
    checks = {check.name: check for check in await checks_of(config)}
    assert checks["good"].state == "ok"
    assert "untrained" in checks["random"].text
    assert checks["changed"].state == "note"
    assert "SHA-256" in checks["changed"].text
    assert (checks["ensemble"].state, checks["ensemble"].exit_code) == ("fail", 4)
    assert "SHA-256" in checks["ensemble"].text


async def test_the_ensemble_in_shadow_is_tried_too(tmp_path: Path) -> None:
    engines = make_engines(tmp_path / "engines", good=0.0, other=0.0)
    names = {check.name for check in await checks_of(config_with(engines, members=("good",)))}
    assert "ensemble in shadow" not in names
    for shadow, state in (("other", "ok"), ("absent", "fail")):
        config = config_with(engines, members=("good",), classify={"shadow": (shadow,)})
        checks = {check.name: check for check in await checks_of(config)}
        assert checks["ensemble"].state == "ok"
        assert checks["ensemble in shadow"].state == state
        assert shadow in checks["ensemble in shadow"].text


async def test_untrained_members(tmp_path: Path) -> None:
    engines = make_engines(tmp_path / "engines")
    make_member(engines, "random", 0.0, trained=False)
    refused = failures(await checks_of(config_with(engines, members=("random",))))
    assert "--allow-untrained" in refused["ensemble"].text
    allowed = await checks_of(config_with(engines, members=("random",), classify={"allow_untrained": True}))
    ensemble = next(check for check in allowed if check.name == "ensemble")
    assert ensemble.state == "note"
    assert "untrained" in ensemble.text


async def test_a_port_in_use(engines: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = failures(await checks_of(config_with(engines, service={"http_port": port})))
    assert "Address already in use" in found[f"127.0.0.1:{port}"].text
    assert found[f"127.0.0.1:{port}"].exit_code == 2


@pytest.mark.parametrize("name", ["blazeface_short_range", "blazeface_back", "blazeface_full_range"])
def test_a_detector_that_is_not_there(tmp_path: Path, name: str) -> None:
    engines = make_engines(tmp_path / "engines", one=0.0)
    (engines / f"{name}.onnx").unlink()
    found = failures([*_detectors(config_with(engines))])
    assert f"{name}.onnx: missing" in found["detector"].text


async def test_frames_on_a_device_for_a_backend_that_does_not_take_them(engines: Path) -> None:
    found = failures(await checks_of(config_with(engines, gpu={"frames": "on", "device": "cpu"})))
    assert 'gpu.frames = "on", but classify.backend = "openvino"' in found["frames"].text
    assert found["frames"].exit_code == 4


async def test_no_engines_at_all(tmp_path: Path) -> None:
    config = config_with(tmp_path / "nowhere")
    checks = await checks_of(config)
    assert any(check.text == "no manifests in this folder" for check in checks)
    assert {"detector", "ensemble"} <= set(failures(checks))


@pytest.fixture(scope="module")
def strict_kafka() -> Iterator[Kafka]:
    """One that allows a user of the SASL listener nothing that no ACL says."""
    authorizer = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer"
    with restartable_kafka(authorizer, "super.users=User:ANONYMOUS") as broker:
        yield broker.kafka


async def first_coordinator(kafka: KafkaConfig) -> None:
    """Have a new broker make its topic of groups; until then it tells nothing of any."""
    async with admin_client(kafka) as admin, asyncio.timeout(30):
        while True:
            with suppress(GroupCoordinatorNotAvailableError):
                await admin.find_coordinator(kafka.group_id)
                return
            await asyncio.sleep(0.1)


async def allow(kafka: KafkaConfig, resource: ResourceType, name: str, *operations: AclOperation) -> None:
    async with admin_client(kafka) as admin:
        for each in operations:
            acl = CreateAclsRequest(resource, name, LITERAL, f"User:{USERNAME}", "*", each, ALLOW)
            await admin._send_to_controller(acl)


@pytest.mark.needs_kafka
async def test_rights_that_are_lacking(engines: Path, strict_kafka: Kafka) -> None:
    """`run` would find out one after the other, that of dead letters with the first one."""
    kafka = fresh_names(strict_kafka.bootstrap_servers)
    await create_topics(kafka, partitions=1)
    await first_coordinator(kafka)
    sasl = {
        "protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "username": USERNAME,
        "password": PASSWORD,
    }
    user = kafka.model_copy(
        update={"bootstrap_servers": strict_kafka.sasl, "security": KafkaSecurity.model_validate(sasl)}
    )
    topic, group, transactions = ResourceType.TOPIC, ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID
    read, write, describe = AclOperation.READ, AclOperation.WRITE, AclOperation.DESCRIBE
    for name in (kafka.chunks_topic, kafka.scores_topic, kafka.dead_letters_topic, kafka.state_topic):
        await allow(kafka, topic, name, describe)
    await allow(kafka, topic, kafka.state_topic, read)
    await allow(kafka, transactions, f"{kafka.group_id}-{kafka.chunks_topic}-probe", write, describe)

    async def denied() -> dict[str, str]:
        found = failures([check async for check in _kafka(config_with(engines, kafka=user))])
        assert {check.exit_code for check in found.values()} <= {3}
        return {name: check.text.partition(":")[0] for name, check in found.items()}

    topics = {
        f"topic {kafka.chunks_topic}": "Read",
        f"topic {kafka.scores_topic}": "Write",
        f"topic {kafka.dead_letters_topic}": "Write",
        f"topic {kafka.state_topic}": "Write",
    }
    assert await denied() == topics | {f"group {kafka.group_id}": "Read"}
    await allow(kafka, group, kafka.group_id, describe)
    assert await denied() == topics | {f"group {kafka.group_id}": "Read"}
    await allow(kafka, group, kafka.group_id, read)
    await allow(kafka, topic, kafka.chunks_topic, read)
    for name in (kafka.scores_topic, kafka.dead_letters_topic, kafka.state_topic):
        await allow(kafka, topic, name, write)
    assert await denied() == {}


@pytest.mark.needs_kafka
async def test_rights_that_cannot_be_asked_for(
    engines: Path, strict_kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost connection is no broker that does not tell, and no end of the report."""
    kafka = fresh_names(strict_kafka.bootstrap_servers)
    await create_topics(kafka, partitions=1)
    config = config_with(engines, kafka=kafka)
    assert failures([check async for check in _kafka(config)]) == {}

    async def lost(*_: object) -> None:
        raise KafkaConnectionError("lost")

    monkeypatch.setattr(AIOKafkaAdminClient, "find_coordinator", lost)
    checks = [check async for check in _kafka(config)]
    assert list(failures(checks)) == ["rights"]
    assert f"topic {kafka.state_topic}" in {check.name for check in checks}
