"""The command line as a person or a script meets it: real processes, exit statuses, what is printed where."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clips import make_clip
from command import COMMAND, ROOT, environment, options_of, process, streamer
from fakes import fresh_names
from members import make_engines, make_member
from typer.testing import CliRunner, Result
from updates import update

from streamer.cli import app
from streamer.command_group import USAGE, exit_code_of
from streamer.config import KafkaConfig
from streamer.demo_clips import demo_clips
from streamer.errors import (
    BackendError,
    BrokerError,
    ChunkError,
    ConfigError,
    DecodeError,
    StreamerError,
    UntrainedError,
)
from streamer.kafka.deliver import AtLeastOnce, Batch
from streamer.messages import decode_score

NOWHERE = "127.0.0.1:1"


@pytest.mark.parametrize("words", [["doctor"], ["score", "--json", "nowhere.mp4"]])
def test_a_full_disk_under_the_results_is_an_error_in_one_line(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *words],
            cwd=ROOT,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "error: cannot write what was asked for: No space left on device\n"


# ------------------------------------------------------------------ without a broker


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run `streamer WORDS` without a process of its own: fast, for what ends before any work begins."""
    for name in list(os.environ):
        if name.startswith("STREAMER_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(ROOT)
    return lambda *words: CliRunner().invoke(app, list(words), prog_name="streamer")


@pytest.mark.parametrize(
    "command", ["run", "publish", "watch", "dashboard", "score", "report", "topics create", "doctor", "demo"]
)
def test_help_of_every_command(in_process: Callable[..., Result], command: str) -> None:
    result = in_process(*command.split(), "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: streamer {command} ")
    assert command.split()[0] in in_process("--help").stdout


def test_version() -> None:
    assert streamer("--version").stdout == "streamer 0.1.0\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fly"], "No such command 'fly'"),
        (["publish"], "Missing argument"),
        (["score", "--jsn", "a.mp4"], "No such option"),
        (["publish", "--chunk-seconds", "0", "a.mp4"], "--chunk-seconds"),
        (["--config", "nowhere.toml", "doctor"], "nowhere.toml: no such configuration file"),
        (["doctor", "--set", "sample.frames_per_second"], "--set takes section.key=value"),
        (["doctor", "--set", "sample.frames_per_secnd=2"], "did you mean 'frames_per_second'?"),
        (["--set", "sample.frames_per_second=fast", "doctor"], "sample.frames_per_second"),
        (["doctor", "--set=faces.windows=[diagonal]"], "not a TOML value"),
        (["doctor", "--set", "sample=1", "--set", "sample.frames_per_second=1"], "section.key=value"),
        (["doctor", "--log-level", "loud"], "log.level"),
        (["publish", "--video-id", "x", "a.mp4", "b.mp4"], "--video-id names one video"),
        (["publish", "https://cdn/x.m3u8"], "is an HLS playlist: --hls"),
        (["publish", "https://cdn/x.mpd?token=1"], "https://cdn/x.mpd is a DASH manifest: --dash"),
        (["publish", "ftp://host/x.mp4"], "streams are rtsp"),
        (["publish", "--hls", "ftp://host/x.m3u8"], "--hls reads http, https and files"),
        (["publish", "--dash", "rtsp://host/x.mpd"], "--dash reads http, https and files"),
        (["publish", "--dash", "--hls", "x.mpd"], "--hls and --dash: publish"),
        (["publish", "--input-option", "rtsp_transport", "rtsp://cam/x"], "--input-option takes KEY=VALUE"),
    ],
)
def test_wrong_usage_is_status_2_and_one_message(
    in_process: Callable[..., Result], words: list[str], said: str
) -> None:
    result = in_process(*words)
    assert result.exit_code == USAGE
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_messages_and_status_of_a_process() -> None:
    result = streamer("doctor", "--set", "sample.frames_per_secnd=2")
    assert result.returncode == USAGE
    assert result.stdout == ""
    assert result.stderr == (
        "error: config.toml: unknown key 'sample.frames_per_secnd'; did you mean 'frames_per_second'?\n"
    )


