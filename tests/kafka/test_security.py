from __future__ import annotations

import asyncio
import base64
import io
import json
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
from aiokafka.abc import AbstractTokenProvider
from fakes import FakePipeline, chunk, publish, running, service_config, until, watching
from kafka_broker import KEY_PASSWORD, PASSWORD, USERNAME, Kafka, make_certificates

from streamer.config import KafkaConfig, KafkaSecurity, LogConfig
from streamer.errors import BrokerError, ConfigError
from streamer.kafka.security import security_arguments
from streamer.kafka.topics import create_topics, describe_broker
from streamer.log import set_up_logging


def security(**keys: Any) -> KafkaSecurity:
    return KafkaSecurity.model_validate(keys)


class UnsignedTokens(AbstractTokenProvider):
    """JSON web tokens that only a broker for tests accepts."""

    async def token(self) -> str:
        def encode(part: dict[str, Any]) -> str:
            return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")

        now = time.time()
        claims = {"sub": USERNAME, "iat": now, "exp": now + 600}
        return f"{encode({'alg': 'none'})}.{encode(claims)}."


def tokens() -> UnsignedTokens:
    return UnsignedTokens()


def not_tokens() -> str:
    return "a token"


# Without a broker


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_certificates(tmp_path_factory.mktemp("certificates"))[0]


def test_plaintext_needs_nothing() -> None:
    assert security_arguments(security()) == {"security_protocol": "PLAINTEXT"}


def test_scram() -> None:
    arguments = security_arguments(
        security(protocol="SASL_PLAINTEXT", sasl_mechanism="SCRAM-SHA-512", username="u", password="p")
    )
    assert arguments == {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "u",
        "sasl_plain_password": "p",
    }


def test_tls_verifies_certificate_and_name() -> None:
    context = security_arguments(security(protocol="SSL"))["ssl_context"]
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_encrypted_key(certificates: Any) -> None:
    keys = {
        "protocol": "SSL",
        "ca_file": certificates.ca,
        "cert_file": certificates.client_cert,
        "key_file": certificates.encrypted_key,
    }
    security_arguments(security(**keys, key_password=KEY_PASSWORD))
    with pytest.raises(ConfigError, match=r"key_password is wrong") as wrong:
        security_arguments(security(**keys, key_password="wrong-password"))
    assert "wrong-password" not in str(wrong.value)
    with pytest.raises(ConfigError, match=r"kafka\.security\.key_password: missing, but .* is encrypted"):
        security_arguments(security(**keys))


def test_errors_name_the_key(certificates: Any, tmp_path: Path) -> None:
    absent = tmp_path / "absent.pem"
    with pytest.raises(
        ConfigError, match=r"kafka\.security\.ca_file: cannot read .*absent\.pem: No such file"
    ):
        security_arguments(security(protocol="SSL", ca_file=absent))
    empty = tmp_path / "empty.pem"
    empty.write_text("no certificate")
    with pytest.raises(ConfigError, match=r"kafka\.security\.ca_file: .*not a PEM certificate"):
        security_arguments(security(protocol="SSL", ca_file=empty))
    with pytest.raises(ConfigError, match=r"kafka\.security\.key_file: cannot read"):
        security_arguments(security(protocol="SSL", cert_file=certificates.client_cert, key_file=absent))
    with pytest.raises(ConfigError, match=r"kafka\.security\.cert_file, key_file: .* no matching PEM pair"):
        security_arguments(
            security(protocol="SSL", cert_file=certificates.ca, key_file=certificates.client_key)
        )


@pytest.mark.parametrize(
    ("provider", "text"),
    [
        ("no-colon", "must read `package.module:factory`"),
        ("no_such_module_anywhere:factory", "No module named"),
        ("kafka.test_security:no_such_factory", "no_such_factory"),
        ("kafka.test_security:not_tokens", "returned str, not an aiokafka.abc.AbstractTokenProvider"),
    ],
)
def test_token_provider_errors(provider: str, text: str) -> None:
    keys = {"protocol": "SASL_PLAINTEXT", "sasl_mechanism": "OAUTHBEARER", "oauth_token_provider": provider}
    with pytest.raises(ConfigError, match=r"^kafka\.security\.oauth_token_provider: .*" + text):
        security_arguments(security(**keys))


