"""Every setting: frozen and validated. `config.toml` is written from here, by scripts/make_config_toml.py.

Secrets are `SecretStr`: they print as `**********`, in logs and in `repr`.
"""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from streamer.addresses import is_broker_address, is_loopback
from streamer.messages import MAX_EVIDENCE_CROPS

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KafkaSecurity(_Section):
    """How to authenticate to Kafka; see `streamer.kafka.security`."""

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    """With the protocols SASL_*, which need it."""
    username: str | None = None
    """For PLAIN and SCRAM."""
    password: SecretStr | None = None
    """Likewise."""
    ca_file: Path | None = None
    """PEM; without it the system's authorities are trusted."""
    cert_file: Path | None = None
    """PEM; client certificate for mTLS, with `key_file`."""
    key_file: Path | None = None
    """PEM; the certificate's private key."""
    key_password: SecretStr | None = None
    """If that is encrypted."""
    oauth_token_provider: str | None = None
    """`package.module:factory`; calling it returns an aiokafka AbstractTokenProvider."""

    @model_validator(mode="after")
    def _complete(self) -> KafkaSecurity:
        if self.protocol.startswith("SASL"):
            if self.sasl_mechanism is None:
                raise ValueError(f"protocol {self.protocol} needs sasl_mechanism")
            if self.sasl_mechanism == "OAUTHBEARER":
                if self.oauth_token_provider is None:
                    raise ValueError("sasl_mechanism OAUTHBEARER needs oauth_token_provider")
            elif self.username is None or self.password is None:
                raise ValueError(f"sasl_mechanism {self.sasl_mechanism} needs username and password")
        elif self.sasl_mechanism is not None:
            raise ValueError(f"sasl_mechanism is set, but protocol is {self.protocol}, not SASL_*")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file belong together")
        return self


class KafkaConfig(_Section):
    """Broker, topics, limits."""

    bootstrap_servers: str = "127.0.0.1:9092"
    """HOST:PORT, several separated by commas."""
    group_id: Annotated[str, Field(min_length=1)] = "streamer"
    """Processes with the same group share the partitions."""
    client_id: str = "streamer"
    """How the broker's logs and quotas know us."""
    chunks_topic: str = "video-chunks"
    """In: pieces of video, keyed by video_id."""
    scores_topic: str = "video-scores"
    """Out: a score update after every chunk, same key."""
    dead_letters_topic: str = "video-chunks-dlq"
    """Out: chunks that cannot be processed, and why."""
    state_topic: str = "video-state"
    """Rolling state, compacted."""
    evidence_topic: str = "video-evidence"
    """Out, if `evidence.publish` is on: crops of suspicious faces."""
    score_format: Literal["msgpack", "json"] = "msgpack"
    """Of score updates; JSON for consumers that read nothing else."""
    delivery: Literal["exactly_once", "at_least_once"] = "exactly_once"
    """`exactly_once` needs a broker with transactions."""
    commit_interval_ms: Annotated[int, Field(ge=0)] = 100
    """Chunks of a partition that are finished within this time share one transaction."""
    max_commit_chunks: PositiveInt = 200
    """Most chunks that share one."""
    max_message_bytes: PositiveInt = 16 * 1024 * 1024
    """Largest record; `topics create` gives it to the topics too."""
    session_timeout_ms: PositiveInt = 10_000
    """A process silent for so long loses its partitions to the others."""
    heartbeat_interval_ms: PositiveInt = 3_000
    """At most a third of the session timeout."""
    max_poll_interval_ms: PositiveInt = 300_000
    """A process that does not ask for records for so long is taken for stuck, and loses its partitions."""
    auto_offset_reset: Literal["earliest", "latest"] = "earliest"
    """Where a new group starts."""
    security: KafkaSecurity = KafkaSecurity()

    @field_validator("bootstrap_servers")
    @classmethod
    def _addresses(cls, value: str) -> str:
        for address in value.split(","):
            if not is_broker_address(address.strip()):
                raise ValueError(f"takes HOST:PORT, or several with commas between; {address!r} is none")
        return value

    @model_validator(mode="after")
    def _topics_apart(self) -> KafkaConfig:
        """Else what is published of a chunk is read as the next one, without an end."""
        of_topic: dict[str, str] = {}
        for key in ("chunks_topic", "scores_topic", "dead_letters_topic", "state_topic", "evidence_topic"):
            if (other := of_topic.setdefault(getattr(self, key), key)) != key:
                raise ValueError(f"{other} and {key} are both {getattr(self, key)!r}: each must be its own")
        return self

    @model_validator(mode="after")
    def _beats_in_time(self) -> KafkaConfig:
        if 3 * self.heartbeat_interval_ms > self.session_timeout_ms:
            raise ValueError(
                f"heartbeat_interval_ms {self.heartbeat_interval_ms} must be at most a third of "
                f"session_timeout_ms {self.session_timeout_ms}"
            )
        return self