def test_global_options_may_follow_the_command(in_process: Callable[..., Result]) -> None:
    before = in_process("--set", "kafka.group_id=1=2", "--set", "a.b=1", "doctor")
    after = in_process("doctor", "--set", "kafka.group_id=1=2", "--set=a.b=1")
    assert before.stderr == after.stderr
    assert "unknown key 'a'" in after.stderr


def test_config_toml_of_the_working_directory_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[kafka]\nbroker = 'x'\n")
    result = streamer("watch", cwd=tmp_path)
    assert result.returncode == USAGE
    assert result.stderr.startswith("error: config.toml: unknown key 'kafka.broker'")


def test_environment_is_read() -> None:
    result = streamer("watch", STREAMER_KAFKA__PORT="1")
    assert result.returncode == USAGE
    assert "unknown key 'kafka.port'" in result.stderr


def test_wrong_password_is_not_printed() -> None:
    result = streamer(
        "watch", STREAMER_KAFKA__SECURITY__PASSWORD="hunter2", STREAMER_KAFKA__SECURITY__PROTOCOL="SASL"
    )
    assert result.returncode == USAGE
    assert "kafka.security.protocol" in result.stderr
    assert "hunter2" not in result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (BrokerError("x"), 3),
        (BackendError("x"), 4),
        (UntrainedError("x"), 4),
        (ChunkError("r", "x"), 1),
        (DecodeError("r", "x"), 1),
        (StreamerError("x"), 1),
    ],
)
def test_exit_codes(error: StreamerError, code: int) -> None:
    assert exit_code_of(error) == code


# ------------------------------------------------------------------ with a broker


@pytest.fixture
def fresh(embedded_broker: str) -> KafkaConfig:
    """Topics of this test alone, not made yet."""
    return fresh_names(embedded_broker)


def test_no_broker_is_status_3() -> None:
    result = streamer("topics", "create", "--bootstrap", NOWHERE)
    assert result.returncode == 3
    assert result.stderr.startswith(f"error: no Kafka reachable at {NOWHERE}")
    assert len(result.stderr.splitlines()) == 1


def test_topics_create(fresh: KafkaConfig) -> None:
    first = streamer("topics", "create", "--partitions", "2", *options_of(fresh))
    assert first.returncode == 0, first.stderr
    assert f"{fresh.chunks_topic}: created" in first.stdout
    again = streamer("topics", "create", "--partitions", "2", *options_of(fresh))
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already there\n") == 5
    more = streamer("topics", "create", "--partitions", "12", *options_of(fresh))
    assert more.returncode == 0, more.stderr
    assert more.stdout.count("already there, with 2 partitions\n") == 5
    report = streamer("report", "nobody", "--output", "never.html", *options_of(fresh))
    assert report.returncode == 1
    assert f"topic {fresh.scores_topic} holds no score of nobody" in report.stderr


def test_missing_topics_are_named(fresh: KafkaConfig) -> None:
    result = streamer("watch", *options_of(fresh))
    assert result.returncode == 3
    assert fresh.scores_topic in result.stderr
    assert "streamer topics create" in result.stderr


