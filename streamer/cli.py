"""The command line: options -> configuration -> one call. Heavy libraries load inside the commands."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import streamer
from streamer.command_group import CommandGroup, full_disk_told
from streamer.config import Config
from streamer.errors import ConfigError, missing_extra
from streamer.files import CHUNK_SECONDS
from streamer.load_config import load_config
from streamer.overrides import parse_override, put
from streamer.terminal import CONNECT_SECONDS
from streamer.training.cli import train_app

if TYPE_CHECKING:
    from streamer.tracing import Tracing

DEFAULT_CONFIG = Path("config.toml")

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Real-time deepfake detection: video chunks from Kafka in, rolling fake scores out.",
)
topics_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Kafka topics.")
app.add_typer(topics_app, name="topics")
app.add_typer(train_app, name="train")


@dataclass
class Settings:
    """Global options, until a command asks for the configuration they make."""

    file: Path | None = None
    overrides: dict[str, Any] = field(default_factory=dict)

    def load(self, *more: tuple[str, Any]) -> Config:
        """The configuration; `more` are (dotted key, value) from options of the command, None for unset."""
        for key, value in more:
            if value is not None:
                put(self.overrides, key, value)
        return load_config(self.file, self.overrides)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"streamer {streamer.__version__}")
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(help="Configuration file.  [default: ./config.toml where there is one]"),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated."),
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(metavar="debug|info|warning|error", help="How much to log to stderr.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    settings = Settings(config)
    if config is None and DEFAULT_CONFIG.is_file():
        settings.file = DEFAULT_CONFIG
    for text in set_ or ():
        key, value = parse_override(text)
        if key == "dashboard.token":
            raise ConfigError(
                "--set dashboard.token: every user of a machine can read its command lines; "
                "use STREAMER_DASHBOARD__TOKEN or dashboard.token_file"
            )
        put(settings.overrides, key, value)
    if log_level is not None:
        put(settings.overrides, "log.level", log_level)
    ctx.obj = settings


Bootstrap = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Kafka; overrides kafka.bootstrap_servers.")
]
Untrained = Annotated[
    bool | None,
    typer.Option(
        "--allow-untrained",
        help="Run members with random weights, to try the plumbing; their scores are withheld.",
        show_default=False,
    ),
]
Files = Annotated[list[Path], typer.Argument(metavar="FILE", help="Video files.", show_default=False)]
ChunkSeconds = Annotated[
    float, typer.Option(min=0.1, max=60, help="Cut at the first keyframe after so many seconds.")
]


@app.command()
def run(ctx: typer.Context, bootstrap: Bootstrap = None, allow_untrained: Untrained = None) -> None:
    """Detect: read chunks from Kafka, publish scores, until SIGTERM or Ctrl-C."""
    config = ctx.obj.load(
        ("kafka.bootstrap_servers", bootstrap), ("classify.allow_untrained", allow_untrained)
    )
    _start_log(config)
    from streamer.engines import prepare_members
    from streamer.pipeline import Pipeline
    from streamer.service import Service

    def open_pipeline() -> Pipeline:
        prepare_members(config.classify)
        return Pipeline(config)

    with _tracing(config) as tracing:
        _run(Service(config, open_pipeline, tracing=tracing).run())


@app.command()
def publish(
    ctx: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT", help="Files; rtsp://, rtmp:// and other URLs.", show_default=False),
    ],
    hls: Annotated[bool, typer.Option("--hls", help="The inputs are HLS playlists: URLs or files.")] = False,
    dash: Annotated[
        bool, typer.Option("--dash", help="The inputs are MPEG-DASH manifests: URLs or files.")
    ] = False,
    min_height: Annotated[
        int, typer.Option(min=1, help="Of HLS and DASH, the cheapest rendition with so many lines.")
    ] = 720,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="As live cameras would: each chunk when its time has come.")
    ] = False,
    chunk_seconds: ChunkSeconds = CHUNK_SECONDS,
    video_id: Annotated[
        str | None,
        typer.Option(
            help="For a single input; chunks of one id are one video.  [default: its name without extension]"
        ),
    ] = None,
    attempts: Annotated[
        int, typer.Option(min=0, help="Give a live source up after so many failures in a row; 0: never.")
    ] = 0,
    input_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Option of FFmpeg for streams, e.g. rtsp_transport=udp."),
    ] = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Publish video as chunks, without re-encoding: files, HLS, DASH, live streams."""
    config = ctx.obj.load(("kafka.bootstrap_servers", bootstrap))
    _start_log(config)
    from streamer.network import NetworkOptions
    from streamer.publish import publish_sources
    from streamer.sources import ffmpeg_options, sources_of

    network = NetworkOptions(
        hls=hls,
        dash=dash,
        min_height=min_height,
        attempts=attempts,
        ffmpeg=ffmpeg_options(input_option or ()),
        max_bytes=config.kafka.max_message_bytes,
    )
    sources = sources_of(inputs, video_id, network)
    with _tracing(config) as tracing:
        work = publish_sources(config, sources, chunk_seconds, realtime=realtime, tracing=tracing)
        _exit(_run(work))


