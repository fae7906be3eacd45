"""Build networks for this machine from the portable ONNX models in engines/, checked against their source.

    python build_engines.py untrained                     full-size members with random weights
    python build_engines.py --precision int8 --calibration CROPS [MEMBER ...]
    python build_engines.py --precision bf16 [MEMBER ...]  nothing to build: checks only
    python build_engines.py --target tensorrt --precision fp16 [MEMBER ...]   on a node with an NVIDIA GPU
    python build_engines.py --from-checkpoint runs/mine/best.pt --name mine    also with the options above

MEMBER is a classifier's name, or its path under engines/ without `.json`; all trained ones if none is given.
tensorrt also builds the face detectors. int8 and fp8 need a folder of face crops, at least 32, as the service
cuts them, and for openvino the extra `quantize`. Without a folder, tensorrt checks on faces of the bundled
clips. Engines that fit this GPU, driver and TensorRT are left as they are.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from streamer.backends.compiled import INT8_FOLDER, CompiledManifest
from streamer.config import ClassifyConfig, Config
from streamer.demo_clips import demo_clips
from streamer.engines import UNTRAINED, make_untrained
from streamer.errors import BackendError, ModelError, StreamerError, missing_extra
from streamer.files import pieces_of
from streamer.gpu.build import BuildProgress, Options, build_engines, outdated, precision_of, stamp_for
from streamer.gpu.graph import FORMATS
from streamer.manifest import Calibration
from streamer.pipeline import Pipeline
from streamer.quantise import (
    CropSets,
    Member,
    check_precision,
    find_members,
    find_networks,
    quantise,
    read_images,
)
from streamer.types import UInt8Array

console = Console(stderr=True)

MAX_DIFFERENCE = 0.05
"""Default bound on the change of a member's probability."""
MAX_ENGINE_DIFFERENCE = 0.01
"""The same for engines of a GPU."""