@pytest.mark.needs_kafka
def test_publish(real_kafka: KafkaConfig, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4", seconds=2)
    text = tmp_path / "b.mp4"
    text.write_text("no video")
    result = streamer("publish", clip, text, "--chunk-seconds", "1", *options_of(real_kafka))
    assert result.returncode == 1
    assert "video a, 2 chunks, 2.0 s" in result.stdout
    assert f"error  {text}: " in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture
def watching(real_kafka: KafkaConfig) -> Iterator[subprocess.Popen[str]]:
    """`streamer watch --json --from-beginning` on topics of its own."""
    with process("watch", "--json", "--from-beginning", *options_of(real_kafka)) as running:
        yield running


@pytest.mark.needs_kafka
async def test_watch_json_and_interrupt(real_kafka: KafkaConfig, watching: subprocess.Popen[str]) -> None:
    sent = [update("a\n\x1b[31m", 1), update("b", 2, None)]
    async with AtLeastOnce(real_kafka) as delivery:
        await delivery.deliver(Batch(0, updates=sent))
    assert watching.stdout is not None
    got = [watching.stdout.readline() for _ in sent]
    assert sorted(json.loads(line)["seq"] for line in got) == [1, 2]
    assert sorted((decode_score(line.encode()) for line in got), key=lambda u: u.seq) == sent
    watching.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, err = watching.communicate(timeout=20)
    assert watching.returncode == 130, err
    assert time.monotonic() - started < 5
    assert "Traceback" not in err


@pytest.mark.needs_kafka
async def test_watch_ends_quietly_when_nobody_reads(
    real_kafka: KafkaConfig, watching: subprocess.Popen[str]
) -> None:
    assert watching.stdout is not None
    async with AtLeastOnce(real_kafka) as delivery:
        await delivery.deliver(Batch(0, updates=[update("a", 1)]))
        watching.stdout.readline()
        watching.stdout.close()
        for seq in range(2, 5):
            await delivery.deliver(Batch(0, updates=[update("a", seq)]))
    assert watching.stderr is not None
    err = watching.stderr.read()
    assert watching.wait(timeout=20) == 1
    assert "Traceback" not in err


# ------------------------------------------------------------------ with networks


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Global options for a small trained member."""
    engines = make_engines(tmp_path_factory.mktemp("cli") / "engines", sure=2.0)
    settings = (f"classify.engines={engines}", "classify.members=['sure']", "decode.workers=1")
    return [word for setting in settings for word in ("--set", setting)]


def test_score_of_good_and_bad_files(networks: list[str], tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(bytes(1000))
    result = streamer(
        "score", "--json", bad, demo_clips()[0], *networks, "--set", "sample.frames_per_video=4"
    )
    assert result.returncode == 1
    assert result.stderr == ""
    first, second = map(json.loads, result.stdout.splitlines())
    assert first["file"] == str(bad)
    assert first["error"]
    assert second["file"] == str(demo_clips()[0])
    assert second["fake_score"] == pytest.approx(0.8808, abs=1e-3)


def test_score_without_usable_members_is_status_4(networks: list[str], tmp_path: Path) -> None:
    result = streamer("score", tmp_path / "a.mp4", *networks, "--set", "classify.members=['unsure']")
    assert result.returncode == 4
    assert "unsure.json: cannot read the manifest" in result.stderr
    assert result.stdout == ""


@pytest.mark.needs_kafka
def test_run_publish_watch_and_stop(real_kafka: KafkaConfig, networks: list[str]) -> None:
    """The whole path as three processes."""
    options = [*options_of(real_kafka), *networks, "--set", "service.http_port=0"]
    following = process("watch", "--json", "--from-beginning", *options)
    with process("run", *options) as service, following as watching:
        sent = streamer("publish", demo_clips()[0], "--video-id", "clip", *options)
        assert sent.returncode == 0, sent.stderr
        assert watching.stdout is not None
        updates = []
        while not updates or not updates[-1].last:
            line = watching.stdout.readline()
            assert line, watching.stderr.read() if watching.stderr else ""
            updates.append(decode_score(line.encode()))
        assert [one.seq for one in updates] == list(range(len(updates)))
        assert updates[-1].status == "final"
        assert updates[-1].video_id == "clip"
        assert updates[-1].fake_score == pytest.approx(0.8808, abs=1e-3)
        assert any(one.alert.changed and one.alert.state == "raised" for one in updates)
        service.send_signal(signal.SIGTERM)
        _, err = service.communicate(timeout=30)
        assert service.returncode == 0, err


def test_run_without_topics_is_status_3(fresh: KafkaConfig, networks: list[str]) -> None:
    result = streamer("run", *options_of(fresh), *networks, "--set", "service.http_port=0")
    assert result.returncode == 3
    assert "streamer topics create" in result.stderr


@pytest.mark.needs_kafka
def test_run_with_untrained_members_is_status_4(real_kafka: KafkaConfig, tmp_path: Path) -> None:
    engines = make_engines(tmp_path / "engines")
    make_member(engines, "random", 0.0, trained=False)
    settings = ("--set", f"classify.engines={engines}", "--set", "classify.members=['random']")
    result = streamer("run", *options_of(real_kafka), *settings, "--set", "service.http_port=0")
    assert result.returncode == 4
    assert "--allow-untrained" in result.stderr