@app.command()
def watch(
    ctx: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="One update per line, for pipes.")] = False,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="Also the updates that Kafka still has.")
    ] = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Show scores as they come, most suspicious first; Ctrl-C ends it."""
    config = ctx.obj.load(("kafka.bootstrap_servers", bootstrap))
    _start_log(config)
    from streamer.watch import watch_scores

    _run(watch_scores(config, json=json, from_beginning=from_beginning))


@app.command()
def dashboard(
    ctx: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on; overrides dashboard.host.")] = None,
    port: Annotated[int | None, typer.Option(help="0: any free one; overrides dashboard.port.")] = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Show scores and dead letters on a live page in the browser; Ctrl-C ends it."""
    config = ctx.obj.load(
        ("kafka.bootstrap_servers", bootstrap), ("dashboard.host", host), ("dashboard.port", port)
    )
    _start_log(config)
    _need_dashboard()
    from streamer.dashboard.serve import run_dashboard

    _run(run_dashboard(config, lambda address: typer.echo(f"{address}  (Ctrl-C ends it)")))


@app.command()
def score(
    ctx: typer.Context,
    files: Files,
    json: Annotated[bool, typer.Option("--json", help="One object per file on a line.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="HTML page to write: what the score of the only file rests on.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Table to write: every face of the only file.")] = None,
    allow_untrained: Untrained = None,
) -> None:
    """Score video files without Kafka. Exit status 1 if one of them cannot be read."""
    config = ctx.obj.load(("classify.allow_untrained", allow_untrained))
    _start_log(config)
    from streamer.score import score_files

    _exit(_run(score_files(config, files, json=json, report=report, csv=csv)))


@app.command()
def report(
    ctx: typer.Context,
    video_id: Annotated[str, typer.Argument(help="Of a video that was scored, live or not.")],
    output: Annotated[Path, typer.Option(help="HTML page to write.", show_default=False)],
    bootstrap: Bootstrap = None,
) -> None:
    """Write the evidence page of a video from what Kafka holds of it; status 1 if that is nothing."""
    config = ctx.obj.load(("kafka.bootstrap_servers", bootstrap))
    _start_log(config)
    try:
        from streamer.live_report import report_video
    except ImportError as error:
        raise ConfigError(f"this needs the extra report: {missing_extra('report')} ({error})") from error

    _run(report_video(config, video_id, output))


@topics_app.command("create")
def topics_create(
    ctx: typer.Context,
    partitions: Annotated[int, typer.Option(min=1, help="Bounds how many processes can share the work.")] = 4,
    replication: Annotated[
        int, typer.Option(help="Copies of each partition; -1: the broker's default.")
    ] = -1,
    bootstrap: Bootstrap = None,
) -> None:
    """Create the topics that are missing."""
    config = ctx.obj.load(("kafka.bootstrap_servers", bootstrap))
    _start_log(config)
    from streamer.kafka.topics import create_topics

    work = create_topics(
        config.kafka, partitions=partitions, replication=replication, connect_seconds=CONNECT_SECONDS
    )
    for name, topic in _run(work).items():
        differs = "" if topic.partitions == partitions else f", with {topic.partitions} partitions"
        typer.echo(f"{name}: {'created' if topic.new else f'already there{differs}'}")


@app.command()
def doctor(
    ctx: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="One object.")] = False,
    bootstrap: Bootstrap = None,
    allow_untrained: Untrained = None,
) -> None:
    """Check what is installed and usable, and why not. Exit status: that of `run`, or 0 if it can work."""
    config = ctx.obj.load(
        ("kafka.bootstrap_servers", bootstrap), ("classify.allow_untrained", allow_untrained)
    )
    from streamer.doctor import examine

    _exit(_run(examine(config, ctx.obj.file, json=json)))


@app.command()
def demo(
    ctx: typer.Context,
    page: Annotated[bool, typer.Option("--page", help="Show it on the live page, too.")] = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Detect on two bundled clips, live: broker, service, cameras, view. Ends by itself."""
    config = ctx.obj.load(("kafka.bootstrap_servers", bootstrap))
    if page:
        _need_dashboard()
    from streamer.demo import run_demo

    _exit(_run(run_demo(config, embedded=bootstrap is None, page=page)))


def _need_dashboard() -> None:
    """Raises ConfigError if the libraries of the live page are not installed."""
    from importlib.util import find_spec

    for name in ("starlette", "uvicorn", "sse_starlette"):
        if find_spec(name) is None:
            raise ConfigError(f"the live page needs {name}: {missing_extra('dashboard')}")


def _start_log(config: Config) -> None:
    """Log to stderr as configured."""
    from streamer.log import set_up_logging

    set_up_logging(config.log)


@contextmanager
def _tracing(config: Config) -> Iterator[Tracing | None]:
    """Traces as configured; what is left of them is sent at the end."""
    from streamer.tracing import open_tracing

    tracing = open_tracing(config.tracing)
    try:
        yield tracing
    finally:
        if tracing is not None:
            tracing.close()


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run on uvloop."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def _exit(code: int) -> None:
    if code:
        raise typer.Exit(code)


def main() -> None:
    """Entry point."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # file names need be no UTF-8
    with full_disk_told():
        app(prog_name="streamer")
