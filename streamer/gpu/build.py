"""Networks of `engines/` -> TensorRT engines for the GPU that is there, each checked against its source.

An engine is kept only if it agrees with the network in OpenVINO, f32, on the CPU. Its manifest says what it
was built for; where that differs, `streamer run` refuses it and build_engines.py builds it again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from streamer.backends.base import Network
from streamer.backends.compiled import CompiledManifest, find_compiled, tensorrt_folder
from streamer.backends.load import load_network
from streamer.classify import probability
from streamer.errors import BackendError, ModelError
from streamer.gpu.graph import FORMATS, engine_graph, run_on_cpu
from streamer.gpu.stamp import import_tensorrt, machine_stamp, on_device
from streamer.manifest import Manifest, sha256_of
from streamer.quantise import CropSets, Member, difference, install, refuse_if_far
from streamer.types import Float32Array, UInt8Array

FP8_CAPABILITY = (8, 9)
"""Compute capability from which GPUs have fp8: Ada, Hopper, Blackwell."""

WORKSPACE_BYTES = 4 * 1024**3
"""Most scratch memory that a layer's implementation may ask for."""

Say = Callable[[str], None]


class BuildProgress:
    """Told how far a build is; this one says nothing."""

    def phase(self, network: str, name: str, steps: int) -> None:
        """A phase of so many steps begins; phases nest."""

    def step(self, network: str, name: str, step: int) -> None:
        """A step of it is done, counted from 0."""

    def end(self, network: str, name: str) -> None:
        """It is over."""


@dataclass(frozen=True, slots=True)
class Options:
    """How engines are built."""

    precision: str
    """Of classifiers: `f32`, `fp16`, `bf16`, `int8` or `fp8`. Detectors are always f32: they are small, and
    the boxes that they give are to be those of the CPU."""
    max_batch: int
    max_difference: float
    """Bound on the change of every network's probability."""
    builder: str = "tensorrt"
    """Or `torch-tensorrt`."""
    device: str = "cuda:0"
    jobs: int = 1
    """Built at the same time. Implementations are chosen by timing them: several disturb each other."""
    rebuild: bool = False
    """Also what is there and fits."""


def precision_of(member: Member, options: Options) -> str:
    """That a network is built in."""
    return "f32" if member.manifest.kind == "detector" else options.precision


def stamp_for(options: Options) -> dict[str, str]:
    """See `machine_stamp`. Raises BackendError, also if this GPU does not compute in the precision."""
    stamp = machine_stamp(options.device)
    refuse_unsuited(options.precision, stamp)
    return stamp


def refuse_unsuited(precision: str, stamp: dict[str, str]) -> None:
    """Raise BackendError if the GPU of the stamp does not compute in a precision."""
    capability = stamp["compute capability"]
    if precision == "fp8" and tuple(map(int, capability.split("."))) < FP8_CAPABILITY:
        raise BackendError(
            f"fp8 needs a GPU of compute capability {'.'.join(map(str, FP8_CAPABILITY))} or more, "
            f"{stamp['gpu']} has {capability}: use int8 or fp16"
        )


def outdated(members: Sequence[Member], options: Options, stamp: dict[str, str]) -> list[Member]:
    """Those of which there is no engine for this machine, or all if `options.rebuild`."""
    return [member for member in members if options.rebuild or not _fits(member, options, stamp)]


