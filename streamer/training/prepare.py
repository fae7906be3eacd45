"""Items -> the cache of face crops, in worker processes. It may be stopped: the next run goes on from there.

The same items, settings and seed give the same cache, however many workers and interruptions there were.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing.util
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamer.backends.load import load_network
from streamer.config import Config
from streamer.errors import DecodeError, TrainingError
from streamer.faces.detect import FaceDetector
from streamer.manifest import read_manifest
from streamer.sample import sampling_seed
from streamer.training.crops import (
    INDEX,
    ITEMS,
    MARGIN,
    MAX_SIDE,
    SETTINGS,
    UNLISTED,
    FaceCutter,
    Finished,
    file_of,
    parse_record,
    to_lines,
    write_crop,
)
from streamer.training.frames import FrameReader, Wanted
from streamer.training.landmarks import LandmarkFinder
from streamer.training.sources import name_of
from streamer.training.types import FAKE, CropRecord, Item
from streamer.training.workers import Progress, in_processes
from streamer.whole_file import write_whole

FRAMES_PER_REAL, FRAMES_PER_FAKE = 10, 2
"""Of a video, by default: DFDC and FaceForensics++ hold about five fakes for each real video."""

LANDMARK_NETWORK = "face_landmark"


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """What a cache holds, and what became of the items."""

    items: int
    crops: int
    frames_without_face: int
    crops_without_landmarks: int
    by_split: dict[str, dict[str, int]]
    """Split -> generator (`real` among them) -> crops."""
    problems: tuple[Finished, ...]
    """Items that gave no crop, and why."""

    def to_json(self) -> str:
        """For a file beside the cache."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


@dataclass(frozen=True, slots=True)
class _Job:
    """One item and what its records say of it."""

    name: str
    item: Item
    original: str | None
    wanted: Wanted


def prepare(
    items: Sequence[Item],
    *,
    roots: Mapping[str, Path],
    cache: Path,
    config: Config,
    seed: int,
    frames_per_real: int = FRAMES_PER_REAL,
    frames_per_fake: int = FRAMES_PER_FAKE,
    workers: int = 1,
    progress: Progress = lambda done, total: None,
) -> PrepareReport:
    """Fill a cache with the face crops of exactly these items; crops already there are kept.

    Items of earlier calls that are not among these are not in the index, but when they are asked for again,
    nothing of them is decoded anew.

    items: of all data sets together, after `split.assign_splits`. roots: data set's name -> its folder; an
    item is called `NAME/PATH-BELOW-ITS-FOLDER`. config: `faces`, `decode`, and of `classify` the folder of
    networks and the backend. frames_per_real, frames_per_fake: of a video. workers: processes, one thread
    each; a video's decoder is one more beside its worker. Blocks. Raises TrainingError, ModelError.
    """
    jobs = [_job(item, roots, seed, frames_per_real, frames_per_fake) for item in items]
    _check_jobs(jobs)
    cache.mkdir(parents=True, exist_ok=True)
    _check_settings(cache, _settings(config, seed, frames_per_real, frames_per_fake))
    # 1. what an earlier run finished
    done, unlisted = _read_finished(cache, jobs)
    _put_aside(cache, unlisted)
    _write_all(cache, jobs, done)
    # 2. the rest
    progress(len(done), len(jobs))
    missing = [job for job in jobs if job.name not in done]
    with (cache / INDEX).open("a") as index, (cache / ITEMS).open("a") as items_file:
        outcomes = in_processes(
            _work, missing, workers=workers, start=_start_worker, arguments=(config, cache)
        )
        for finished, records in outcomes:
            index.write(to_lines(records))
            index.flush()
            items_file.write(to_lines([finished]))  # last: an item is done when it stands here
            items_file.flush()
            done[finished.item] = finished, records
            progress(len(done), len(jobs))
    # 3. in the order of the items
    _write_all(cache, jobs, done)
    return _report(jobs, done)