class DecodeConfig(_Section):
    """Limits for untrusted media; every one ends in a dead letter, never in a dead service."""

    workers: Annotated[int, Field(ge=0)] = 0
    """Worker processes; 0: one per CPU core."""
    timeout_seconds: PositiveFloat = 20.0
    """Wall clock that a worker may take for one batch of frames before it is killed."""
    cpu_seconds: PositiveInt = 60
    """CPU time that a worker may spend on one chunk."""
    memory_mib: PositiveInt = 2048
    """Address space of a worker."""
    max_pixels: PositiveInt = 4096 * 2304
    """Of a frame, width times height: 4096 x 2304, the largest of H.264 at level 5.1."""
    max_chunk_seconds: PositiveFloat = 120.0
    """Longest chunk."""
    max_chunk_frames: PositiveInt = 7200
    """Most source frames in a chunk, sampled or not."""
    max_chunk_bytes: PositiveInt = 64 * 1024 * 1024
    """Largest media, after unpacking."""
    skip_nonreference: bool = True
    """Let the decoder skip frames that no other frame refers to, where sampling takes at most half of all."""
    seccomp: Literal["auto", "required", "off"] = "auto"
    """Filter of the workers' system calls; `auto`: if libseccomp is installed. See `streamer.syscalls`."""


class SampleConfig(_Section):
    """Which frames are looked at."""

    frames_per_second: PositiveFloat = 4.0
    """Frames looked at for each second of video."""
    frames_per_video: Annotated[int, Field(ge=0)] = 100
    """Cap for videos whose chunks state `duration_seconds`, but at least one a second is looked at; live ones
    have none. 0: no cap at all."""
    lag_policy: Literal["none", "thin"] = "none"
    """`thin`: a partition that is behind is sampled at 1/2, 1/4, at least 1/8 of `frames_per_second` until it
    has caught up. `none`: scores depend on the chunks alone. See `streamer.thinning`."""
    thin_from_lag: PositiveInt = 64
    """Chunks of a partition, published and not finished, at which the rate is halved; at twice and four times
    as many it is halved again."""


WindowKind = Literal["horizontal", "vertical", "matrix"]


class FacesConfig(_Section):
    """Face detection, tracking and cropping."""

    detector: str = "blazeface_short_range"
    """Looks at the whole frame, and at `horizontal` and `vertical` windows. A manifest under `engines`."""
    scanner: str = "blazeface_back"
    """Looks at `matrix` windows for small faces. A manifest under `engines`."""
    verifier: str = "blazeface_full_range"
    """Decides, from a close-up, about what the others are not sure of. A manifest under `engines`."""
    windows: tuple[WindowKind, ...] = ("horizontal", "vertical", "matrix")
    """Sliding windows beside the whole frame; [] for the whole frame alone."""
    scan_every: PositiveInt = 8
    """`matrix` windows are looked at in one of so many sampled frames of a chunk; 1: in all. Between them,
    faces found there are followed."""
    max_matrix_windows: PositiveInt = 12
    """In a larger frame they grow, and with them the smallest face found."""
    overlap: Annotated[float, Field(ge=0, le=0.75)] = 0.15
    """Share of a window that its neighbour sees too; a face on the edge should fit into it."""
    candidate_score: Probability = 0.25
    """From this score on a place gets a close-up, in which it must reach `min_score`."""
    sure_score: Probability = 0.75
    """A face that the detector gives this score needs no close-up, nor does a large one with `min_score`."""
    min_score: Probability = 0.6
    """Score of the detector that makes a face, in [0, 1]."""
    nms_iou: Probability = 0.3
    """Boxes that overlap more (intersection over union) are one face."""
    consensus: bool = False
    """A face counts only if dlib's HOG detector agrees (extra `consensus`: `pip install -e
    '.[consensus]'`)."""
    min_height_px: PositiveFloat = 20.0
    """Smaller faces are ignored: too few pixels for the classifiers."""
    max_faces_per_frame: PositiveInt = 16
    """The best are kept, the others counted as `unscored_faces`; of candidates, so many get a close-up."""
    margin: Annotated[float, Field(ge=0, le=2)] = 0.3
    """Added on each side of the box before cropping, as a fraction of its width and height."""
    track_iou: Probability = 0.3
    """Overlap with where a person was, or should be by now, that makes a face the same one."""
    track_gap_seconds: PositiveFloat = 2.0
    """A face away longer than this comes back as a new track, unless it is known again by its look."""
    batch_frames: PositiveInt = 8
    """Frames of all videos detected together."""
    batch_timeout_ms: PositiveFloat = 20.0
    """A batch waits no longer than this to fill up."""

    @property
    def networks(self) -> tuple[str, str, str]:
        """All that find faces."""
        return self.detector, self.scanner, self.verifier


