"""Messages on the wire: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.errors import MessageError
from streamer.messages import (
    JPEG_START,
    MAX_EVIDENCE_BYTES,
    MAX_VIDEO_ID_BYTES,
    PNG_START,
    Alert,
    DeadLetter,
    EvidenceCrop,
    ScoreUpdate,
    TrackScore,
    VideoChunk,
    VideoEvidence,
    decode_chunk,
    decode_dead_letter,
    decode_evidence,
    decode_score,
    encode_chunk,
    encode_dead_letter,
    encode_evidence,
    encode_score,
)

MAX_BYTES = 1 << 20

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
video_ids = text.filter(bool)
seconds = st.floats(0, 1e9)
probabilities = st.floats(0, 1)
numbers = st.integers(0, 2**63 - 1)
counts = st.integers(0, 10**9)

chunks = st.builds(
    VideoChunk,
    video_id=video_ids,
    seq=numbers,
    data=st.binary(max_size=200),
    init=st.none() | st.binary(max_size=50),
    format=st.none() | text,
    start_seconds=st.none() | seconds,
    duration_seconds=st.none() | st.floats(1e-3, 1e9),
    captured_at_ms=st.none() | numbers,
    last=st.booleans(),
)
tracks = st.builds(
    TrackScore,
    track=counts,
    box=st.tuples(*[st.floats(-1e6, 1e6)] * 4),
    fake_score=probabilities,
    faces=counts,
)
alerts = st.builds(
    Alert,
    state=st.sampled_from(["none", "raised"]),
    changed=st.booleans(),
    since_seq=st.none() | numbers,
    threshold=probabilities,
)
updates = st.builds(
    ScoreUpdate,
    video_id=video_ids,
    seq=numbers,
    status=st.sampled_from(["scored", "no_face", "undecodable", "duplicate", "final"]),
    fake_score=st.none() | probabilities,
    window_score=st.none() | probabilities,
    interval=st.none() | st.tuples(probabilities, probabilities),
    frames=counts,
    faces=counts,
    models=st.dictionaries(text, probabilities, max_size=3),
    tracks=st.lists(tracks, max_size=3),
    suspect_track=st.none() | counts,
    alert=alerts,
    chunks=counts,
    missing_chunks=counts,
    undecodable_chunks=counts,
    start_seconds=st.none() | seconds,
    end_seconds=st.none() | seconds,
    latency_ms=st.dictionaries(text, seconds, max_size=3),
    model_set=text,
    trained=st.booleans(),
    processed_at_ms=numbers,
    last=st.booleans(),
    error=st.none() | text,
)
letters = st.builds(
    DeadLetter,
    value=st.binary(max_size=100),
    key=st.none() | st.binary(max_size=20),
    headers=st.lists(st.tuples(text, st.none() | st.binary(max_size=20)), max_size=3),
    error=text,
    reason=text,
    stage=text,
    topic=text,
    partition=counts,
    offset=numbers,
    video_id=st.none() | text,
    seq=st.none() | numbers,
    failed_at_ms=numbers,
)


evidence_crops = st.builds(
    EvidenceCrop,
    track=numbers,
    time_seconds=st.floats(0, 1e10),
    box=st.tuples(*[seconds] * 4),
    fake_score=probabilities,
    models=st.dictionaries(text, probabilities, max_size=3),
    jpeg=st.binary(max_size=20).map(JPEG_START.__add__),
    heat_map=st.none() | st.binary(max_size=20).map(PNG_START.__add__),
)
evidences = st.builds(
    VideoEvidence,
    video_id=video_ids,
    seq=numbers,
    crops=st.lists(evidence_crops, min_size=1, max_size=3),
    model_set=text,
)


def read(
    value: bytes | None,
    *,
    key: bytes | None = b"v",
    headers: Any = (),
    offset: int = 7,
    limit: int = MAX_BYTES,
) -> VideoChunk:
    return decode_chunk(value, key, headers, offset=offset, max_bytes=limit)


def packed(**fields: Any) -> bytes:
    """A chunk's map with some fields changed."""
    value: bytes = msgpack.packb({"v": 1, "video_id": "v", "seq": 0, "data": b"x"} | fields)
    return value


# ------------------------------------------------------------------ round trips


@given(chunks)
def test_chunks_come_back(chunk: VideoChunk) -> None:
    assert read(encode_chunk(chunk), key=chunk.video_id.encode()) == chunk


@given(updates, st.sampled_from(["msgpack", "json"]))
def test_scores_come_back(update: ScoreUpdate, score_format: Any) -> None:
    assert decode_score(encode_score(update, score_format)) == update


@given(letters)
def test_dead_letters_come_back(letter: DeadLetter) -> None:
    assert decode_dead_letter(encode_dead_letter(letter)) == letter


@given(evidences)
def test_evidence_comes_back(evidence: VideoEvidence) -> None:
    assert decode_evidence(encode_evidence(evidence)) == evidence


