"""Files -> final scores, through the same pipeline as the service, without a broker."""

from __future__ import annotations

import asyncio
import json as json_
import math
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated

import numpy as np
import structlog
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from streamer.config import Config
from streamer.engines import prepare_members
from streamer.errors import ChunkError, ConfigError, DecodeError, UntrainedError, missing_extra
from streamer.evidence import Evidence, faces_csv, tracks_to_show
from streamer.files import CHUNK_SECONDS, FileError, pieces_of, unicode_of, video_id_of
from streamer.log import printable
from streamer.manifest import read_manifest, sha256_of
from streamer.messages import ScoreUpdate, VideoChunk
from streamer.pipeline import Pipeline
from streamer.rolling import Arrival, RollingScores
from streamer.tasks import cancel_all
from streamer.terminal import count
from streamer.types import ChunkPrediction, OnFace
from streamer.watch import UNTRAINED, UNTRAINED_BANNER, people_in
from streamer.whole_file import write_whole

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

FILES_AT_ONCE = 2
"""While the last chunks of one file are classified, the next one is decoded."""


class FileScore(ScoreUpdate):
    """The `final` update of a file, and what the updates before it said."""

    alert_at_seconds: Annotated[float, Field(ge=0)] | None = None
    """Start of the chunk that first raised the alert, even if it was cleared later; null: none was raised."""


async def score_files(
    config: Config,
    files: Sequence[Path],
    *,
    json: bool,
    report: Path | None = None,
    csv: Path | None = None,
) -> int:
    """Print the score of every file, in the order given; returns the exit status, 1 if a file failed.

    report, csv: where to write the evidence page and a table of all faces of the only file. Raises ModelError
    if the ensemble cannot be used, ConfigError if there is no evidence to give.
    """
    if report or csv:
        return await _score_with_evidence(config, files, json=json, report=report, csv=csv)
    await asyncio.to_thread(prepare_members, config.classify)
    pipeline = await asyncio.to_thread(Pipeline, config)
    failed = 0
    async with pipeline:
        if not json and not pipeline.ensemble.trained:
            print(UNTRAINED_BANNER)  # noqa: T201
        at_once = asyncio.Semaphore(FILES_AT_ONCE)

        async def one(path: Path) -> FileScore | FileError:
            async with at_once:
                try:
                    return await score_file(path, config, pipeline)
                except FileError as error:
                    return error

        tasks = [asyncio.create_task(one(path)) for path in files]
        try:
            with _progress() as progress:
                bar = progress.add_task("scoring", total=len(files))
                for path, task in zip(files, tasks, strict=True):
                    result = await task
                    failed += isinstance(result, FileError)
                    progress.console.file.flush()
                    print(_json(path, result) if json else _line(path, result), flush=True)  # noqa: T201
                    progress.advance(bar)
        finally:
            await cancel_all(tasks)
    return 1 if failed else 0


async def _score_with_evidence(
    config: Config, files: Sequence[Path], *, json: bool, report: Path | None, csv: Path | None
) -> int:
    if len(files) != 1:
        raise ConfigError(f"--report and --csv are about one file, not {len(files)}")
    for option, target, suffix in (("--report", report, ".html"), ("--csv", csv, ".csv")):
        if target and target.suffix.lower() != suffix:  # it may be a video that was meant to be scored
            raise ConfigError(f"{option} takes the name of the {suffix} file to write, not {target}")
        if target and not os.access(target.parent, os.W_OK):  # said now, not after hours of scoring
            raise ConfigError(f"{option}: {target.parent} is no folder that can be written to")
    if report:
        try:
            from streamer.evidence_page import report_html
        except ImportError as error:
            raise ConfigError(
                f"--report needs the extra report: {missing_extra('report')} ({error})"
            ) from error
    (path,) = files
    if report and path.exists() and not (path.is_file() or path.is_dir()):
        raise ConfigError("--report states the file's SHA-256, for which it is read again: no pipe can be")
    folder = config.classify.engines
    manifests = [read_manifest(folder / f"{member}.json") for member in config.classify.members]
    if untrained := [manifest.name for manifest in manifests if not manifest.trained]:
        raise UntrainedError(f"no evidence is written of untrained members: {', '.join(untrained)}")
    evidence = Evidence()
    async with await asyncio.to_thread(Pipeline, config) as pipeline:
        try:
            result: FileScore | FileError = await score_file(path, config, pipeline, on_face=evidence.add)
        except FileError as error:
            result = error
        print(_json(path, result) if json else _line(path, result), flush=True)  # noqa: T201
        if isinstance(result, FileError):
            return 1
        heat_maps = {}
        for track in tracks_to_show(evidence) if report else ():
            crops = np.stack([crop for _, crop in evidence.crops_of(track)])
            if (heat := await pipeline.heat_maps(crops)) is not None:
                heat_maps[track] = heat
    try:
        if csv:
            write_whole(csv, faces_csv(evidence, pipeline.ensemble.names).encode())
        if report:
            page = report_html(
                result,
                evidence,
                file_name=unicode_of(path.name),
                was_raised=result.alert_at_seconds is not None,
                file_sha256=sha256_of(path),
                manifests=manifests,
                alert=config.alert,
                heat_maps=heat_maps,
            )
            write_whole(report, page.encode())
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename}: {error.strerror}") from error
    return 0