class ClassifyConfig(_Section):
    """The ensemble."""

    engines: Path = Path("engines")
    """Folder of networks and manifests, detectors too; relative to the working directory."""
    members: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "mobilenet_v2_sharp",
        "mobilenet_v2_compressed",
        "resnext_mobilenet",
    )
    """Manifests under `engines`, without `.json`."""
    shadow: tuple[str, ...] = ()
    """Members of another ensemble that scores the same faces beside this one, for comparison: see
    `ScoreUpdate.shadow`. Costs as much as members do."""
    backend: Literal["openvino", "tensorrt", "onnxruntime", "torch"] = "openvino"
    """The one named is used, or it is an error; tensorrt needs engines built on this GPU with
    `build_engines.py --target tensorrt`."""
    precision: Literal["f32", "fp16", "bf16", "int8", "fp8"] = "f32"
    """int8 needs members built with `build_engines.py --precision int8`; fp16 and fp8 are for tensorrt."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads for all networks together; 0: all cores."""
    allow_untrained: bool = False
    """Publish the output of untrained members, marked `trained: false`. For trials of the plumbing only."""
    batch_crops: PositiveInt = 16
    """Faces of all videos classified together."""
    batch_timeout_ms: PositiveFloat = 20.0
    """A batch waits no longer than this to fill up."""


class GpuConfig(_Section):
    """What runs on an NVIDIA GPU (extra `gpu`)."""

    device: Annotated[str, Field(pattern=r"^(cpu|cuda:\d+)$")] = "cuda:0"
    """As PyTorch names it; `cpu` for trials of the same code without a GPU."""
    frames: Literal["auto", "on", "off"] = "auto"
    """Colour conversion, windows and crops on the device; `auto`: with backend tensorrt."""
    nvdec: Literal["off", "auto"] = "off"
    """`auto`: the GPU's decoder for what it takes. The drivers then run in the decode workers, which lose
    their filter of system calls and their limits of memory and files."""
    nvdec_min_pixels: Annotated[int, Field(ge=0)] = 1280 * 720
    """Width times height from which a video goes to NVDEC: for less, its decoder is made in more time than it
    saves. Where that is has not been measured; 0: all that it takes."""


class RollingConfig(_Section):
    """Rolling state of each video."""

    window_seconds: PositiveFloat = 10.0
    """Of video that `window_score` looks back on."""
    max_tracks: PositiveInt = 32
    """People followed in a video; at least `faces.max_faces_per_frame`, or some of a crowd are not."""
    idle_seconds: PositiveFloat = 300.0
    """A video without chunks for so long gets its `final` update and is forgotten."""
    max_videos: PositiveInt = 100_000
    """At once; beyond it the video idle longest is ended first."""


class AlertConfig(_Section):
    """When a video is reported as fake."""

    score: Literal["window", "video", "track"] = "track"
    """The number that is watched: `window`, the last seconds; `video`, all of it; `track`, the last seconds
    of the most suspicious person, or of all faces where that is more, as it may be of a person whom no track
    follows."""
    raise_at: Probability = 0.8
    """Raised when the watched number reaches this."""
    clear_at: Probability = 0.6
    """Cleared when it falls below this; between the two nothing changes."""
    min_faces: PositiveInt = 8
    """Predictions that the watched number must rest on."""

    @model_validator(mode="after")
    def _hysteresis(self) -> AlertConfig:
        if self.clear_at > self.raise_at:
            raise ValueError(f"clear_at {self.clear_at} must not be above raise_at {self.raise_at}")
        return self