def main() -> int:
    """Exit status 0: built; 1: refused or failed; 2: wrong usage; 130: interrupted."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that half-built files are removed
    try:
        build(arguments)
    except StreamerError as error:
        return failed(str(error), 1)
    except OSError as error:
        return failed(f"{error.filename or arguments.engines}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        return failed("interrupted; what was not finished is not installed", 130)
    return 0


def failed(why: str, code: int) -> int:
    console.print(f"build_engines.py: {why}", style="red", highlight=False, markup=False, soft_wrap=True)
    return code


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("members", nargs="*", metavar="MEMBER", help="classifiers, or the word `untrained`")
    parser.add_argument("--target", choices=("openvino", "tensorrt"), default="openvino")
    parser.add_argument("--precision", choices=("f32", "fp16", "bf16", "int8", "fp8"), default="f32")
    parser.add_argument("--calibration", type=Path, metavar="DIR", help="folder of crops (int8, fp8, checks)")
    parser.add_argument(
        "--max-difference",
        type=float,
        metavar="P",
        help="refuse a member whose probability changes by more on any checked image (default "
        f"{MAX_DIFFERENCE:g}, {MAX_ENGINE_DIFFERENCE:g} with tensorrt)",
    )
    parser.add_argument(
        "--from-checkpoint", type=Path, metavar="FILE", help="make a member of it first, uncalibrated"
    )
    parser.add_argument("--name", help="of that member")
    gpu = parser.add_argument_group("tensorrt")
    gpu.add_argument("--builder", choices=("tensorrt", "torch-tensorrt"), default="tensorrt")
    gpu.add_argument("--max-batch", type=int, default=64, metavar="N", help="images at once (default 64)")
    gpu.add_argument("--device", default="cuda:0", help="as PyTorch names it (default %(default)s)")
    gpu.add_argument("--jobs", type=int, default=1, metavar="N", help="engines built at the same time")
    gpu.add_argument("--rebuild", action="store_true", help="also engines that fit this machine")
    parser.add_argument("--engines", type=Path, default=Path("engines"), metavar="DIR")
    parser.add_argument("--dry-run", action="store_true", help="say what would be built, and stop")
    arguments = parser.parse_args()
    if arguments.max_difference is None:
        arguments.max_difference = MAX_ENGINE_DIFFERENCE if arguments.target == "tensorrt" else MAX_DIFFERENCE
    if not 0 < arguments.max_difference <= 1:
        parser.error("--max-difference must be in (0, 1]")
    if arguments.target == "openvino" and arguments.precision in ("fp16", "fp8"):
        parser.error(f"--precision {arguments.precision} is for --target tensorrt")
    if arguments.max_batch < 1 or arguments.jobs < 1:
        parser.error("--max-batch and --jobs must be at least 1")
    if bool(arguments.from_checkpoint) != bool(arguments.name):
        parser.error("--from-checkpoint and --name go together")
    if arguments.calibration and not arguments.calibration.is_dir():
        parser.error(f"--calibration {arguments.calibration}: no such folder")
    return arguments


def build(arguments: argparse.Namespace) -> None:
    if arguments.from_checkpoint and arguments.dry_run:
        say(f"{arguments.from_checkpoint} -> make and build {arguments.engines / arguments.name}.onnx")
        if not arguments.members:
            return
    if arguments.target == "tensorrt":
        build_for_gpu(arguments)
    else:
        build_for_cpu(arguments)


def build_for_cpu(arguments: argparse.Namespace) -> None:
    """int8 members for OpenVINO; the other precisions need none, and are checked."""
    if arguments.from_checkpoint and not arguments.dry_run:
        make_member(arguments, Crops(arguments.calibration, arguments.engines))
    only_untrained = arguments.members == ["untrained"]
    wanted = set(UNTRAINED) if only_untrained else set(arguments.members)
    for name in UNTRAINED:
        if wanted & {name, f"untrained/{name}"}:
            build_untrained(arguments, name, again=only_untrained)
    if only_untrained:
        return
    found = find_members(arguments.engines, arguments.members)
    members = [member for member in found if member.manifest.trained or arguments.members]
    if not members:
        raise ModelError(f"no trained classifiers under {arguments.engines}")
    if arguments.dry_run:
        for member in members:
            target = arguments.engines / INT8_FOLDER / f"{member.manifest.name}.xml"
            goal = f"build {target}" if arguments.precision == "int8" else f"check {arguments.precision}"
            say(f"{member.path} -> {goal}")
        return
    if arguments.precision == "int8":
        made = quantise(
            members,
            arguments.engines,
            calibration=arguments.calibration,
            max_difference=arguments.max_difference,
            report=say,
        )
        console.print(table_of(made))
    else:
        check(arguments, members)


def build_untrained(arguments: argparse.Namespace, name: str, *, again: bool) -> None:
    """Make an untrained member if it is missing; `again`: also if not."""
    folder = arguments.engines / "untrained"
    if arguments.dry_run:
        if again or not (folder / f"{name}.json").is_file():
            say(f"random weights -> build {folder / name}.onnx")
    elif make_untrained(folder, name, again=again):
        say(f"{folder / name}.onnx: made, with random weights")


def build_for_gpu(arguments: argparse.Namespace) -> None:
    """TensorRT engines of members and face detectors."""
    options = Options(
        precision=arguments.precision,
        max_batch=arguments.max_batch,
        builder=arguments.builder,
        device=arguments.device,
        max_difference=arguments.max_difference,
        jobs=arguments.jobs,
        rebuild=arguments.rebuild,
    )
    stamp = stamp_for(options)
    images = Crops(arguments.calibration, arguments.engines)
    if arguments.from_checkpoint and not arguments.dry_run:
        make_member(arguments, images)
    kinds = ("classifier", "detector")
    found = find_networks(arguments.engines, kinds)
    wanted = find_members(arguments.engines, arguments.members, kinds)
    members = [
        member
        for member in found
        if member.manifest.kind == "detector"
        or (member in wanted and (member.manifest.trained or arguments.members))
    ]
    if arguments.precision in FORMATS and not arguments.calibration:
        raise ModelError(f"{arguments.precision} needs --calibration with real crops")
    todo = outdated(members, options, stamp)
    if arguments.dry_run:
        for member in members:
            goal = f"build in {precision_of(member, options)}" if member in todo else "fits this machine"
            say(f"{member.path} -> {goal}")
        return
    with BuildBars(console) as bars:
        made = build_engines(members, arguments.engines, options, images=images, say=say, progress=bars)
    say(f"{len(members) - len(made)} of {len(members)} networks were there and fit this machine")
    if made:
        console.print(table_of(made))


def make_member(arguments: argparse.Namespace, images: Crops) -> None:
    """Export a training checkpoint, without calibration; it is one of the members to build then."""
    try:
        from streamer.training.checkpoint import load_checkpoint, load_model
        from streamer.training.export import MemberTexts, export_member
        from streamer.training.make_member import check_name, origin_of
    except ImportError as error:
        raise BackendError(f"--from-checkpoint: {error}; {missing_extra('train')}") from error

    check_name(arguments.name)
    checkpoint = load_checkpoint(arguments.from_checkpoint)
    size = checkpoint.config.input.size
    export_member(
        load_model(arguments.from_checkpoint),
        arguments.engines,
        MemberTexts(
            name=arguments.name,
            origin=origin_of(checkpoint, "not stated"),
            measured="nothing, and not calibrated: see `streamer train export`",
        ),
        size=size,
        crops=images(size).check,
        calibration=Calibration(),
    )
    arguments.members.append(arguments.name)
    say(f"{arguments.name}: made from {arguments.from_checkpoint}, uncalibrated")


class Crops:
    """Faces to calibrate with and to check on, at any size: of a folder, else of the bundled clips."""

    def __init__(self, folder: Path | None, engines: Path) -> None:
        self._folder, self._engines = folder, engines
        self._bundled: list[UInt8Array] = []

    def __call__(self, size: int) -> CropSets:
        """Crops of (size, size); see `CropSets`. Raises ModelError."""
        if self._folder:
            return read_images(self._folder, size)
        if not self._bundled:
            self._bundled = asyncio.run(faces_of_clips(self._engines))
        crops = np.stack([cv2.resize(crop, (size, size)) for crop in self._bundled])
        return CropSets(crops[:0], np.asarray(crops, np.uint8), "faces of the bundled clips")


async def faces_of_clips(engines: Path) -> list[UInt8Array]:
    """Crops of every face in the bundled clips, found on the CPU."""
    crops: list[UInt8Array] = []
    async with Pipeline(Config(classify=ClassifyConfig(engines=engines))) as pipeline:
        for clip in demo_clips():
            async for piece in pieces_of(clip, clip.stem, 2.0):
                found = await pipeline.predict(piece.chunk, keep_crops=True)
                crops += [
                    face.crop for frame in found.frames for face in frame.faces if face.crop is not None
                ]
    return crops


class BuildBars(BuildProgress):
    """A bar for the outermost phase of each build."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._outermost: dict[str, str] = {}

    def __enter__(self) -> BuildBars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def phase(self, network: str, name: str, steps: int) -> None:
        """See `BuildProgress`."""
        if self._outermost.setdefault(network, name) == name:
            self._tasks[network] = self._bars.add_task(f"{network}: {name}", total=steps)

    def step(self, network: str, name: str, step: int) -> None:
        """See `BuildProgress`."""
        if self._outermost.get(network) == name:
            self._bars.update(self._tasks[network], completed=step + 1)

    def end(self, network: str, name: str) -> None:
        """See `BuildProgress`."""
        if self._outermost.get(network) == name:
            self._bars.remove_task(self._tasks.pop(network))
            del self._outermost[network]