def build_engines(
    members: Sequence[Member],
    engines: Path,
    options: Options,
    *,
    images: Callable[[int], CropSets],
    say: Say = lambda _: None,
    progress: BuildProgress | None = None,
) -> list[CompiledManifest]:
    """Build, check and install the engines of `members` under `engines/compiled`.

    images: crops of a size, to calibrate with and to check on. Those already there that fit this machine
    stay. Returns the manifests of the new ones. Those that pass are installed also if others do not, which a
    ModelError then names, all of them.
    """
    trt = import_tensorrt()
    stamp = stamp_for(options)
    todo = outdated(members, options, stamp)
    refused: list[ModelError] = []
    compiled = engines / "compiled"
    compiled.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=compiled, prefix=".building-") as temporary:
        work = Path(temporary)

        def build(member: Member) -> Path | None:
            say(f"{member.manifest.name}: building in {precision_of(member, options)}")
            cache = engines / tensorrt_folder(precision_of(member, options), stamp["gpu"])
            try:
                return _build_one(trt, member, options, images, work, cache, progress or BuildProgress())
            except ModelError as error:
                refused.append(error)
                return None

        with ThreadPoolExecutor(options.jobs) as pool:
            built = [(member, file) for member, file in zip(todo, pool.map(build, todo), strict=True) if file]
        near: list[_Made] = []
        far: list[_Made] = []
        for member, file in built:
            say(f"{member.manifest.name}: comparing with OpenVINO f32 on the CPU")
            try:
                made = _check(member, file, options, images)
            except ModelError as error:
                refused.append(error)
                continue
            (near if difference(made.exact, made.got) <= options.max_difference else far).append(made)
        ensemble = _ensemble_difference(near)
        manifests = [_describe(each, options, stamp, images, ensemble) for each in near]
        for manifest in manifests:
            target = engines / tensorrt_folder(manifest.precision, stamp["gpu"])
            target.mkdir(parents=True, exist_ok=True)
            install(manifest, work, target)
            say(f"{manifest.name}: installed")
        try:
            refuse_if_far([_describe(each, options, stamp, images, 0.0) for each in far])
        except ModelError as error:
            refused.append(error)
    if refused:
        raise refused[0] if len(refused) == 1 else ModelError("\n".join(map(str, refused)))
    return manifests


@dataclass(frozen=True, slots=True)
class _Made:
    member: Member
    file: Path
    exact: Float32Array
    """(n,) probabilities of the source on the checked images; detectors: all their scores."""
    got: Float32Array


def _fits(member: Member, options: Options, stamp: dict[str, str]) -> bool:
    variant = tensorrt_folder(precision_of(member, options), stamp["gpu"])
    try:
        _, compiled = find_compiled(member.path, member.manifest, variant, "", stamp)
    except ModelError:
        return False
    return compiled.max_batch == options.max_batch and compiled.max_difference <= options.max_difference


def _build_one(
    trt: Any,
    member: Member,
    options: Options,
    images: Callable[[int], CropSets],
    work: Path,
    cache: Path,
    progress: BuildProgress,
) -> Path:
    """File of the engine, in `work`."""
    manifest, precision = member.manifest, precision_of(member, options)
    source = manifest.path(member.path.parent)
    calibration = images(manifest.input.height).calibration if precision in FORMATS else None
    if options.builder == "torch-tensorrt":
        from streamer.gpu.torch_builder import build_with_torch

        plan = build_with_torch(source, manifest, precision, options.max_batch, options.device)
    else:
        graph = engine_graph(source, manifest, precision, calibration)
        if precision in FORMATS:
            check_graph(graph, member, precision, images(manifest.input.height).check, options.max_difference)
        with on_device(options.device):
            plan = build_with_tensorrt(
                trt,
                graph.SerializeToString(),
                manifest.name,
                options.max_batch,
                cache / f"{manifest.name}.timing",
                progress,
            )
    file = work / f"{manifest.name}.plan"
    file.write_bytes(plan)
    return file


def check_graph(
    graph: onnx.ModelProto, member: Member, precision: str, check: UInt8Array, max_difference: float
) -> float:
    """Run a quantised graph beside its source, before TensorRT spends minutes on it. Needs no GPU.

    graph: from `engine_graph`. check: crops. Returns the largest difference of the probability. Raises
    ModelError beyond the bound.
    """
    exact = _scores(load_network(member.path, backend="openvino", precision="f32"), check)
    got = _probabilities(run_on_cpu(graph, check), member.manifest, f"{precision} in ONNX Runtime")
    if not (found := difference(exact, got)) <= max_difference:
        raise ModelError(
            f"{member.manifest.name}: not built: {precision} differs too much from f32, on the CPU already: "
            f"by {found:.4f} (allowed {max_difference:g}); use more crops like those to be scored for "
            "--calibration, or fp16"
        )
    return found


