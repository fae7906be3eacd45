"""Every error that `streamer` raises on purpose.

    StreamerError
    ├── ConfigError            config.toml or the environment is wrong; the text says which key
    ├── ModelError             a network cannot be used; the text says which file and what to do
    │   ├── ManifestError      manifest missing, unreadable, or its SHA-256 does not match the file
    │   ├── UntrainedError     scores were asked from members that were never trained
    │   ├── BackendError       the inference library asked for is not installed or not usable here
    │   └── InferenceError     a network failed while running
    ├── TrainingError          a data set, crop cache or checkpoint cannot be used; the text says why
    ├── BrokerError            Kafka is unreachable, refuses us, or lacks a topic
    │   ├── NoTopicError       a topic that was to be read is not there
    │   └── FencedError        another process has taken over a partition that this one was working on
    ├── StateError             the stored state of a video cannot be read
    └── ChunkError             one chunk cannot be processed; it goes to the dead-letter topic
        ├── MessageError       the message is not what the protocol says (stage "message")
        ├── LimitError         there is more of its video than is taken in a minute (stage "limit")
        ├── DecodeError        the media cannot be decoded within its limits (stage "decode")
        ├── DetectError        a network that finds faces fails on it, and on nothing else (stage "detect")
        └── ClassifyError      a member fails on it, and on nothing else (stage "classify")

A `ChunkError` costs one chunk, never the service; all others stop what was asked for.
"""


def missing_extra(extra: str) -> str:
    """What to do for an optional dependency. Not by our name: on PyPI that is another package."""
    return f"pip install -e '.[{extra}]' in the repository"


def one_line(error: BaseException) -> str:
    """Its text; that of inference libraries has several lines."""
    return " ".join(str(error).split())


class StreamerError(Exception):
    """Base of all errors raised on purpose; its text is fit to be shown to a user."""


class ConfigError(StreamerError):
    """The configuration is wrong."""


class ModelError(StreamerError):
    """A network cannot be used."""


class ManifestError(ModelError):
    """A manifest is missing, unreadable, or does not match its file."""


class UntrainedError(ModelError):
    """Scores were asked from members that were never trained."""


class BackendError(ModelError):
    """The inference backend asked for cannot be used on this machine."""


class InferenceError(ModelError):
    """A network failed while running."""


class TrainingError(StreamerError):
    """A data set, crop cache or checkpoint cannot be used."""


class BrokerError(StreamerError):
    """Kafka is unreachable, refuses us, or lacks a topic."""


class NoTopicError(BrokerError):
    """A topic that was to be read is not there."""


class FencedError(BrokerError):
    """Another process has taken over a partition; what this one still had under way for it was undone."""


class StateError(StreamerError):
    """The stored state of a video cannot be read."""


class ChunkError(StreamerError):
    """One chunk cannot be processed.

    reason: short machine-readable word, e.g. `decoder_crashed`; a label in metrics and dead letters.
    stage: `message`, `limit`, `decode`, `detect` or `classify`.
    """

    stage = "unknown"

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason

    def __reduce__(self) -> tuple[type["ChunkError"], tuple[str, str]]:
        """Keep `reason` when the error crosses a process boundary."""
        return type(self), (self.reason, str(self))


class MessageError(ChunkError):
    """A message is not what the protocol says. Reasons: see REASONS."""

    stage = "message"
    REASONS = (
        "empty",
        "too_many_bytes",
        "no_key",
        "invalid_message",
        "wrong_key",
        "wrong_version",
        "not_msgpack",
        "unreadable_record",
    )


class LimitError(ChunkError):
    """More of a video was published than is taken of one. Reasons: see REASONS."""

    stage = "limit"
    REASONS = ("too_many_chunks_per_minute", "too_many_bytes_per_minute")


class DecodeError(ChunkError):
    """A chunk's media cannot be decoded within its limits. Reasons: see REASONS."""

    stage = "decode"
    REASONS = (
        "empty",
        "not_media",
        "unsupported_format",
        "unsupported_codec",
        "no_video",
        "no_frames",
        "no_init",  # fMP4 without its init segment
        "no_keyframe",  # does not start with one
        "damaged",  # cut short, changed, or packets missing: half a chunk is never scored
        "too_many_bytes",
        "too_large",  # pixels
        "too_long",  # seconds or frames
        "decoder_crashed",
        "decoder_timeout",  # wall clock or CPU time
        "decoder_out_of_memory",
        "decoder_error",  # the decoder raised what nobody foresaw
    )


class DetectError(ChunkError):
    """A network that finds faces fails on this chunk, though it works on others. Reasons: see REASONS."""

    stage = "detect"
    REASONS = ("inference_failed",)


class ClassifyError(ChunkError):
    """A member of the ensemble fails on this chunk, though it works on others. Reasons: see REASONS."""

    stage = "classify"
    REASONS = ("inference_failed",)
