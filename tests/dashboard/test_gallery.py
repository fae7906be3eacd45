"""Which pictures are kept of which video, and for how long."""

from __future__ import annotations

from typing import Any

import pytest
from scenes import evidence

from streamer.dashboard import gallery as gallery_module
from streamer.dashboard.gallery import CROPS_PER_VIDEO, OVERHEAD_BYTES, Gallery
from streamer.messages import VideoEvidence


def scores(gallery: Gallery, video_id: str = "v") -> list[float]:
    return [shown["score"] for shown in gallery.of(video_id)]


def of(seq: int, *crop_scores: float, video_id: str = "v", **more: Any) -> VideoEvidence:
    return evidence(video_id, seq, crop_scores, **more)


def test_the_most_suspicious_are_kept_most_suspicious_first() -> None:
    gallery = Gallery()
    all_scores = []
    for seq in range(20):
        two = ((seq * 7 % 20) / 20, (seq * 7 % 20) / 40)
        all_scores += two
        gallery.add(of(seq, *two), 1)
    assert scores(gallery) == sorted(all_scores, reverse=True)[:CROPS_PER_VIDEO]
    assert len(gallery._by_key) == CROPS_PER_VIDEO


def test_pictures_are_given_out_by_their_key() -> None:
    gallery = Gallery()
    gallery.add(of(3, 0.9, jpeg=b"\xff\xd8\xffone", heat=b"\x89PNG\r\n\x1a\nheat"), 1)
    gallery.add(of(4, 0.8, jpeg=b"\xff\xd8\xfftwo"), 1)
    one, two = gallery.of("v")
    assert gallery.picture(one["key"], "crop") == b"\xff\xd8\xffone"
    assert gallery.picture(one["key"], "heat") == b"\x89PNG\r\n\x1a\nheat"
    assert gallery.picture(two["key"], "heat") is None
    assert (one["heat"], two["heat"]) == (True, False)
    assert gallery.picture("", "crop") is gallery.picture("0" * 32, "crop") is None
    assert one["key"] != two["key"]
    assert len(one["key"]) == 32


def test_what_is_read_again_is_shown_once() -> None:
    gallery = Gallery()
    for _ in range(2):
        gallery.add(of(3, 0.9, 0.8), 1)
        gallery.add(of(4, 0.9), 1)
    assert scores(gallery) == [0.9, 0.9, 0.8]


def test_bytes_are_bounded_and_the_longest_silent_video_goes_first() -> None:
    size = 10_000
    rest = OVERHEAD_BYTES + sum(map(len, of(0, 0.9).crops[0].models))
    gallery = Gallery(max_bytes=10 * size)
    for n in range(50):
        gallery.add(of(n, 0.9, video_id=f"v{n % 20}", jpeg=b"\xff\xd8\xff".ljust(size - rest)), n)
        assert gallery.bytes == size * sum(len(scores(gallery, f"v{m}")) for m in range(20)) <= 10 * size
    assert [m for m in range(20) if scores(gallery, f"v{m}")] == list(range(10))
    assert len(gallery._by_key) == 10


def test_one_video_beyond_the_bound_leaves_nothing() -> None:
    gallery = Gallery(max_bytes=10)
    gallery.add(of(1, 0.9, jpeg=b"\xff\xd8\xff" + bytes(20)), 1)
    assert (gallery.of("v"), gallery.bytes, gallery.version_of("v")) == ([], 0, 0)


def test_old_ones_go_but_for_those_of_videos_still_shown() -> None:
    gallery = Gallery()
    for n, name in enumerate(("old", "kept", "new")):
        gallery.add(of(1, 0.9, video_id=name), n)
    gallery.expire(2, keep={"kept"})
    assert (scores(gallery, "old"), scores(gallery, "kept"), scores(gallery, "new")) == ([], [0.9], [0.9])
    gallery.forget("kept")
    gallery.forget("kept")
    assert scores(gallery, "kept") == []
    assert len(gallery._by_key) == 1


def test_every_change_is_a_new_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery_module, "CROPS_PER_VIDEO", 1)
    gallery = Gallery()
    seen = [gallery.version_of("v")]
    for seq in range(3):
        gallery.add(of(seq, 0.9), 1)
        seen.append(gallery.version_of("v"))
    gallery.forget("v")
    gallery.add(of(9, 0.9), 1)
    assert len({*seen, gallery.version_of("v")}) == 5
