"""config.toml, environment, command line -> Config."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from aiokafka.conn import collect_hosts

from streamer.config import Config
from streamer.errors import ConfigError
from streamer.load_config import load_config

ROOT = Path(__file__).parents[1]
CONFIG_TOML = ROOT / "config.toml"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("STREAMER_"):
            monkeypatch.delenv(name)


def test_config_toml_is_written_from_the_code() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "make_config_toml.py"))
    assert CONFIG_TOML.read_text() == script["text"](), "run: python scripts/make_config_toml.py"


def test_config_toml_is_the_defaults() -> None:
    assert load_config(CONFIG_TOML) == load_config()


def test_every_key_has_a_meaning() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "make_config_toml.py"))
    found = [setting for _, model in script["sections"](Config) for setting in script["settings"](model)]
    assert len(found) > 100
    assert [toml for toml, meaning in found if len(meaning) < 8] == []


def test_command_line_over_environment_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[sample]\nframes_per_second = 1\nframes_per_video = 1\n[faces]\nmargin = 0.1\n")
    monkeypatch.setenv("STREAMER_SAMPLE__FRAMES_PER_SECOND", "2")
    monkeypatch.setenv("STREAMER_SAMPLE__FRAMES_PER_VIDEO", "2")
    config = load_config(file, {"sample": {"frames_per_second": "3"}})
    assert config.sample.frames_per_second == 3
    assert config.sample.frames_per_video == 2
    assert config.faces.margin == 0.1
    assert config.kafka.group_id == "streamer"


def test_lists_and_paths_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMER_FACES__WINDOWS", '["matrix"]')
    monkeypatch.setenv("STREAMER_CLASSIFY__ENGINES", "/srv/engines")
    config = load_config()
    assert config.faces.windows == ("matrix",)
    assert config.classify.engines == Path("/srv/engines")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[sample]\nframes_per_secnd = 1", ["unknown key 'sample.frames_per_secnd'", "'frames_per_second'"]),
        ("[smple]\nframes_per_second = 1", ["unknown key 'smple'", "'sample'"]),
        ("[kafka.security]\nzzz = 1", ["unknown key 'kafka.security.zzz'", "protocol"]),
        ("[sample]\nframes_per_second = 0", ["sample.frames_per_second", "greater than 0", "got 0"]),
        ("[faces]\nwindows = ['diagonal']", ["faces.windows.0", "diagonal"]),
        ("[classify]\nmembers = []", ["classify.members"]),
        ("[alert]\nraise_at = 0.5\nclear_at = 0.7", ["alert", "clear_at 0.7"]),
        ("[kafka]\nsession_timeout_ms = 6000", ["heartbeat_interval_ms 3000", "third of", "6000"]),
        ("[kafka]\nbootstrap_servers = 'a:1,foo:abc'", ["kafka.bootstrap_servers", "HOST:PORT", "'foo:abc'"]),
        (
            "[kafka]\nstate_topic = 'video-chunks'",
            ["kafka", "chunks_topic and state_topic are both 'video-chunks'"],
        ),
        ("[kafka]\ngroup_id = ''", ["kafka.group_id", "at least 1 character"]),
        ("[kafka.security]\nprotocol = 'SASL_SSL'", ["kafka.security", "sasl_mechanism"]),
        ("[kafka.security]\ncert_file = 'a.pem'", ["cert_file and key_file"]),
        ("[sample", ["config.toml"]),
    ],
)
def test_wrong_files_name_key_and_file(tmp_path: Path, text: str, said: list[str]) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    for words in [*said, str(file)]:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "servers", ["kafka", "kafka:9092", "a_b.example.com:1, 10.0.0.1:65535", "[::1]:9092", "[::1]", "::1"]
)
def test_addresses_of_brokers(servers: str) -> None:
    config = load_config(None, {"kafka": {"bootstrap_servers": servers}})
    assert config.kafka.bootstrap_servers == servers
    assert collect_hosts(servers)  # as the client reads them


@pytest.mark.parametrize(
    "servers", ["", "foo:abc", "foo:", ":9092", "foo:70000", "a:1,", "kafka://foo:1", "[::1"]
)
def test_what_is_no_address_of_a_broker(servers: str) -> None:
    with pytest.raises(ConfigError, match=r"^configuration: kafka\.bootstrap_servers: .*HOST:PORT"):
        load_config(None, {"kafka": {"bootstrap_servers": servers}})


def test_missing_file() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: no such configuration file"):
        load_config(Path("nowhere.toml"))


def test_secrets_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    security = {"protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-512", "username": "u"}
    monkeypatch.setenv("STREAMER_KAFKA__SECURITY__PASSWORD", "hunter2")
    config = load_config(None, {"kafka": {"security": security}})
    assert config.kafka.security.password is not None
    assert config.kafka.security.password.get_secret_value() == "hunter2"
    for shown in (repr(config), str(config), config.model_dump_json()):
        assert "hunter2" not in shown


@pytest.mark.parametrize(
    "broken", [{"protocol": "SASL_SSL"}, {"password": ["hunter2"]}, {"passwrd": "hunter2"}]
)
def test_secrets_stay_out_of_error_messages(monkeypatch: pytest.MonkeyPatch, broken: dict[str, Any]) -> None:
    monkeypatch.setenv("STREAMER_KAFKA__SECURITY__PASSWORD", "hunter2")
    with pytest.raises(ConfigError) as caught:
        load_config(None, {"kafka": {"security": broken}})
    assert "hunter2" not in str(caught.value)


def test_configuration_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config().sample.frames_per_second = 3  # type: ignore[misc]