def _job(
    item: Item, roots: Mapping[str, Path], seed: int, frames_per_real: int, frames_per_fake: int
) -> _Job:
    """The frames of a fake are among those of its original, or the other way round.

    Raises TrainingError if the item lies in no root.
    """
    name = name_of(item.path, roots)
    original = None if item.original is None else name_of(item.original, roots)
    wanted = Wanted(
        count=frames_per_fake if item.label == FAKE else frames_per_real,
        seed=sampling_seed(f"{seed} {original or name}", 0),
        cells=max(frames_per_real, frames_per_fake),
        choice=sampling_seed(f"{seed} {name}", 1),
        like=item.original,
    )
    return _Job(name, item, original, wanted)


def _check_jobs(jobs: Sequence[_Job]) -> None:
    for job in jobs:
        if job.item.split is None or len(job.item.groups) != 1:
            raise TrainingError(f"{job.item.path}: belongs to no split yet; call assign_splits first")
    twice = [name for name, count in Counter(job.name for job in jobs).items() if count > 1]
    if twice:
        raise TrainingError(f"{twice[0]}: listed more than once ({len(twice)} such items)")


def _settings(config: Config, seed: int, frames_per_real: int, frames_per_fake: int) -> dict[str, Any]:
    """All that decides what the crops of an item are, fit for JSON."""
    faces, engines = config.faces, config.classify.engines
    networks = (*faces.networks, LANDMARK_NETWORK)
    return {
        "margin": MARGIN,
        "max_side": MAX_SIDE,
        "seed": seed,
        "frames_per_real": frames_per_real,
        "frames_per_fake": frames_per_fake,
        "frames_of_fakes": "among those of the original",
        "networks": {name: read_manifest(engines / f"{name}.json").sha256 for name in networks},
        # For the serving crop and for tracks, not for what is found:
        "faces": faces.model_dump(mode="json", exclude={"margin", "track_iou", "track_gap_seconds"}),
        "decode": config.decode.model_dump(mode="json", include={"max_pixels", "skip_nonreference"}),
    }


def _check_settings(cache: Path, settings: dict[str, Any]) -> None:
    """A cache is made with one set of settings. Raises TrainingError that names the first difference."""
    path = cache / SETTINGS
    if not path.exists():
        write_whole(path, (json.dumps(settings, indent=2) + "\n").encode())
        return
    try:
        before = json.loads(path.read_text())
    except ValueError as error:
        raise TrainingError(f"{path}: damaged; delete the folder and prepare again") from error
    for key, value in settings.items():
        if before.get(key) != value:
            raise TrainingError(
                f"{cache}: made with {key} = {before.get(key)}, now it is {value}; "
                f"use the same or another cache folder"
            )


Done = dict[str, tuple[Finished, list[CropRecord]]]
"""By the item's name."""


def _read_finished(cache: Path, jobs: Sequence[_Job]) -> tuple[Done, Done]:
    """What earlier runs finished of these items, told as the items are now, for their split may have changed;
    and what they finished of others.

    A line cut off by the end of a run counts for nothing, nor does an item whose crops are gone.
    """
    records: dict[str, dict[str, CropRecord]] = {}
    for line in _lines(cache, INDEX):
        try:
            record = parse_record(line)
        except (ValueError, TypeError, KeyError):
            continue
        records.setdefault(record.item, {})[record.file] = record
    by_name = {job.name: job for job in jobs}
    done: Done = {}
    unlisted: Done = {}
    for line in _lines(cache, ITEMS):
        try:
            finished = Finished(**json.loads(line))
        except (ValueError, TypeError):
            continue
        of_item = list(records.get(finished.item, {}).values())
        there = all(_is_there(cache, record) for record in of_item)
        if len(of_item) != finished.crops or not there or finished.may_change:
            continue
        if job := by_name.get(finished.item):
            done[finished.item] = finished, [dataclasses.replace(r, **_told_by(job)) for r in of_item]
        else:
            unlisted[finished.item] = finished, of_item
    return done, unlisted


def _lines(cache: Path, name: str) -> list[str]:
    """Of a file, and of what an earlier call put aside."""
    paths = (cache / f"{UNLISTED}{name}", cache / name)
    return [line for path in paths if path.exists() for line in path.read_text().splitlines()]


def _is_there(cache: Path, record: CropRecord) -> bool:
    path = cache / record.file
    return path.exists() and (not record.landmarks or path.with_suffix(".npy").exists())


