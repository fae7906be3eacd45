"""Messages on the wire: `VideoChunk` in; `ScoreUpdate`, `DeadLetter`, `VideoEvidence` out. Pure.

msgpack maps (or JSON for score updates); unknown keys are ignored, so that the format can grow. A chunk may
also be a raw media value: header `content-type: video/*`, optional headers `seq`, `start-seconds`, `last`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgpack
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from streamer.errors import MessageError

VERSION = 1

MAX_VIDEO_ID_BYTES = 512
MAX_SECONDS = 1e10
"""Of a position in a video: 300 years, so that Unix time may serve as one."""
MAX_EVIDENCE_CROPS = 16
MAX_EVIDENCE_BYTES = 1024 * 1024
"""Of a record of the evidence topic."""
JPEG_START, PNG_START = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"

Headers = Sequence[tuple[str, bytes | None]]
"""Of a Kafka record, which may repeat a name and may carry null."""


def _not_too_long(video_id: str) -> str:
    if (size := len(video_id.encode("utf-8", "surrogatepass"))) > MAX_VIDEO_ID_BYTES:
        raise ValueError(f"{size} bytes of UTF-8, at most {MAX_VIDEO_ID_BYTES} are allowed")
    return video_id


VideoId = Annotated[str, AfterValidator(_not_too_long)]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, use_attribute_docstrings=True)


class VideoChunk(_Message):
    """A piece of a video, decodable on its own (with `init` if given)."""

    v: Literal[1] = 1
    video_id: Annotated[VideoId, Field(min_length=1)]
    """Key of the record too: chunks of one video stay in one partition. At most 512 bytes of UTF-8."""
    seq: Annotated[int, Field(ge=0, lt=2**63)]
    """Position among the video's chunks; a number seen before is not counted twice."""
    data: bytes
    """A media segment: MPEG-TS, fMP4/CMAF, MP4, Matroska or WebM."""
    init: bytes | None = None
    """CMAF initialisation segment, if it is not part of `data`."""
    format: str | None = None
    """Hint, e.g. `mpegts`; only used in error messages, the content decides."""
    start_seconds: Annotated[float, Field(ge=0, le=MAX_SECONDS)] | None = None
    """Position of the segment in the video, seconds."""
    duration_seconds: Annotated[float, Field(gt=0, le=MAX_SECONDS)] | None = None
    """Length of the whole video, seconds, if it is known; absent for a live one."""
    captured_at_ms: Annotated[int, Field(ge=0)] | None = None
    """Unix time of capture, milliseconds."""
    last: bool = False
    """No chunk with a higher seq follows."""

    def __repr__(self) -> str:
        return f"VideoChunk({self.video_id!r}, seq={self.seq}, {len(self.data)} bytes)"

    __str__ = __repr__  # pydantic's shows the data


class TrackScore(_Message):
    """One person's face through the video."""

    track: int
    box: tuple[float, float, float, float]
    """Last seen at (x_min, y_min, x_max, y_max), pixels of a frame of `ScoreUpdate.frame_size`."""
    fake_score: Annotated[float, Field(ge=0, le=1)]
    """Mean over all predictions of this person so far."""
    window_score: Annotated[float, Field(ge=0, le=1)] | None = None
    """The same over the last `rolling.window_seconds`; null: not seen in them."""
    faces: int
    """Faces that `fake_score` rests on."""


class Alert(_Message):
    """Alert state of a video."""

    state: Literal["none", "raised"]
    changed: bool
    """Whether this update changed it."""
    since_seq: int | None
    """seq of the chunk that raised it."""
    threshold: float
    """Where it is raised, or, once raised, cleared."""
    score: Annotated[float, Field(ge=0, le=1)] | None = None
    """The watched number, see `alert.score` in config.toml; null while it rests on too few faces."""


class ShadowScore(_Message):
    """What another ensemble says of the same faces; no alert depends on it."""

    model_set: str
    """Hash over its members and calibration."""
    trained: bool
    fake_score: Annotated[float, Field(ge=0, le=1)]
    """As that of the update, over `faces`."""
    window_score: Annotated[float, Field(ge=0, le=1)] | None
    faces: int
    """Faces that it scored so far: fewer than the ensemble if it came later, or failed on some."""


