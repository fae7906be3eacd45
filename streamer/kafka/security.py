"""`KafkaSecurity` -> keyword arguments of aiokafka's clients.

Secrets stay `SecretStr` until the moment the dictionary is made; nothing here logs or formats them.
"""

from __future__ import annotations

import importlib
import ssl
from pathlib import Path
from typing import Any

from aiokafka.abc import AbstractTokenProvider

from streamer.config import KafkaSecurity
from streamer.errors import ConfigError


def security_arguments(security: KafkaSecurity) -> dict[str, Any]:
    """What AIOKafkaConsumer, AIOKafkaProducer and AIOKafkaAdminClient need to authenticate.

    Reads the certificate files and imports the token provider. Raises ConfigError that names the key.
    """
    arguments: dict[str, Any] = {"security_protocol": security.protocol}
    if security.protocol.endswith("SSL"):
        arguments["ssl_context"] = _ssl_context(security)
    if security.sasl_mechanism is not None:
        arguments["sasl_mechanism"] = security.sasl_mechanism
    if security.sasl_mechanism == "OAUTHBEARER":
        arguments["sasl_oauth_token_provider"] = _token_provider(security.oauth_token_provider or "")
    elif security.sasl_mechanism is not None:
        arguments["sasl_plain_username"] = security.username
        arguments["sasl_plain_password"] = security.password.get_secret_value() if security.password else None
    return arguments


def _ssl_context(security: KafkaSecurity) -> ssl.SSLContext:
    """Verify the broker's certificate and host name; present ours if there is one (mTLS)."""
    ca_file = _readable(security.ca_file, "ca_file")
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError as error:
        raise ConfigError(f"kafka.security.ca_file: {ca_file}: not a PEM certificate: {error}") from error
    if security.cert_file is None:
        return context
    cert_file, key_file = _readable(security.cert_file, "cert_file"), _readable(security.key_file, "key_file")
    # A function that fails, not None: without a password OpenSSL would ask on the terminal and hang.
    password = security.key_password.get_secret_value() if security.key_password else _no_password
    try:
        context.load_cert_chain(str(cert_file), key_file, password)
    except _NoPasswordError as error:
        raise ConfigError(f"kafka.security.key_password: missing, but {key_file} is encrypted") from error
    except ssl.SSLError as error:
        hint = ", or kafka.security.key_password is wrong" if security.key_password else ""
        raise ConfigError(
            f"kafka.security.cert_file, key_file: {cert_file} and {key_file} are no matching PEM pair{hint}: "
            f"{error.reason or error}"
        ) from error
    return context


class _NoPasswordError(Exception):
    """The private key is encrypted, and no password was given."""


def _no_password() -> str:
    raise _NoPasswordError


def _readable(path: Path | None, key: str) -> str | None:
    if path is None:
        return None
    try:
        with path.open("rb"):
            return str(path)
    except OSError as error:
        raise ConfigError(f"kafka.security.{key}: cannot read {path}: {error.strerror}") from error


def _token_provider(spec: str) -> AbstractTokenProvider:
    """Call `package.module:factory`, which must return an aiokafka AbstractTokenProvider."""
    key = "kafka.security.oauth_token_provider"
    module_name, separator, factory_name = spec.partition(":")
    if not (module_name and separator and factory_name):
        raise ConfigError(f"{key}: must read `package.module:factory`, got {spec!r}")
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key}: {error}") from error
    provider = factory()
    if not isinstance(provider, AbstractTokenProvider):
        raise ConfigError(
            f"{key}: {spec} returned {type(provider).__name__}, not an aiokafka.abc.AbstractTokenProvider"
        )
    return provider