def build_with_tensorrt(
    trt: Any, graph: bytes, name: str, max_batch: int, cache: Path, progress: BuildProgress
) -> bytes:
    """ONNX -> engine for batches of 1 to `max_batch`, strongly typed. Raises BackendError.

    graph: from `engine_graph`. cache: file of timings, read and written, so that a second build is fast.
    """
    from streamer.backends.tensorrt_backend import last_error, shared_logger, speaking_of

    logger = shared_logger(trt)
    with speaking_of(name):
        try:
            builder = trt.Builder(logger)
        except TypeError as error:  # all that its bindings say when CUDA fails; the reason is in the log
            raise BackendError(f"{name}: TensorRT cannot begin: {last_error()}") from error
        # From TensorRT 11 on every network is strongly typed; 11.1 still has the flag.
        typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if typed is None else 1 << int(typed))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse(graph):
            errors = "; ".join(parser.get_error(k).desc() for k in range(parser.num_errors))
            raise BackendError(f"{name}: TensorRT cannot read its graph: {errors}")
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
        if hasattr(trt.BuilderFlag, "TF32"):
            config.clear_flag(trt.BuilderFlag.TF32)  # f32 is to mean f32
        image = network.get_input(0)
        rest = tuple(image.shape)[1:]
        profile = builder.create_optimization_profile()
        profile.set_shape(image.name, (1, *rest), (max(1, max_batch // 2), *rest), (max_batch, *rest))
        config.add_optimization_profile(profile)
        timings = config.create_timing_cache(cache.read_bytes() if cache.is_file() else b"")
        # None: unreadable, as after a build that was killed; not set: of another driver or version.
        if timings is None or not config.set_timing_cache(timings, ignore_mismatch=False):
            timings = config.create_timing_cache(b"")
            config.set_timing_cache(timings, ignore_mismatch=False)
        config.progress_monitor = _monitor(trt, name, progress)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise BackendError(f"{name}: TensorRT cannot build it: {last_error()}")
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def _monitor(trt: Any, network: str, progress: BuildProgress) -> Any:
    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.phase(network, phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress.step(network, phase_name, step)
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            progress.end(network, phase_name)

    return Monitor()


def _check(member: Member, file: Path, options: Options, images: Callable[[int], CropSets]) -> _Made:
    """Run the engine and its source on the same images."""
    from streamer.backends.tensorrt_backend import TensorRtNetwork

    check = images(member.manifest.input.height).check
    engine = TensorRtNetwork(
        file,
        member.manifest,
        precision=precision_of(member, options),
        device=options.device,
        max_batch=options.max_batch,
    )
    source = load_network(member.path, backend="openvino", precision="f32")
    return _Made(member, file, exact=_scores(source, check), got=_scores(engine, check))


def _scores(network: Network, images: Any) -> Float32Array:
    """Probabilities; closes the network. Raises ModelError if one is not finite."""
    try:
        return _probabilities(network.run(images), network.manifest, network.device)
    finally:
        network.close()


def _probabilities(outputs: Sequence[Float32Array], manifest: Manifest, where: str) -> Float32Array:
    """Of a network's outputs. Raises ModelError if one is not finite."""
    # A detector's second output are logits of `face`, for every anchor.
    logits = outputs[0] if manifest.kind == "classifier" else outputs[1]
    if not all(np.isfinite(output).all() for output in outputs):
        raise ModelError(f"{manifest.name}: NaN or infinity in {where}")
    return probability(logits.reshape(len(logits), -1), manifest.calibration)


def _ensemble_difference(made: Sequence[_Made]) -> float:
    """Of the mean over the classifiers."""
    members = [each for each in made if each.member.manifest.kind == "classifier"]
    if not members:
        return 0.0
    exact = np.mean([each.exact for each in members], axis=0)
    return difference(exact, np.mean([each.got for each in members], axis=0))


def _describe(
    made: _Made, options: Options, stamp: dict[str, str], images: Callable[[int], CropSets], ensemble: float
) -> CompiledManifest:
    member, shown = made.member, images(made.member.manifest.input.height)
    precision: Any = precision_of(member, options)
    calibrated = precision in FORMATS
    return CompiledManifest(
        name=member.manifest.name,
        target="tensorrt",
        precision=precision,
        files={made.file.name: sha256_of(made.file)},
        source_sha256=member.manifest.sha256,
        made_for=stamp,
        max_batch=options.max_batch,
        calibration=shown.origin if calibrated else "nothing",
        calibration_images=len(shown.calibration) if calibrated else 0,
        check=shown.origin,
        check_images=len(shown.check),
        max_difference=difference(made.exact, made.got),
        max_ensemble_difference=ensemble if member.manifest.kind == "classifier" else 0.0,
        allowed_difference=options.max_difference,
        made_with=f"{options.builder}, TensorRT {stamp['tensorrt']}",
    )