class EvidenceConfig(_Section):
    """Crops of suspicious faces for people to look at: personal data, see `docs/operating.md`."""

    publish: bool = False
    """Publish them to `kafka.evidence_topic`. While this is off, nothing is kept or computed for it."""
    min_score: Probability = 0.7
    """Probability of fake, mean over the members, from which a face is published."""
    crops_per_chunk: Annotated[int, Field(ge=1, le=MAX_EVIDENCE_CROPS)] = 2
    """Most that are published of one chunk: its most suspicious faces."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 85
    """At 85 a crop of 224 x 224 pixels has about 8 kB."""


class ServiceConfig(_Section):
    """The process."""

    max_chunks_in_flight: PositiveInt = 8
    """Chunks worked on at once."""
    max_bytes_in_flight: PositiveInt = 256 * 1024 * 1024
    """In chunks fetched and not finished; beyond it partitions are paused."""
    max_queued_per_partition: PositiveInt = 64
    """Chunks fetched and not finished; beyond it the partition is paused. Within these, videos take
    turns: a chunk overtakes those of other videos that are before it in the queue and have not begun. To
    be in it, it must be reached by reading."""
    max_video_chunks_per_minute: Annotated[int, Field(ge=0)] = 0
    """Of one video, by the records' timestamps; what is beyond becomes a dead letter. 0: no limit."""
    max_video_bytes_per_minute: Annotated[int, Field(ge=0)] = 0
    """Likewise, bytes of the records' values."""
    drain_seconds: PositiveFloat = 20.0
    """Budget for finishing work on SIGTERM or when partitions are taken away."""
    http_host: str = "127.0.0.1"
    """Of /metrics, /healthz, /readyz; "0.0.0.0" in a container."""
    http_port: Annotated[int, Field(ge=0, le=65535)] = 9464
    """0: any free port."""


class DashboardConfig(_Section):
    """The live page (`streamer dashboard`); see `streamer.dashboard`."""

    host: str = "127.0.0.1"
    """Address to listen on; another than loopback needs `auth`."""
    port: Annotated[int, Field(ge=0, le=65535)] = 9465
    """0: any free port."""
    auth: Literal["none", "token", "proxy"] = "none"
    """`token`: a bearer token, a browser is asked for it; `proxy`: a reverse proxy names the user."""
    token: SecretStr | None = None
    """Better STREAMER_DASHBOARD__TOKEN or the next; never on the command line."""
    token_file: Path | None = None
    """Holds the token, of at least 16 characters."""
    proxy_header: str = "X-Forwarded-User"
    """Set by the proxy for every request that it lets through."""
    trusted_proxies: tuple[IPvAnyNetwork, ...] = (ip_network("127.0.0.1/32"), ip_network("::1/128"))
    """Peers whose `proxy_header` is believed."""
    allowed_hosts: tuple[str, ...] = ()
    """Names under which a browser may ask for the page, beside `host`; others are turned away."""
    max_videos: PositiveInt = 5_000
    """Remembered; beyond it the one silent longest is forgotten, alerting ones last."""
    back_seconds: Annotated[float, Field(ge=0)] = 300.0
    """The page starts with the updates of so long ago."""

    @model_validator(mode="after")
    def _guarded(self) -> DashboardConfig:
        if (self.auth == "token") != (self.token is not None or self.token_file is not None):
            raise ValueError('auth = "token" and a token, or a token_file, belong together')
        if self.token is not None and self.token_file is not None:
            raise ValueError("token and token_file exclude each other")
        if any("*" in name.removeprefix("*.") for name in self.allowed_hosts):
            raise ValueError("allowed_hosts takes names, or *.example.com for all below one")
        if self.auth == "none" and not is_loopback(self.host):
            raise ValueError(f"host {self.host} can be reached from elsewhere, so it needs auth")
        if self.host in ("0.0.0.0", "::") and not self.allowed_hosts:  # noqa: S104  # not bound to, refused
            raise ValueError(f"host {self.host} needs allowed_hosts: the names that browsers use for it")
        return self


class LogConfig(_Section):
    """Logging to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least serious that is logged."""
    format: Literal["auto", "console", "json"] = "auto"
    """`auto`: console on a terminal, else json."""


class TracingConfig(_Section):
    """OpenTelemetry traces (extra `otel`); see `streamer.tracing`."""

    exporter: Literal["none", "otlp"] = "none"
    """`otlp`: over HTTP to where OTEL_EXPORTER_OTLP_ENDPOINT says; the other OTEL_* variables hold, too
    (extra `otel`: `pip install -e '.[otel]'`)."""


class Config(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="STREAMER_", env_nested_delimiter="__"
    )

    kafka: KafkaConfig = KafkaConfig()
    decode: DecodeConfig = DecodeConfig()
    sample: SampleConfig = SampleConfig()
    faces: FacesConfig = FacesConfig()
    classify: ClassifyConfig = ClassifyConfig()
    gpu: GpuConfig = GpuConfig()
    rolling: RollingConfig = RollingConfig()
    alert: AlertConfig = AlertConfig()
    evidence: EvidenceConfig = EvidenceConfig()
    service: ServiceConfig = ServiceConfig()
    dashboard: DashboardConfig = DashboardConfig()
    log: LogConfig = LogConfig()
    tracing: TracingConfig = TracingConfig()
