"""What the outer structure alone tells; test_decode does the same with FFmpeg behind it."""

from __future__ import annotations

import functools

import hostile
import media
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.errors import DecodeError
from streamer.media_structure import check_structure

encode = functools.cache(media.encode)


def refused(data: bytes, *, after_init: bool = False) -> str:
    with pytest.raises(DecodeError) as caught:
        check_structure(data, after_init=after_init)
    return caught.value.reason


@pytest.mark.parametrize("container", ["mpegts", "mp4", "matroska"])
def test_whole_clips(container: str) -> None:
    assert check_structure(encode(container), after_init=False) == container


@given(st.data())
@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_every_cut_is_seen(container: str, data: st.DataObject) -> None:
    clip = encode(container)
    cut = data.draw(st.integers(1, len(clip) - 1))
    assert refused(clip[:cut]) in ("damaged", "not_media", "no_init")


def test_matroska_cut_right_behind_its_head() -> None:
    clip = encode("matroska")
    assert refused(clip[: clip.index(b"\x18\x53\x80\x67")]) == "damaged"


@given(st.data())
def test_every_cut_but_those_between_mpegts_packets_is_seen(data: st.DataObject) -> None:
    clip = encode("mpegts")
    cut = data.draw(st.integers(2, len(clip) - 1).filter(lambda size: size % 188))
    assert refused(clip[:cut]) in ("damaged", "not_media")


@given(st.binary(min_size=1, max_size=2000), st.sampled_from(["", "mpegts", "mp4", "matroska"]))
def test_any_bytes_end_in_an_answer(noise: bytes, container: str) -> None:
    head = encode(container)[:60] if container else b""
    try:
        check_structure(head + noise, after_init=False)
    except DecodeError as error:
        assert error.reason in DecodeError.REASONS  # noqa: PT017 - most are refused, not all must be


@given(st.data())
@pytest.mark.parametrize("container", ["mpegts", "mp4", "matroska"])
def test_any_change_ends_in_an_answer(container: str, data: st.DataObject) -> None:
    clip = bytearray(encode(container))
    for position in data.draw(st.lists(st.integers(0, len(clip) - 1), min_size=1, max_size=5)):
        clip[position] = data.draw(st.integers(0, 255))
    try:
        check_structure(bytes(clip), after_init=False)
    except DecodeError as error:
        assert error.reason in DecodeError.REASONS  # noqa: PT017 - as above


def test_matroska_segment_announces_the_whole_file_in_a_dash_init_segment() -> None:
    clip = encode("matroska")
    first_cluster = clip.index(b"\x1f\x43\xb6\x75")
    cues = clip.rindex(b"\x1c\x53\xbb\x6b")
    parts = clip[:first_cluster] + clip[first_cluster:cues]  # without what follows the clusters
    assert check_structure(parts, after_init=True) == "matroska"
    assert refused(parts) == "damaged"


def test_cmaf_needs_its_init_segment() -> None:
    init, segments = media.fragmented()
    assert check_structure(init + segments[1], after_init=True) == "mp4"
    assert refused(segments[1]) == "no_init"


def test_mp4_box_with_64_bit_size_and_one_to_the_end() -> None:
    clip = encode("mp4")
    boxes = media.mp4_boxes(clip)
    parts = {kind: clip[at : at + size] for at, kind, size in boxes}
    body = parts[b"mdat"][8:]
    head = parts[b"ftyp"] + parts[b"moov"]
    assert check_structure(head + b"\0\0\0\0mdat" + body, after_init=False) == "mp4"
    large = b"\0\0\0\x01mdat" + (16 + len(body)).to_bytes(8, "big") + body
    assert check_structure(head + large, after_init=False) == "mp4"
    assert refused(head + large[:-1]) == "damaged"
    assert refused(head + b"\0\0\0\x08free\0\0\0\0\xff\xfe\xfd\xfc" + body) == "damaged"


def test_what_would_unpack_or_multiply() -> None:
    bombs = dict(hostile.bombs())
    assert refused(bombs["mp4 with 1 GiB packed into moov"]) == "unsupported_format"
    assert refused(bombs["mpegts of 8000 programs"]) == "unsupported_format"
    with_others = hostile.programs(100) + encode("mpegts")  # a station's whole multiplex
    assert check_structure(with_others, after_init=False) == "mpegts"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x47", "damaged"),
        (b"\0", "not_media"),
        (b"\x1a\x45\xdf\xa3", "damaged"),
        (b"\x1f\x8b\x08" + bytes(100), "not_media"),
        (b"GIF89a" + bytes(100), "unsupported_format"),
        (b"\0\0\0\x01\x67" + bytes(100), "unsupported_format"),
    ],
)
def test_small_or_foreign(data: bytes, reason: str) -> None:
    assert refused(data) == reason