def test_secrets_are_in_no_repr() -> None:
    keys = {"protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "username": "u", "password": PASSWORD}
    config = KafkaConfig(security=security(**keys))
    assert PASSWORD not in repr(config)
    assert PASSWORD not in config.model_dump_json()


# Against Apache Kafka

SASL: dict[str, dict[str, Any]] = {
    **{
        mechanism: {"sasl_mechanism": mechanism, "username": USERNAME, "password": PASSWORD}
        for mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
    },
    "OAUTHBEARER": {"sasl_mechanism": "OAUTHBEARER", "oauth_token_provider": "kafka.test_security:tokens"},
}


def reach(address: str, **keys: Any) -> KafkaConfig:
    return KafkaConfig(bootstrap_servers=address, security=security(**keys))


@pytest.mark.needs_kafka
@pytest.mark.parametrize("mechanism", SASL)
async def test_sasl(own_kafka: Kafka, mechanism: str) -> None:
    info = await describe_broker(reach(own_kafka.sasl, protocol="SASL_PLAINTEXT", **SASL[mechanism]))
    assert info.brokers == 1


@pytest.mark.needs_kafka
async def test_mutual_tls(own_kafka: Kafka) -> None:
    files = own_kafka.certificates
    keys: dict[str, Any] = {"protocol": "SSL", "ca_file": files.ca, "cert_file": files.client_cert}
    info = await describe_broker(reach(own_kafka.mtls, **keys, key_file=files.client_key))
    assert info.brokers == 1
    encrypted = {"key_file": files.encrypted_key, "key_password": KEY_PASSWORD}
    assert (await describe_broker(reach(own_kafka.mtls, **keys, **encrypted))).brokers == 1


@pytest.mark.needs_kafka
async def test_service_over_sasl_ssl(own_kafka: Kafka) -> None:
    """Consumer, producer and admin client, all the way."""
    kafka = KafkaConfig(
        bootstrap_servers=own_kafka.sasl_ssl,
        group_id="secure-group",
        chunks_topic="secure-chunks",
        scores_topic="secure-scores",
        dead_letters_topic="secure-dlq",
        state_topic="secure-state",
        security=security(protocol="SASL_SSL", ca_file=own_kafka.certificates.ca, **SASL["SCRAM-SHA-512"]),
    )
    await create_topics(kafka, partitions=1)
    async with watching(kafka) as scores, running(service_config(kafka), FakePipeline()):
        await publish(kafka, chunk("v", 0), chunk("v", 1))
        await until(lambda: len(scores.updates) == 2)


@pytest.mark.needs_kafka
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
async def test_wrong_password_is_refused_at_once(own_kafka: Kafka, mechanism: str) -> None:
    keys = SASL[mechanism] | {"password": "wrong-password"}
    async with asyncio.timeout(5):
        with pytest.raises(
            BrokerError, match=rf"Kafka at {own_kafka.sasl} refuses us: .*uthentication"
        ) as error:
            await describe_broker(reach(own_kafka.sasl, protocol="SASL_PLAINTEXT", **keys))
    assert "wrong-password" not in str(error.value)


@pytest.mark.needs_kafka
@pytest.mark.parametrize(
    ("listener", "protocol"),
    [
        ("bootstrap_servers", "SSL"),
        ("bootstrap_servers", "SASL_PLAINTEXT"),
        ("bootstrap_servers", "SASL_SSL"),
        ("sasl", "PLAINTEXT"),
        ("sasl", "SASL_SSL"),
        ("sasl_ssl", "PLAINTEXT"),
        ("sasl_ssl", "SASL_PLAINTEXT"),
        ("mtls", "PLAINTEXT"),
    ],
)
async def test_listener_of_another_protocol_is_asked_about(
    own_kafka: Kafka, listener: str, protocol: str
) -> None:
    keys = SASL["SCRAM-SHA-512"] if protocol.startswith("SASL") else {}
    kafka = reach(getattr(own_kafka, listener), protocol=protocol, ca_file=own_kafka.certificates.ca, **keys)
    with pytest.raises(BrokerError, match=rf"does kafka\.security\.protocol \(now {protocol}\) fit this"):
        await describe_broker(kafka, connect_seconds=1)


@pytest.mark.needs_kafka
async def test_unknown_authority_is_refused_at_once(own_kafka: Kafka) -> None:
    files = own_kafka.certificates
    kafka = reach(own_kafka.sasl_ssl, protocol="SASL_SSL", ca_file=files.other_ca, **SASL["SCRAM-SHA-512"])
    async with asyncio.timeout(5):
        with pytest.raises(BrokerError, match=r"refuses us: .*CERTIFICATE_VERIFY_FAILED"):
            await describe_broker(kafka)


@pytest.mark.needs_kafka
async def test_missing_client_certificate_is_an_error_in_time(own_kafka: Kafka) -> None:
    kafka = reach(own_kafka.mtls, protocol="SSL", ca_file=own_kafka.certificates.ca)
    async with asyncio.timeout(10):
        with pytest.raises(BrokerError, match=r"client certificate \(kafka\.security\.cert_file\)"):
            await describe_broker(kafka, connect_seconds=2)


@pytest.mark.needs_kafka
async def test_no_secret_is_logged_at_debug_level(own_kafka: Kafka, restored_logging: None) -> None:
    stream = io.StringIO()
    set_up_logging(LogConfig(level="debug", format="json"), stream)
    await describe_broker(reach(own_kafka.sasl, protocol="SASL_PLAINTEXT", **SASL["PLAIN"]))
    wrong = SASL["PLAIN"] | {"password": "wrong-password"}
    with pytest.raises(BrokerError):
        await describe_broker(reach(own_kafka.sasl, protocol="SASL_PLAINTEXT", **wrong))
    said = stream.getvalue()
    assert PASSWORD not in said
    assert "wrong-password" not in said
