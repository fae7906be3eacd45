"""`streamer train ...`: options -> one call each. Heavy libraries load inside the commands.

In a row they make a member out of a data set:

    streamer train prepare DATA --source dfdc --cache CACHE
    streamer train autoencoder --cache CACHE --output AUTOENCODER.pt     (for recipes with decoded blends)
    streamer train fit RECIPE --cache CACHE --run RUN
    streamer train export RUN/best.pt --cache CACHE --name NAME
    streamer train evaluate NAME --cache CACHE
    streamer train card RUN/best.pt --name NAME ...
"""

from __future__ import annotations

import errno
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from streamer.config import Config
from streamer.errors import ConfigError, TrainingError, missing_extra
from streamer.load_config import load_config
from streamer.overrides import recipe_overrides


class _Group(TyperGroup):
    """Says which extra to install, where one of its libraries is missing; what cannot be written, where there
    is no room for it or something else in its place; and that a worker of torch died."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            library = (error.name or "").partition(".")[0]
            if library == "streamer":
                raise
            raise ConfigError(f"this needs {library}: {missing_extra('train')}") from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever read our output went away
                raise
            where = f"{error.filename}: " if error.filename else ""
            raise TrainingError(f"{where}{error.strerror or error}") from error
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):  # from a signal's handler, wherever we are
                raise
            raise TrainingError(
                f"a process that prepares batches died, most likely for want of memory: {error}; go on with "
                f"--resume, with fewer workers if it happens again"
            ) from error


train_app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Train members on your own videos, and measure them.",
)


class Source(StrEnum):
    """How a data set is laid out; see `sources`. Typer takes lists of enumerations, but none of literals."""

    DFDC = "dfdc"
    FACEFORENSICS = "faceforensics"
    FOLDER = "folder"


SplitName = Literal["train", "validation", "test"]
Cache = Annotated[Path, typer.Option(help="Folder of face crops.", show_default=False)]
Engines = Annotated[
    Path | None, typer.Option(help="Folder of members.  [default: classify.engines]", show_default=False)
]
Workers = Annotated[int, typer.Option(min=1, help="Worker processes.")]


@train_app.command()
def prepare(
    ctx: typer.Context,
    data: Annotated[list[Path], typer.Argument(help="Folders of data sets.", show_default=False)],
    source: Annotated[
        list[Source],
        typer.Option(help="Layout of the folders: once for all, or once for each.", show_default=False),
    ],
    cache: Cache,
    group_by: Annotated[
        Literal["stem", "file"],
        typer.Option(
            help="For --source folder: stem: files of the same name show the same people; file: each stands "
            "for itself, as in collections of numbered pictures."
        ),
    ] = "stem",
    compression: Annotated[
        list[str] | None,
        typer.Option(
            help="For --source faceforensics: c0, which is its raw, c23 or c40. Several are possible.  "
            "[default: c23 and c40]",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="For --source faceforensics: Deepfakes, Face2Face, ... Several are possible.  "
            "[default: those that are there]",
            show_default=False,
        ),
    ] = None,
    official_split: Annotated[
        bool,
        typer.Option(
            help="For --source faceforensics: split as its train.json, val.json and test.json say; or at "
            "random by people."
        ),
    ] = True,
    validation: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Validate on the files whose DATASET/PATH matches, and on what belongs to them; train on "
            "the rest. Several are possible. By default a fifth of the people, at random.",
        ),
    ] = None,
    frames_per_real: Annotated[int, typer.Option(min=1, help="Of a real video.")] = 10,
    frames_per_fake: Annotated[int, typer.Option(min=1, help="Of a fake one.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Of the split and the choice of frames.")] = 1,
    workers: Workers = 1,
) -> None:
    """Find the faces: videos and pictures -> a cache of face crops, split by people. Goes on where it was."""
    config = _start(ctx)
    from streamer.training.bar import bar
    from streamer.training.prepare_data import Selection, prepare_data

    prepared = prepare_data(
        Selection(
            folders=data,
            layouts=[each.value for each in source],
            group_by=group_by,
            compressions=compression,
            methods=method,
            official_split=official_split,
            validation=validation or (),
            seed=seed,
        ),
        cache=cache,
        config=config,
        frames_per_real=frames_per_real,
        frames_per_fake=frames_per_fake,
        workers=workers,
        bar=bar,
    )
    for line in prepared.in_lines():
        typer.echo(line)


@train_app.command()
def autoencoder(
    ctx: typer.Context,
    cache: Cache,
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("autoencoder.pt"),
    steps: Annotated[int, typer.Option(min=1, help="Batches.")] = 3500,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    workers: Workers = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it was interrupted.")] = False,
) -> None:
    """Train the decoder that decoded blends are painted by (mixture.decoded of a recipe), on real faces."""
    _start(ctx)
    from streamer.training.bar import bar
    from streamer.training.crops import read_index
    from streamer.training.fit_autoencoder import fit_autoencoder

    records = read_index(cache)
    with bar("training") as progress:
        unlike = fit_autoencoder(
            records,
            cache,
            output,
            steps=steps,
            seed=seed,
            workers=workers,
            resume=resume,
            progress=progress,
        )
    typer.echo(f"{output}: dissimilarity {unlike:.3f} of 0 to 1 from the faces it was shown")


@train_app.command()
def fit(
    ctx: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="TOML file.", show_default=False)],
    cache: Cache,
    run: Annotated[Path, typer.Option(help="Folder for checkpoints and TensorBoard.", show_default=False)],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override the recipe, e.g. model.dropout=0.3."),
    ] = None,
) -> None:
    """Train one network; torchrun starts several processes of it, for several GPUs."""
    _start(ctx)
    from rich.console import Console

    from streamer.training.config import load_recipe
    from streamer.training.crops import read_index
    from streamer.training.progress import shown
    from streamer.training.split import check_no_leak_in_records
    from streamer.training.train import train

    config = load_recipe(recipe, recipe_overrides(set_ or ()))
    records = read_index(cache)
    check_no_leak_in_records(records)
    first = os.environ.get("RANK", "0") == "0"  # torchrun's variable
    with shown(Console(stderr=True, quiet=not first)) as report:
        best = train(config, records, cache=cache, run=run, resume=resume, report=report)
    if first:
        typer.echo(best)


@train_app.command()
def evaluate(
    ctx: typer.Context,
    cache: Cache,
    members: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MEMBER|CHECKPOINT]...",
            help="Names of members, or .pt files.  [default: classify.members]",
            show_default=False,
        ),
    ] = None,
    split: Annotated[SplitName, typer.Option(help="Which part of the data to measure on.")] = "validation",
    report: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("evaluation"),
    engines: Engines = None,
    curves: Annotated[bool, typer.Option(help="Measure degraded pictures too.")] = True,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="300 videos, a few crops of each, 300 pictures, some degradations."),
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Threads that cut crops.")] = 1,
) -> None:
    """Measure members, and their ensemble, on one part of a cache: figures, and a report to read."""
    config = _start(ctx)
    from streamer.training.measure import in_lines, measure
    from streamer.training.report import write_report

    evaluation = measure(
        list(members or config.classify.members),
        cache=cache,
        split=split,
        config=_with_engines(config, engines),
        curves=curves,
        quick=quick,
        workers=workers,
        report=lambda text: typer.echo(text, err=True),
    )
    path = write_report(evaluation, report)
    for line in in_lines(evaluation):
        typer.echo(line)
    typer.echo(path)


@train_app.command()
def export(
    ctx: typer.Context,
    checkpoint: Annotated[Path, typer.Argument(help="RUN/best.pt", show_default=False)],
    name: Annotated[str, typer.Option(help="Of the member.", show_default=False)],
    cache: Cache,
    split: Annotated[SplitName, typer.Option(help="Which part of the data to calibrate on.")] = "validation",
    engines: Engines = None,
    data: Annotated[
        str | None, typer.Option(help="What it was trained on, in words.  [default: counts of the cache]")
    ] = None,
    licence: Annotated[str, typer.Option(help="Of the weights.")] = "Apache-2.0",
    storage: Annotated[
        Literal["f16", "f32"], typer.Option(help="Of the weights; f16 is half the size.")
    ] = "f16",
    heat_map: Annotated[bool, typer.Option(help="A second output: which cells were altered.")] = True,
) -> None:
    """Make a member of a checkpoint: calibrated on one part of a cache, checked, with its manifest."""
    config = _with_engines(_start(ctx), engines)
    from streamer.training.make_member import export_calibrated

    exported = export_calibrated(
        checkpoint,
        name=name,
        cache=cache,
        split=split,
        config=config,
        data=data,
        licence=licence,
        storage=storage,
        heat_map=heat_map,
    )
    typer.echo(f"{exported.path}: {exported.file_bytes / 1e6:.1f} MB; {exported.manifest.measured}")


@train_app.command()
def card(
    ctx: typer.Context,
    checkpoint: Annotated[Path, typer.Argument(help="That the member was made of.", show_default=False)],
    name: Annotated[str, typer.Option(help="Of the member.", show_default=False)],
    data: Annotated[str, typer.Option(help="What it was trained on, a sentence.", show_default=False)],
    licence_of_data: Annotated[str, typer.Option(help="A sentence on its terms.", show_default=False)],
    command: Annotated[str, typer.Option(help="That trained it.", show_default=False)],
    device: Annotated[str, typer.Option(help="That it ran on, in words.", show_default=False)],
    report: Annotated[Path, typer.Option(help="Folder of an `evaluate` of the member.")] = Path("evaluation"),
    engines: Engines = None,
) -> None:
    """Write a member's model card: what it is, what was measured, what it is good for and what not."""
    config = _with_engines(_start(ctx), engines)
    from streamer.training.cards import write_card

    path = write_card(
        config.classify.engines / f"{name}.json",
        checkpoint,
        report / "report.json",
        data=data,
        licence_of_data=licence_of_data,
        command=command,
        device=device,
    )
    typer.echo(path)


@train_app.command()
def sheet(
    ctx: typer.Context,
    cache: Cache,
    output: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("sheet.png"),
    recipe: Annotated[Path | None, typer.Option(help="Whose augmentations.  [default: built-in]")] = None,
    faces: Annotated[int, typer.Option(min=2, help="So many.")] = 3,
    seed: Annotated[int, typer.Option(min=0)] = 1,
) -> None:
    """Draw what augmentation and blending do to some faces of the training data."""
    _start(ctx)
    from streamer.training.contact_sheet import write_contact_sheet

    write_contact_sheet(output, cache=cache, recipe=recipe, faces=faces, seed=seed)
    typer.echo(output)


def _start(ctx: typer.Context) -> Config:
    """The configuration of `streamer`'s global options, if there are any; logging set up."""
    config: Config = load_config() if ctx.obj is None else ctx.obj.load()
    from streamer.log import set_up_logging

    set_up_logging(config.log)
    return config


def _with_engines(config: Config, engines: Path | None) -> Config:
    if engines is None:
        return config
    return config.model_copy(update={"classify": config.classify.model_copy(update={"engines": engines})})