def _told_by(job: _Job) -> dict[str, Any]:
    """Fields of a record that come from the item, not from its pictures."""
    item = job.item
    return {
        "label": item.label,
        "generator": item.generator,
        "source": item.source,
        "group": item.groups[0],
        "split": item.split,
        "original": job.original,
    }


def _put_aside(cache: Path, unlisted: Done) -> None:
    rows = unlisted.values()
    for name, content in ((INDEX, _index_of(rows)), (ITEMS, _items_of(rows))):
        path = cache / f"{UNLISTED}{name}"
        if content:
            write_whole(path, content)
        else:
            path.unlink(missing_ok=True)


def _write_all(cache: Path, jobs: Sequence[_Job], done: Done) -> None:
    """Index and items anew, in the order of the jobs."""
    rows = [done[job.name] for job in jobs if job.name in done]
    write_whole(cache / INDEX, _index_of(rows))
    write_whole(cache / ITEMS, _items_of(rows))


def _index_of(rows: Iterable[tuple[Finished, list[CropRecord]]]) -> bytes:
    return to_lines([record for _, records in rows for record in records]).encode()


def _items_of(rows: Iterable[tuple[Finished, list[CropRecord]]]) -> bytes:
    return to_lines([finished for finished, _ in rows]).encode()


def _report(jobs: Sequence[_Job], done: Done) -> PrepareReport:
    rows = [done[job.name] for job in jobs]
    records = [record for _, records in rows for record in records]
    counts: dict[str, dict[str, int]] = {}
    for record in records:
        of_split = counts.setdefault(record.split, {})
        of_split[record.generator] = of_split.get(record.generator, 0) + 1
    return PrepareReport(
        items=len(jobs),
        crops=len(records),
        frames_without_face=sum(finished.frames - finished.crops for finished, _ in rows),
        crops_without_landmarks=sum(not record.landmarks for record in records),
        by_split=counts,
        problems=tuple(finished for finished, _ in rows if finished.reason),
    )


@dataclass(frozen=True, slots=True)
class _Worker:
    """What a worker process has loaded."""

    cutter: FaceCutter
    reader: FrameReader
    cache: Path


_worker: _Worker | None = None


def _start_worker(config: Config, cache: Path) -> None:
    global _worker
    detector, scanner, verifier, landmarks = (
        load_network(
            config.classify.engines / f"{name}.json",
            backend=config.classify.backend,
            precision="f32",
            threads=1,
        )
        for name in (*config.faces.networks, LANDMARK_NETWORK)
    )
    cutter = FaceCutter(
        FaceDetector(detector, config.faces, scanner=scanner, verifier=verifier), LandmarkFinder(landmarks)
    )
    _worker = _Worker(cutter, FrameReader(config.decode), cache)
    multiprocessing.util.Finalize(_worker.reader, _worker.reader.close, exitpriority=1)


def _work(job: _Job) -> tuple[Finished, list[CropRecord]]:
    """Look at one item and write its crops."""
    assert _worker is not None
    item = job.item
    try:
        seen = _worker.reader.look(item, job.wanted, _worker.cutter.cut)
    except FileNotFoundError as error:
        return Finished(job.name, 0, 0, "missing", error.strerror or str(error)), []
    except OSError as error:
        return Finished(job.name, 0, 0, "unreadable", error.strerror or str(error)), []
    except DecodeError as error:
        return Finished(job.name, 0, 0, error.reason, str(error)), []
    records = []
    for frame, crop in enumerate(seen):
        if crop is not None:
            file = file_of(job.name, frame)
            write_crop(_worker.cache, file, crop)
            records.append(
                CropRecord(
                    file=file,
                    item=job.name,
                    frame=frame,
                    time_seconds=crop.time_seconds,
                    box=crop.box,
                    keypoints=crop.keypoints,
                    landmarks=crop.landmarks is not None,
                    square=crop.square,
                    **_told_by(job),
                )
            )
    if not records:
        return Finished(job.name, len(seen), 0, "no_face", f"no face in {len(seen)} frames"), []
    return Finished(job.name, len(seen), len(records)), records