async def score_file(
    path: Path, config: Config, pipeline: Pipeline, *, on_face: OnFace | None = None
) -> FileScore:
    """The `final` update of a file: that of the service, if the file is given to `streamer publish`.

    on_face: told of every face, with its crop.

    Raises FileError if it cannot be read, or if not one of its chunks can be decoded. A chunk that cannot,
    among others that can, is counted in `undecodable_chunks`; so is what is left of a file where it is cut.
    One that is damaged in the file itself is left out, and counted in `missing_chunks`.
    """
    started = time.monotonic()
    rolling = RollingScores(config.rolling, config.alert, config.faces, pipeline.ensemble)
    waiting: deque[tuple[VideoChunk, asyncio.Task[ChunkPrediction]]] = deque()
    video_id = video_id_of(path)
    first_error: ChunkError | None = None
    cut: FileError | None = None
    alert_at: float | None = None
    next_seq = lost = 0

    async def count_next() -> None:
        nonlocal first_error, alert_at
        chunk, task = waiting.popleft()
        arrival = Arrival(time.monotonic(), round(1000 * time.time()))
        try:
            update = rolling.apply(await task, last=False, arrival=arrival, on_face=on_face)
        except ChunkError as error:
            first_error = first_error or error
            rolling.apply_undecodable(video_id, chunk.seq, error.reason, arrival=arrival)
        else:
            if alert_at is None and update.alert.state == "raised":
                alert_at = update.start_seconds

    try:
        try:
            async with aclosing(pieces_of(path, video_id, CHUNK_SECONDS)) as pieces:
                async for piece in pieces:
                    next_seq = piece.chunk.seq + 1
                    lost += piece.lost
                    waiting.append(
                        (
                            piece.chunk,
                            asyncio.create_task(
                                pipeline.predict(piece.chunk, keep_crops=on_face is not None)
                            ),
                        )
                    )
                    if len(waiting) >= config.service.max_chunks_in_flight:
                        await count_next()
        except FileError as error:
            if error.reason not in DecodeError.REASONS:
                raise
            cut = error
        while waiting:
            await count_next()
    finally:
        await cancel_all([task for _, task in waiting])
    if cut is not None:
        arrival = Arrival(time.monotonic(), round(1000 * time.time()))
        rolling.apply_undecodable(video_id, next_seq, cut.reason, arrival=arrival)
    elapsed_ms = 1000 * (time.monotonic() - started)
    end = Arrival(math.inf, round(1000 * time.time()), latency_ms={"total": elapsed_ms})
    final = next(rolling.expire(end, at_most=1), None)
    if final is None:
        raise FileError(path, "no_frames", "it holds no video")
    if not final.chunks:
        if cut is not None:
            raise cut
        if first_error is not None:
            raise FileError(path, first_error.reason, str(first_error)) from first_error
    if (why := first_error or cut) is not None:
        log.warning("not all of a file could be scored", file=str(path), error=str(why))
    # Gaps in seq tell all that is lost but what is before the first chunk.
    return FileScore(**dict(final) | {"missing_chunks": lost}, alert_at_seconds=alert_at)


def _json(path: Path, result: FileScore | FileError) -> str:
    if isinstance(result, FileError):
        return json_.dumps({"file": str(path), "error": str(result), "reason": result.reason})
    return json_.dumps({"file": str(path), **result.model_dump(mode="json")})


def _line(path: Path, result: FileScore | FileError) -> str:
    """Score first, so that the lines align and sort."""
    name = printable(str(path))
    if isinstance(result, FileError):
        return f"{'error':>9}  {name}: {printable(str(result))}"
    if not result.trained:
        score = UNTRAINED
    elif result.fake_score is None:
        score = "no face"
    else:
        score = f"{result.fake_score:.3f}"
    about = [count(result.frames, "frame"), count(result.faces, "face")]
    if people := people_in(result):
        about.append(count(people, "person", "people"))
    if result.trained and people > 1:
        about += [
            f"most suspicious {t.fake_score:.3f}" for t in result.tracks if t.track == result.suspect_track
        ]
    if result.trained and result.interval is not None:
        about.insert(0, f"95 % interval {result.interval[0]:.2f}–{result.interval[1]:.2f}")
    if result.unscored_faces:
        about.append(f"{count(result.unscored_faces, 'face')} not scored (faces.max_faces_per_frame)")
    if result.undecodable_chunks:
        about.append(f"{count(result.undecodable_chunks, 'chunk')} undecodable")
    if result.missing_chunks:
        about.append(f"{count(result.missing_chunks, 'damaged chunk')} left out")
    if result.trained and result.alert_at_seconds is not None:
        cleared = "" if result.alert.state == "raised" else ", cleared later"
        about.append(f"ALERT at {result.alert_at_seconds:.0f} s{cleared}")
    return f"{score:>9}  {name}: {', '.join(about)}"


def _progress() -> Progress:
    """On standard error and only on a terminal; standard output is for the results."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),
    )