@given(evidences, st.binary(max_size=20), st.binary(max_size=20))
def test_pictures_of_other_formats_are_refused(evidence: VideoEvidence, crop: bytes, heat: bytes) -> None:
    first = evidence.crops[0]
    for change in ({"jpeg": crop}, {"heat_map": heat}):
        crops = [first.model_copy(update=change), *evidence.crops[1:]]
        with pytest.raises(MessageError, match=r"is no (JPEG|PNG)"):
            decode_evidence(encode_evidence(evidence.model_copy(update={"crops": crops})))


@given(updates, evidences)
def test_a_name_that_no_video_has_is_refused(update: ScoreUpdate, evidence: VideoEvidence) -> None:
    name = {"video_id": "x" * (MAX_VIDEO_ID_BYTES + 1)}
    with pytest.raises(MessageError, match="513 bytes of UTF-8"):
        decode_score(encode_score(update.model_copy(update=name)))
    with pytest.raises(MessageError, match="513 bytes of UTF-8"):
        decode_evidence(encode_evidence(evidence.model_copy(update=name)))


def test_too_much_evidence_is_refused() -> None:
    with pytest.raises(MessageError, match="at most 1048576 allowed"):
        decode_evidence(bytes(MAX_EVIDENCE_BYTES + 1))


@given(st.binary(max_size=400))
def test_any_bytes_give_evidence_or_a_message_error(value: bytes) -> None:
    with contextlib.suppress(MessageError):
        decode_evidence(value)


def test_json_scores_are_one_line_of_plain_json() -> None:
    update = updates.map(lambda u: u.model_copy(update={"video_id": "a\nb"}))

    @given(update)
    def check(u: ScoreUpdate) -> None:
        value = encode_score(u, "json")
        assert b"\n" not in value
        assert json.loads(value)["video_id"] == "a\nb"

    check()


@given(chunks, st.dictionaries(text.map("x-".__add__), st.integers(0, 9) | text, max_size=3))
def test_unknown_keys_are_ignored(chunk: VideoChunk, more: dict[str, Any]) -> None:
    value = msgpack.packb(chunk.model_dump(exclude_none=True) | more)
    assert read(value, key=chunk.video_id.encode()) == chunk


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("key", [None, b"", b"w", b"v "])
def test_a_chunk_under_another_key_is_refused(key: bytes | None) -> None:
    with pytest.raises(MessageError, match="the record's key must be its video_id, 'v'") as caught:
        read(packed(), key=key)
    assert caught.value.reason == "wrong_key"


@given(st.binary(max_size=400))
def test_any_bytes_give_a_chunk_or_a_message_error(value: bytes) -> None:
    with contextlib.suppress(MessageError):
        assert isinstance(read(value), VideoChunk)


@given(st.binary(max_size=400))
def test_any_bytes_give_a_score_or_a_message_error(value: bytes) -> None:
    with pytest.raises(MessageError):
        decode_score(value)
    with pytest.raises(MessageError):
        decode_dead_letter(value)


@given(chunks, st.data())
def test_truncated_chunks_are_refused(chunk: VideoChunk, data: st.DataObject) -> None:
    value = encode_chunk(chunk)
    with pytest.raises(MessageError):
        read(value[: data.draw(st.integers(0, len(value) - 1))])