def say(line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def check(arguments: argparse.Namespace, members: list[Member]) -> None:
    """Compare what needs no building with its reference, and show it. Raises ModelError beyond the bound."""
    precision = arguments.precision
    table = Table(
        Column("member", overflow="fold"),
        f"max difference of {precision}",
        "allowed",
        title="nothing to build for openvino",
    )
    far = []
    for member in members:
        name = member.manifest.name
        say(f"{name}: checking {precision}")
        difference = check_precision(member, precision, calibration=arguments.calibration)
        table.add_row(name, f"{difference:.2g}", f"{arguments.max_difference:g}")
        if difference > arguments.max_difference:
            far.append(name)
    console.print(table)
    if far:
        raise ModelError(f"{precision} differs too much: {', '.join(far)}")


def table_of(made: list[CompiledManifest]) -> Table:
    table = Table(
        Column("network", overflow="fold"),
        "calibrated with",
        "checked on",
        "max difference",
        "allowed",
        title=f"built for {made[0].target}",
    )
    for manifest in made:
        table.add_row(
            f"{manifest.name} {manifest.precision}",
            f"{manifest.calibration_images or ''} {manifest.calibration}".strip(),
            f"{manifest.check_images} images",
            f"{manifest.max_difference:.4f}",
            f"{manifest.allowed_difference:g}",
        )
    table.add_section()
    ensemble = max(manifest.max_ensemble_difference for manifest in made)
    table.add_row("mean of members", "", "", f"{ensemble:.4f}", "")
    return table


if __name__ == "__main__":
    sys.exit(main())
