"""deploy/asyncapi.yaml says what the code does."""

from __future__ import annotations

import runpy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import streamer
from streamer.config import KafkaConfig
from streamer.messages import DeadLetter, ScoreUpdate, VideoChunk, VideoEvidence, decode_chunk

ROOT = Path(__file__).parents[1]
FILE = ROOT / "deploy" / "asyncapi.yaml"
MODELS = {
    "VideoChunk": VideoChunk,
    "ScoreUpdate": ScoreUpdate,
    "DeadLetter": DeadLetter,
    "VideoEvidence": VideoEvidence,
}


@pytest.fixture(scope="module")
def document() -> Any:
    return yaml.safe_load(FILE.read_text())


def resolve(document: Any, ref: str) -> Any:
    node = document
    for part in ref.removeprefix("#/").split("/"):
        node = node[part]
    return node


def refs(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from refs(value)
    elif isinstance(node, list):
        for value in node:
            yield from refs(value)


def validator(document: Any, message: str) -> jsonschema.Draft7Validator:
    schema = document["components"]["messages"][message]["payload"]
    return jsonschema.Draft7Validator(schema | {"components": document["components"]})


def test_file_is_what_the_script_writes() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "make_asyncapi.py"))
    assert FILE.read_text() == script["text"](), "run: python scripts/make_asyncapi.py"


def test_every_reference_leads_somewhere(document: Any) -> None:
    found = list(refs(document))
    assert found
    for ref in found:
        assert resolve(document, ref)


def test_channels_are_the_topics_of_the_configuration(document: Any) -> None:
    kafka = KafkaConfig()
    addresses = [channel["address"] for channel in document["channels"].values()]
    assert addresses == [
        *(kafka.chunks_topic, kafka.scores_topic, kafka.dead_letters_topic, kafka.evidence_topic)
    ]


def test_version_is_the_package_s(document: Any) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert document["info"]["version"] == project["version"] == streamer.__version__


@pytest.mark.parametrize("name", MODELS)
def test_schema_has_the_model_s_fields(document: Any, name: str) -> None:
    schema = document["components"]["schemas"][name]
    model = MODELS[name]
    assert list(schema["properties"]) == list(model.model_fields)
    required = [key for key, field in model.model_fields.items() if field.is_required()]
    assert schema["required"] == required


@pytest.mark.parametrize("name", MODELS)
def test_examples_hold_for_schema_and_model(document: Any, name: str) -> None:
    examples = document["components"]["messages"][name]["examples"]
    assert examples
    for example in examples:
        validator(document, name).validate(example["payload"])
        MODELS[name].model_validate(example["payload"])


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("VideoChunk", {"seq": -1}),
        ("VideoChunk", {"video_id": ""}),
        ("VideoChunk", {"v": 2}),
        ("ScoreUpdate", {"fake_score": 1.5}),
        ("ScoreUpdate", {"status": "guessed"}),
        ("ScoreUpdate", {"interval": [0.1]}),
        ("DeadLetter", {"offset": "far"}),
        ("VideoEvidence", {"crops": []}),
    ],
)
def test_schema_refuses_what_the_model_refuses(document: Any, name: str, wrong: dict[str, Any]) -> None:
    payload = document["components"]["messages"][name]["examples"][0]["payload"] | wrong
    assert not validator(document, name).is_valid(payload)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MODELS[name].model_validate(payload)


def test_raw_media_example_is_accepted(document: Any) -> None:
    message = document["components"]["messages"]["RawMedia"]
    example = message["examples"][0]
    jsonschema.Draft7Validator(message["headers"]).validate(example["headers"])
    headers = [(name, value.encode()) for name, value in example["headers"].items()]
    chunk = decode_chunk(example["payload"].encode(), b"v", headers, offset=0, max_bytes=1000)
    assert chunk.seq == 12
