"""Writes deploy/asyncapi.yaml, the AsyncAPI 3 document of our topics, from the message models themselves.

    python scripts/make_asyncapi.py

A test fails when the file is not what this prints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import streamer
from streamer.config import KafkaConfig
from streamer.messages import (
    MAX_VIDEO_ID_BYTES,
    Alert,
    DeadLetter,
    EvidenceCrop,
    ScoreUpdate,
    TrackScore,
    VideoChunk,
    VideoEvidence,
)

OUTPUT = Path(__file__).parents[1] / "deploy" / "asyncapi.yaml"
HEADER = "# Written by scripts/make_asyncapi.py from streamer/messages.py; do not edit.\n"

DESCRIPTION = """\
Chunks of video in, rolling fake scores out. One record per chunk; the key of every record is the video_id, so
that a video stays in one partition and its chunks in order. Payloads are msgpack maps, described here as JSON
Schema: `format: binary` is msgpack `bin`. Unknown keys are ignored on both sides, so the format can grow; `v`
changes only when an old reader would misread a message. Score updates can be JSON (`kafka.score_format`).
"""

KEY = {
    "type": "string",
    "minLength": 1,
    "description": f"video_id, UTF-8, at most {MAX_VIDEO_ID_BYTES} bytes",
}
TRACE_HEADERS = {
    "traceparent": {
        "type": "string",
        "pattern": "^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}",
        "description": "W3C Trace Context; a chunk's trace goes on to its score update where `tracing` is on",
    },
    "tracestate": {"type": "string"},
}
TRACED = {"type": "object", "properties": TRACE_HEADERS}
RAW_HEADERS = {
    "type": "object",
    "required": ["content-type"],
    "properties": {
        "content-type": {"type": "string", "pattern": "^video/", "description": "unlike a msgpack chunk's"},
        "seq": {"type": "string", "pattern": "^[0-9]+$", "description": "absent: the record's offset"},
        "start-seconds": {"type": "string", "description": "position in the video, decimal seconds"},
        "last": {"type": "string", "enum": ["0", "1", "false", "true"]},
        **TRACE_HEADERS,
    },
}

CHUNK = VideoChunk(
    video_id="camera-7",
    seq=12,
    data=b"(a media segment)",
    format="mpegts",
    start_seconds=24.0,
    captured_at_ms=1_760_000_000_000,
)
SCORED = ScoreUpdate(
    video_id="camera-7",
    seq=12,
    status="scored",
    fake_score=0.91,
    window_score=0.94,
    interval=(0.88, 0.94),
    frames=104,
    faces=101,
    models={"resnext50_32x4d": 0.93, "densenet121": 0.89},
    tracks=[TrackScore(track=0, box=(812.0, 204.5, 1010.0, 431.0), fake_score=0.91, faces=101)],
    suspect_track=0,
    alert=Alert(state="raised", changed=False, since_seq=4, threshold=0.6),
    chunks=13,
    missing_chunks=0,
    undecodable_chunks=0,
    start_seconds=24.0,
    end_seconds=26.0,
    latency_ms={"decode": 61.0, "detect": 48.2, "classify": 210.7, "total": 355.1},
    model_set="4f1c9a0b7d2e",
    trained=True,
    processed_at_ms=1_760_000_000_400,
    last=False,
    sampling_rate=4.0,
)
NO_FACE_YET = SCORED.model_copy(
    update={
        "video_id": "camera-8",
        "seq": 0,
        "status": "no_face",
        "fake_score": None,
        "window_score": None,
        "interval": None,
        "frames": 8,
        "faces": 0,
        "models": {},
        "tracks": [],
        "suspect_track": None,
        "alert": Alert(state="none", changed=False, since_seq=None, threshold=0.8),
        "chunks": 1,
        "start_seconds": 0.0,
        "end_seconds": 2.0,
    }
)
LETTER = DeadLetter(
    value=b"(the original bytes)",
    key=b"camera-7",
    headers=[("content-type", b"video/mp4")],
    error="the decoder died of signal 11",
    reason="decoder_crashed",
    stage="decode",
    topic="video-chunks",
    partition=3,
    offset=1_042,
    video_id="camera-7",
    seq=13,
    failed_at_ms=1_760_000_002_400,
)
EVIDENCE = VideoEvidence(
    video_id="camera-7",
    seq=12,
    crops=[
        EvidenceCrop(
            track=0,
            time_seconds=24.75,
            box=(812.0, 204.5, 1010.0, 431.0),
            fake_score=0.95,
            models={"resnext50_32x4d": 0.97, "densenet121": 0.93},
            jpeg=b"(a JPEG)",
            heat_map=b"(a PNG)",
        )
    ],
    model_set="4f1c9a0b7d2e",
)


def schemas() -> dict[str, Any]:
    """JSON Schemas (draft 7, as AsyncAPI reads them) of all message models."""
    models: list[type[BaseModel]] = [VideoChunk, ScoreUpdate, DeadLetter, VideoEvidence]
    _, top = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    converted: dict[str, Any] = _draft_7(top["$defs"])
    return converted


def _draft_7(node: Any) -> Any:
    """Tuples are `prefixItems` in JSON Schema 2020-12, which pydantic writes, and `items` in draft 7."""
    if isinstance(node, dict):
        return {"items" if key == "prefixItems" else key: _draft_7(value) for key, value in node.items()}
    return [_draft_7(value) for value in node] if isinstance(node, list) else node


def _message(model: type[BaseModel], title: str, *examples: BaseModel) -> dict[str, Any]:
    return {
        "name": model.__name__,
        "title": title,
        "contentType": "application/msgpack",
        **({"headers": TRACED} if model in (VideoChunk, ScoreUpdate) else {}),
        "payload": {"$ref": f"#/components/schemas/{model.__name__}"},
        "bindings": {"kafka": {"key": KEY, "bindingVersion": "0.5.0"}},
        "examples": [{"payload": example.model_dump(mode="json", exclude_none=True)} for example in examples]
        if model is VideoChunk
        else [{"payload": example.model_dump(mode="json")} for example in examples],
    }


def _channel(address: str, description: str, *messages: str) -> dict[str, Any]:
    return {
        "address": address,
        "description": description,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
    }


def _operation(action: str, channel: str, summary: str, *messages: str) -> dict[str, Any]:
    return {
        "action": action,
        "summary": summary,
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in messages],
    }


def document() -> dict[str, Any]:
    """The whole document."""
    kafka = KafkaConfig()
    raw_media = {
        "name": "RawMedia",
        "title": "A chunk as bare media, for producers without our library (kcat, Kafka Connect, GStreamer)",
        "contentType": "video/mp2t",
        "headers": RAW_HEADERS,
        "payload": {"type": "string", "format": "binary"},
        "bindings": {"kafka": {"key": KEY, "bindingVersion": "0.5.0"}},
        "examples": [{"headers": {"content-type": "video/mp2t", "seq": "12"}, "payload": "(media)"}],
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "streamer",
            "version": streamer.__version__,
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/msgpack",
        "servers": {
            "kafka": {
                "host": "{bootstrap}",
                "protocol": "kafka",
                "description": "Topic names, too, are settings (config.toml, section kafka).",
                "variables": {"bootstrap": {"default": kafka.bootstrap_servers}},
            }
        },
        "channels": {
            "chunks": _channel(kafka.chunks_topic, "Pieces of video to look at.", "VideoChunk", "RawMedia"),
            "scores": _channel(
                kafka.scores_topic, "What is known of a video after each of its chunks.", "ScoreUpdate"
            ),
            "deadLetters": _channel(
                kafka.dead_letters_topic, "Chunks that could not be processed, and why.", "DeadLetter"
            ),
            "evidence": _channel(
                kafka.evidence_topic,
                "Pictures of suspicious faces, if `evidence.publish` is on. They are personal data: "
                "`streamer topics create` gives the topic a retention of 7 days.",
                "VideoEvidence",
            ),
        },
        "operations": {
            "receiveChunk": _operation(
                "receive", "chunks", "Decode, detect, classify.", "VideoChunk", "RawMedia"
            ),
            "sendScore": _operation("send", "scores", "After every chunk.", "ScoreUpdate"),
            "sendDeadLetter": _operation("send", "deadLetters", "Instead of a guess.", "DeadLetter"),
            "sendEvidence": _operation(
                "send", "evidence", "After a chunk with a suspicious face.", "VideoEvidence"
            ),
        },
        "components": {
            "messages": {
                "VideoChunk": _message(VideoChunk, "A piece of a video", CHUNK),
                "RawMedia": raw_media,
                "ScoreUpdate": _message(ScoreUpdate, "Rolling fake score of a video", SCORED, NO_FACE_YET),
                "DeadLetter": _message(DeadLetter, "A chunk that could not be processed", LETTER),
                "VideoEvidence": _message(VideoEvidence, "The most suspicious faces of a chunk", EVIDENCE),
            },
            "schemas": schemas(),
        },
    }


class _Dumper(yaml.SafeDumper):
    """Repeats shared parts instead of writing YAML anchors, which many tools for AsyncAPI cannot read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_str(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    """Text of several lines as a block, one line as it comes."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _represent_str)


def text() -> str:
    """What deploy/asyncapi.yaml must hold."""
    return HEADER + yaml.dump(document(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


if __name__ == "__main__":
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(text())
    print(OUTPUT)