class ScoreUpdate(_Message):
    """What is known of a video after one of its chunks."""

    v: Literal[1] = 1
    video_id: VideoId
    seq: int
    """Of the chunk that caused this update."""
    status: Literal["scored", "no_face", "undecodable", "duplicate", "final"]
    """`scored`; `no_face`: decodable, but no face in this chunk; `undecodable`: this chunk is a dead letter;
    `duplicate`: its seq had been counted; `final`: the video has ended, by `last` or by idleness."""
    fake_score: Annotated[float, Field(ge=0, le=1)] | None
    """Mean over all predictions so far; null while there is none."""
    window_score: Annotated[float, Field(ge=0, le=1)] | None
    """Mean over the last seconds of the video; null while they hold no prediction."""
    interval: tuple[float, float] | None
    """95 % interval of `fake_score` by spread over time; null while it cannot be told."""
    frames: int
    """Sampled frames so far."""
    faces: int
    """Faces scored so far."""
    unscored_faces: int = 0
    """Faces found and not scored so far, in frames with more than `faces.max_faces_per_frame`; at least so
    many."""
    models: dict[str, float]
    """Mean probability by member."""
    frame_size: tuple[int, int] | None = None
    """Width and height of the newest frame, pixels, upright and with square pixels; null: none yet."""
    tracks: list[TrackScore]
    suspect_track: int | None
    """Track with the highest score."""
    alert: Alert
    chunks: int
    """Chunks counted so far."""
    missing_chunks: int
    """seq numbers skipped so far."""
    undecodable_chunks: int
    start_seconds: float | None
    end_seconds: float | None
    """Of this chunk in the video; null if it could not be decoded."""
    latency_ms: dict[str, float]
    """By stage, and `total` from the record's timestamp to this update."""
    model_set: str
    """Hash over the ensemble's members and calibration."""
    trained: bool
    """False: the members have random weights and every score here is meaningless."""
    processed_at_ms: int
    last: bool
    error: str | None = None
    """Reason of an undecodable chunk."""
    sampling_rate: Annotated[float, Field(gt=0)] | None = None
    """Samples per second of video in force for this chunk: as configured, less by a cap per video or, where
    that is allowed, while its partition was behind; null if no chunk was counted for this update."""
    shadow: ShadowScore | None = None
    """Of the ensemble in `classify.shadow`; null if there is none, or it has scored nothing yet."""

    @property
    def now(self) -> float | None:
        """What the alert watches, or `window_score` while that rests on too few faces; not in the message."""
        return self.window_score if self.alert.score is None else self.alert.score


class DeadLetter(_Message):
    """A chunk that could not be processed: its original bytes, and why."""

    v: Literal[1] = 1
    value: bytes
    """The record's value, byte for byte."""
    key: bytes | None
    headers: list[tuple[str, bytes | None]]
    error: str
    """Text for people."""
    reason: str
    """Short word for machines, e.g. `decoder_crashed`."""
    stage: str
    topic: str
    partition: int
    offset: int
    video_id: str | None
    seq: int | None
    failed_at_ms: int


class EvidenceCrop(_Message):
    """One suspicious face in one frame."""

    track: Annotated[int, Field(ge=0, lt=2**63)]
    """Whose face it is, as in `ScoreUpdate.tracks`."""
    time_seconds: Annotated[float, Field(ge=0, le=2 * MAX_SECONDS)]
    """Of the frame in the video, seconds."""
    box: tuple[float, float, float, float]
    """(x_min, y_min, x_max, y_max) of the face, pixels of the frame; the crop shows more, on all sides."""
    fake_score: Annotated[float, Field(ge=0, le=1)]
    """Mean over the members."""
    models: dict[str, Annotated[float, Field(ge=0, le=1)]]
    """Probability by member."""
    jpeg: bytes
    """The crop, square, as the members saw it."""
    heat_map: bytes | None
    """Where the members see alteration: greyscale PNG of the whole crop, brighter is likelier; null if no
    member can tell."""

    def __repr__(self) -> str:
        return f"EvidenceCrop(track={self.track}, at {self.time_seconds:.2f} s: {self.fake_score:.2f})"

    __str__ = __repr__  # pydantic's shows the pictures


class VideoEvidence(_Message):
    """The most suspicious faces of one chunk, where there are any: pictures of people."""

    v: Literal[1] = 1
    video_id: VideoId
    seq: int
    """Of the chunk."""
    crops: Annotated[list[EvidenceCrop], Field(min_length=1, max_length=MAX_EVIDENCE_CROPS)]
    """Most suspicious first."""
    model_set: str
    """Hash over the ensemble's members and calibration, as in `ScoreUpdate`."""


def is_numbered(headers: Headers) -> bool:
    """Whether a chunk brings its seq; else that is its record's offset."""
    by_name = _by_name(headers)
    return not _is_raw_media(by_name) or "seq" in by_name


def decode_chunk(
    value: bytes | None, key: bytes | None, headers: Headers, *, offset: int, max_bytes: int
) -> VideoChunk:
    """Read a record of the chunks topic.

    offset: the record's, used as seq of a raw media value that brings none (it grows within a video, since
    a video stays in its partition). Raises MessageError, also where the key is not the video_id.
    """
    if not value:
        raise MessageError("empty", "the record has no value")
    if len(value) > max_bytes:
        raise MessageError(
            "too_many_bytes", f"the record has {len(value)} bytes, at most {max_bytes} allowed"
        )
    by_name = _by_name(headers)
    if _is_raw_media(by_name):
        fields = _raw_media_fields(value, key, by_name, offset)
    else:
        fields = _unpack_map(value, max_bytes)
    try:
        chunk = VideoChunk.model_validate(fields, strict=True)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'message'}: {e['msg']}" for e in error.errors()[:5]
        )
        reason = "wrong_version" if any(e["loc"] == ("v",) for e in error.errors()) else "invalid_message"
        raise MessageError(reason, f"not a video chunk: {wrong}") from error
    if key != chunk.video_id.encode("utf-8", "surrogatepass"):
        raise MessageError(
            "wrong_key",
            f"the record's key must be its video_id, {chunk.video_id!r:.100}, and is {key!r:.100}: under "
            f"several keys the chunks of a video would go to several partitions and be scored apart",
        )
    return chunk