@pytest.mark.parametrize(
    ("value", "reason", "said"),
    [
        (None, "empty", "no value"),
        (b"", "empty", "no value"),
        (b"hello", "not_msgpack", "msgpack"),
        (b"\x01", "not_msgpack", "map was expected, got int"),
        (b"\x1f\x8b\x08", "not_msgpack", "msgpack"),
        (packed(v=2), "wrong_version", "v:"),
        (packed(video_id=""), "invalid_message", "video_id"),
        (packed(video_id="é" * (MAX_VIDEO_ID_BYTES // 2 + 1)), "invalid_message", "514 bytes"),
        (packed(video_id=5), "invalid_message", "video_id"),
        (packed(seq=-1), "invalid_message", "seq"),
        (packed(seq=2**63), "invalid_message", "seq"),
        (packed(seq=1.0), "invalid_message", "seq"),
        (packed(seq="1"), "invalid_message", "seq"),
        (packed(data="text"), "invalid_message", "data"),
        (packed(start_seconds=-1.0), "invalid_message", "start_seconds"),
        (packed(start_seconds=float("nan")), "invalid_message", "start_seconds"),
        (packed(start_seconds=float("inf")), "invalid_message", "start_seconds"),
        (packed(duration_seconds=0.0), "invalid_message", "duration_seconds"),
        (packed(last="yes"), "invalid_message", "last"),
        (msgpack.packb({"v": 1, "video_id": "v", "seq": 0}), "invalid_message", "data"),
        (packed() + b"\x00", "not_msgpack", "ExtraData"),
    ],
)
def test_refused_with_a_reason(value: bytes | None, reason: str, said: str) -> None:
    with pytest.raises(MessageError) as caught:
        read(value)
    assert caught.value.reason == reason
    assert said in str(caught.value)


def test_too_many_bytes() -> None:
    with pytest.raises(MessageError) as caught:
        read(packed(data=bytes(1000)), limit=999)
    assert caught.value.reason == "too_many_bytes"


BOMBS = {
    "deep arrays": b"\x91" * 500_000 + b"\x00",
    "deep maps": b"\x81\xa1a" * 300_000 + b"\x00",
    "array of 2^32-1": b"\xdd\xff\xff\xff\xff",
    "map of 2^32-1": b"\xdf\xff\xff\xff\xff",
    "bin of 2^32-1": b"\xc6\xff\xff\xff\xff",
    "str of 2^32-1": b"\xdb\xff\xff\xff\xff",
    "ext of 2^32-1": b"\xc9\xff\xff\xff\xff\x01",
    "ext": msgpack.packb(msgpack.ExtType(4, b"x")),
    "timestamp": packed(seq=msgpack.Timestamp(1)),
    "nested arrays that multiply": packed(x=[[[0] * 64] * 64] * 64),
    "many keys": msgpack.packb({f"k{i}": 0 for i in range(65)}),
    "binary keys": b"\x81\xc4\x01a\x00",
    "long string": packed(format="x" * 4097),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused_within_little_memory(bomb: str) -> None:
    tracemalloc.start()
    try:
        if bomb == "nested arrays that multiply":  # within the limits of msgpack: bounded by the bytes sent
            read(BOMBS[bomb])
        else:
            with pytest.raises(MessageError) as caught:
                read(BOMBS[bomb])
            assert len(str(caught.value)) < 1000
        assert tracemalloc.get_traced_memory()[1] < 16 * MAX_BYTES
    finally:
        tracemalloc.stop()


JSON_BOMBS = {
    "json, deep": b'{"a":' * 300_000 + b"0" + b"}" * 300_000,
    "json, deep arrays": b'{"v":' + b"[" * 1_000_000,
    "json, a long number": b'{"v":' + b"9" * 1_000_000 + b"}",
    "json, many keys": json.dumps({f"k{i}": 0 for i in range(5_000)}).encode(),
    "json, lone surrogate": b'{"video_id":"\\ud800"}',
}


@pytest.mark.parametrize("bomb", BOMBS | JSON_BOMBS)
def test_bombs_in_other_topics_are_refused(bomb: str) -> None:
    """What `watch` and the readers of dead letters meet, if others may write to those topics."""
    for read_back in (decode_score, decode_dead_letter, decode_evidence):
        with pytest.raises(MessageError) as caught:
            read_back((BOMBS | JSON_BOMBS)[bomb])
        assert len(str(caught.value)) < 1000


# ------------------------------------------------------------------ raw media


def test_raw_media_takes_id_from_key_and_seq_from_offset() -> None:
    chunk = read(b"media", key="cam-é".encode(), headers=[("Content-Type", b"video/mp2t")], offset=41)
    assert chunk == VideoChunk(video_id="cam-é", seq=41, data=b"media", format="video/mp2t")


def test_raw_media_headers() -> None:
    headers = [
        ("content-type", b"Video/MP4; codecs=avc1"),
        ("SEQ", b"3"),
        ("start-seconds", b"1.5"),
        ("last", b"TRUE"),
        ("unknown", b"\xff"),
    ]
    chunk = read(b"media", headers=headers)
    assert (chunk.seq, chunk.start_seconds, chunk.last) == (3, 1.5, True)


def test_raw_media_is_not_unpacked() -> None:
    """A raw value that happens to be msgpack stays media."""
    assert read(packed(), headers=[("content-type", b"video/webm")]).data == packed()


@pytest.mark.parametrize(
    ("key", "headers", "reason"),
    [
        (None, [], "no_key"),
        (b"", [], "no_key"),
        (b"\xff", [], "invalid_message"),
        (b"v", [("seq", b"x")], "invalid_message"),
        (b"v", [("seq", b"-1")], "invalid_message"),
        (b"v", [("seq", b"9" * 5000)], "invalid_message"),
        (b"v", [("start-seconds", b"nan")], "invalid_message"),
        (b"v", [("start-seconds", b"soon")], "invalid_message"),
        (b"v" * 513, [], "invalid_message"),
    ],
)
def test_raw_media_refused(key: bytes | None, headers: list[tuple[str, bytes]], reason: str) -> None:
    with pytest.raises(MessageError) as caught:
        read(b"media", key=key, headers=[("content-type", b"video/mp4"), *headers])
    assert caught.value.reason == reason


def test_other_content_types_are_msgpack() -> None:
    assert read(packed(), headers=[("content-type", b"application/msgpack")]).data == b"x"


def test_header_without_value() -> None:
    """Kafka allows headers with a null value; they count as absent."""
    assert read(packed(), headers=[("content-type", None)]).data == b"x"
    assert read(b"m", headers=[("content-type", b"video/mp4"), ("seq", None), ("last", None)]).seq == 7


def test_repr_never_shows_media() -> None:
    chunk = VideoChunk(video_id="a", seq=1, data=b"secret")
    assert repr(chunk) == str(chunk) == "VideoChunk('a', seq=1, 6 bytes)"
