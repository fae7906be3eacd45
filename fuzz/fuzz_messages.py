"""Messages as hostile as a fuzzer can make them: whatever the bytes, a chunk or a MessageError.

    pip install atheris
    python fuzz/fuzz_messages.py -runs=1000000

Also that what is accepted can be counted, published and written to the changelog: no number, name or time in
a message may break what comes after.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["streamer", "msgpack"]):
    import msgpack

    from streamer.config import AlertConfig, FacesConfig, RollingConfig
    from streamer.errors import MessageError
    from streamer.messages import VideoChunk, decode_chunk, encode_score
    from streamer.rolling import Arrival, EnsembleInfo, RollingScores
    from streamer.types import ChunkPrediction, FacePrediction, FramePrediction

MAX_BYTES = 1 << 20
FRAMES = (FramePrediction(0.5, (FacePrediction((1.0, 2.0, 30.0, 40.0), (0.25,)),)),)
KEYS = tuple(VideoChunk.model_fields)


def value_of(data: atheris.FuzzedDataProvider) -> object:
    """Something that may stand for a field."""
    kind = data.ConsumeIntInRange(0, 8)
    makers = (
        lambda: data.ConsumeInt(8),
        lambda: data.ConsumeIntInRange(0, 1 << 62),
        data.ConsumeFloat,
        lambda: data.ConsumeUnicode(40),
        lambda: data.ConsumeBytes(40),
        data.ConsumeBool,
        lambda: None,
        lambda: [data.ConsumeInt(2)] * data.ConsumeIntInRange(0, 70),
        lambda: {data.ConsumeUnicode(4): data.ConsumeInt(2)},
    )
    return makers[kind]()


def a_value(data: atheris.FuzzedDataProvider) -> bytes:
    """Bytes, a map of odd values, or a chunk in which some fields are odd."""
    kind = data.ConsumeIntInRange(0, 2)
    if kind == 1:
        return data.ConsumeBytes(data.ConsumeIntInRange(0, 300))
    fields: dict[str, object] = {"v": 1, "video_id": "v", "seq": 1, "data": b"x"} if kind == 0 else {}
    for _ in range(data.ConsumeIntInRange(0, 5)):
        fields[KEYS[data.ConsumeIntInRange(0, len(KEYS) - 1)]] = value_of(data)
    try:
        packed: bytes = msgpack.packb(fields, unicode_errors="surrogatepass")
    except (OverflowError, ValueError):
        return b""
    return packed


def one_input(raw: bytes) -> None:
    """One message through all that is done with it short of decoding the media."""
    data = atheris.FuzzedDataProvider(raw)
    key = data.ConsumeBytes(20) if data.ConsumeBool() else None
    names = ("content-type", "seq", "start-seconds", "last", "other")
    headers = [
        (
            names[data.ConsumeIntInRange(0, 4)],
            data.PickValueInList([b"video/mp2t", data.ConsumeBytes(12), None]),
        )
        for _ in range(data.ConsumeIntInRange(0, 4))
    ]
    value = a_value(data)
    try:
        chunk = decode_chunk(value, key, headers, offset=7, max_bytes=MAX_BYTES)
    except MessageError:
        return
    rolling = RollingScores(
        RollingConfig(), AlertConfig(), FacesConfig(), EnsembleInfo(("one",), "set", trained=True)
    )
    prediction = ChunkPrediction(chunk.video_id, chunk.seq, chunk.start_seconds, 1.0, FRAMES)
    update = rolling.apply(prediction, last=chunk.last, arrival=Arrival(0.0, 0, 7))
    encode_score(update)
    encode_score(update, "json")
    again = RollingScores(
        RollingConfig(), AlertConfig(), FacesConfig(), EnsembleInfo(("one",), "set", trained=True)
    )
    again.restore({k: v for k, v in rolling.take_changed().items() if v}, now_seconds=0.0)
    repeated = again.apply(prediction, last=False, arrival=Arrival(0.0, 0, 8))
    assert repeated.status == "duplicate", repeated
    assert again.unusable_states == 0


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