def _by_name(headers: Headers) -> dict[str, bytes]:
    return {name.lower(): content for name, content in headers if content is not None}


def _content_type(by_name: Mapping[str, bytes]) -> str:
    return by_name.get("content-type", b"").decode("latin-1").lower()


def _is_raw_media(by_name: Mapping[str, bytes]) -> bool:
    return _content_type(by_name).startswith("video/")


def _raw_media_fields(
    value: bytes, key: bytes | None, by_name: Mapping[str, bytes], offset: int
) -> dict[str, Any]:
    if not key:
        raise MessageError("no_key", "a raw media record needs the video_id as its key")
    try:
        return {
            "video_id": key.decode("utf-8"),
            "seq": int(by_name["seq"]) if "seq" in by_name else offset,
            "data": value,
            "format": _content_type(by_name),
            "start_seconds": float(by_name["start-seconds"]) if "start-seconds" in by_name else None,
            "last": by_name.get("last", b"").lower() in (b"1", b"true"),
        }
    except ValueError as error:
        text = f"key or headers of a raw media record: {error!s:.300}"
        raise MessageError("invalid_message", text) from error


def _unpack_map(value: bytes, max_bytes: int) -> dict[str, Any]:
    """msgpack with hard limits: no nesting beyond the schema, no extension types, no huge maps."""
    try:
        fields = msgpack.unpackb(
            value,
            raw=False,
            strict_map_key=True,
            max_str_len=4096,
            max_bin_len=max_bytes,
            max_array_len=64,
            max_map_len=64,
            max_ext_len=0,
        )
    except Exception as error:
        raise MessageError("not_msgpack", f"not msgpack within the limits: {error!r:.300}") from error
    if not isinstance(fields, dict):
        raise MessageError("not_msgpack", f"a msgpack map was expected, got {type(fields).__name__}")
    return fields


def encode_chunk(chunk: VideoChunk) -> bytes:
    """msgpack of a chunk, absent fields left out."""
    packed: bytes = msgpack.packb(chunk.model_dump(exclude_none=True))
    return packed


def encode_score(update: ScoreUpdate, score_format: Literal["msgpack", "json"] = "msgpack") -> bytes:
    """Bytes of a score update."""
    if score_format == "json":
        return update.model_dump_json().encode()
    packed: bytes = msgpack.packb(update.model_dump())
    return packed


def decode_score(value: bytes) -> ScoreUpdate:
    """Read a score update, msgpack or JSON (told apart by the first byte). Raises MessageError."""
    try:
        if value[:1] == b"{":
            return ScoreUpdate.model_validate_json(value)
        return ScoreUpdate.model_validate(msgpack.unpackb(value))
    except Exception as error:
        raise MessageError("invalid_message", f"not a score update: {error!r:.300}") from error


def encode_dead_letter(letter: DeadLetter) -> bytes:
    """msgpack of a dead letter."""
    packed: bytes = msgpack.packb(letter.model_dump())
    return packed


def decode_dead_letter(value: bytes) -> DeadLetter:
    """Read a dead letter. Raises MessageError."""
    try:
        return DeadLetter.model_validate(msgpack.unpackb(value))
    except Exception as error:
        raise MessageError("invalid_message", f"not a dead letter: {error!r:.300}") from error


def encode_evidence(evidence: VideoEvidence) -> bytes:
    """msgpack of evidence."""
    packed: bytes = msgpack.packb(evidence.model_dump())
    return packed


def decode_evidence(value: bytes) -> VideoEvidence:
    """Read evidence; its pictures begin as JPEG and PNG do, and are not decoded. Raises MessageError."""
    if len(value) > MAX_EVIDENCE_BYTES:
        text = f"evidence of {len(value)} bytes, at most {MAX_EVIDENCE_BYTES} allowed"
        raise MessageError("too_many_bytes", text)
    try:
        evidence = VideoEvidence.model_validate(msgpack.unpackb(value))
    except Exception as error:
        raise MessageError("invalid_message", f"not evidence: {error!r:.300}") from error
    for crop in evidence.crops:
        if not crop.jpeg.startswith(JPEG_START):
            raise MessageError("invalid_message", "not evidence: a crop is no JPEG")
        if crop.heat_map is not None and not crop.heat_map.startswith(PNG_START):
            raise MessageError("invalid_message", "not evidence: a heat map is no PNG")
    return evidence
