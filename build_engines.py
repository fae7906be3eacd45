"""Build networks for this machine from the portable ONNX models in engines/, checked against their source.

    python build_engines.py untrained                     full-size members with random weights
    python build_engines.py --precision int8 --calibration CROPS [MEMBER ...]
    python build_engines.py --precision bf16 [MEMBER ...]  nothing to build: checks only

MEMBER is a classifier's name, or its path under engines/ without `.json`; all of them if none is given. int8
needs the extra `quantize` and a folder of face crops, at least 32, as the service cuts them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from streamer.backends.compiled import INT8_FOLDER, CompiledManifest
from streamer.engines import UNTRAINED, make_untrained
from streamer.errors import BackendError, ModelError, StreamerError
from streamer.quantise import Member, check_precision, find_members, quantise

console = Console(stderr=True)

MAX_DIFFERENCE = 0.05
"""Default bound on the change of a member's probability."""


def main() -> int:
    """Exit status 0: built; 1: refused or failed; 2: wrong usage."""
    arguments = parse_arguments()
    try:
        build(arguments)
    except StreamerError as error:
        console.print(
            f"build_engines.py: {error}", style="red", highlight=False, markup=False, soft_wrap=True
        )
        return 1
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("members", nargs="*", metavar="MEMBER", help="classifiers, or the word `untrained`")
    parser.add_argument("--target", choices=("openvino", "tensorrt"), default="openvino")
    parser.add_argument("--precision", choices=("f32", "bf16", "int8"), default="f32")
    parser.add_argument("--calibration", type=Path, metavar="DIR", help="folder of crops (int8, checks)")
    parser.add_argument(
        "--max-difference",
        type=float,
        default=MAX_DIFFERENCE,
        metavar="P",
        help="refuse a member whose probability changes by more on any checked image (default %(default)s)",
    )
    parser.add_argument("--engines", type=Path, default=Path("engines"), metavar="DIR")
    parser.add_argument("--dry-run", action="store_true", help="say what would be built, and stop")
    arguments = parser.parse_args()
    if not 0 < arguments.max_difference <= 1:
        parser.error("--max-difference must be in (0, 1]")
    if arguments.calibration and not arguments.calibration.is_dir():
        parser.error(f"--calibration {arguments.calibration}: no such folder")
    return arguments


def build(arguments: argparse.Namespace) -> None:
    if arguments.target == "tensorrt":
        raise BackendError(
            "target tensorrt is not part of this release; it comes with the extra gpu in a later one"
        )
    only_untrained = arguments.members == ["untrained"]
    wanted = set(UNTRAINED) if only_untrained or not arguments.members else set(arguments.members)
    for name in UNTRAINED:
        if wanted & {name, f"untrained/{name}"}:
            build_untrained(arguments, name, again=only_untrained)
    if only_untrained:
        return
    members = find_members(arguments.engines, arguments.members)
    if not members:
        raise ModelError(f"no classifiers under {arguments.engines}")
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


def say(line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def check(arguments: argparse.Namespace, members: list[Member]) -> None:
    """Compare what needs no building with its reference, and show it. Raises ModelError beyond the bound."""
    precision = arguments.precision
    table = Table(
        "member", f"max difference of {precision}", "allowed", title="nothing to build for openvino"
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
        "member", "calibrated with", "checked on", "max difference", "allowed", title="int8 for openvino"
    )
    for manifest in made:
        table.add_row(
            manifest.name,
            f"{manifest.calibration_images} {manifest.calibration}",
            f"{manifest.check_images} others",
            f"{manifest.max_difference:.4f}",
            f"{manifest.allowed_difference:g}",
        )
    table.add_section()
    table.add_row("mean of members", "", "", f"{made[0].max_ensemble_difference:.4f}", "")
    return table


if __name__ == "__main__":
    sys.exit(main())
