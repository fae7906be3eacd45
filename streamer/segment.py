"""Video files -> segments cut at keyframes, nothing re-encoded. FFmpeg runs in a process of its own.

The video stream alone is copied, into Matroska: unlike MPEG-TS, it holds every codec, keeps the rotation, and
protects the pictures by checksums, so that a chunk damaged on its way is noticed whatever its codec. Where a
file was trimmed without being encoded anew, the pictures between the keyframe and the trim are needed to
decode the others, and no player shows them; such a segment is MP4, whose edit list hides them again. A file
can crash FFmpeg, so a child process reads it and writes the segments to a pipe; it holds one segment at a
time and waits while nobody asks for the next.
"""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from streamer.child import LENGTH, child_command, child_environment
from streamer.errors import DecodeError
from streamer.video_stream import CODECS, is_accepted, video_streams

MEMORY_BYTES = 1 << 30
"""Address space of the child, which holds a group of pictures, at times three times."""
_READ_BYTES = 1024 * 1024

DEMUXERS = "mov,matroska,mpegts,avi,flv,mpeg,asf,mxf,ogg,ivf"
"""What a file may be: no raw streams, which have no timestamps; no playlists, which open other files."""

_NO_PICTURE = "not one of the pictures that the MP4's index lists is there: the file is cut or damaged"

_INDEX_AT_END = (
    "MP4 with its index (moov) at the end, from which a pipe, or a server without ranges, cannot go back: "
    "ffmpeg -i IN -c copy -movflags +faststart OUT.mp4 puts it in front"
)

_STILL_WRITTEN = (
    "the file is still being written: wait for its end, or publish it as it grows, "
    "tail -c +1 -f FILE | streamer publish /dev/stdin --video-id NAME"
)


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a video file that can be decoded on its own."""

    data: bytes
    start_seconds: float
    """Position of its first frame in the video, seconds; the first segment starts at 0."""
    duration_seconds: float
    """Until the next segment starts, or the video ends."""
    video_seconds: float | None
    """Length of the whole video as its container states it; None: it does not."""
    is_last: bool
    lost: int = 0
    """Segments before it that were damaged, and left out."""
    format: str = "matroska"
    videos: int = 1
    """Video streams in the file, of which it holds the first."""
    init: bytes | None = None
    """No segment needs a separate initialisation."""

    def __repr__(self) -> str:
        return f"Segment({len(self.data)} bytes, {self.start_seconds:.3f} s + {self.duration_seconds:.3f} s)"


def segments_of(
    path: Path, chunk_seconds: float, *, on_start: Callable[[subprocess.Popen[bytes]], None] = lambda _: None
) -> Generator[Segment, None, None]:
    """Cut a video file at the first keyframe after each `chunk_seconds`.

    Blocks while reading; the iterator may be closed early. on_start: told the process that reads; if it is
    killed from another thread, a read that waits for a silent file, such as a pipe, ends. Raises OSError if
    the file cannot be opened and DecodeError if it is not a video that can be cut, or ends with a damaged
    segment, after the segments before it.
    """
    # A named pipe that nobody writes to would keep a blocking `open` waiting, which nothing could end.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        process = _start_cutter(file, chunk_seconds)
    on_start(process)
    try:
        assert process.stdout is not None
        yield from _read_segments(process.stdout)
        code = process.wait()
        if code != 0:
            how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
            raise DecodeError("decoder_crashed", f"reading the file ended {how}")
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _start_cutter(file: IO[bytes], chunk_seconds: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        child_command("streamer.segment", str(chunk_seconds)),
        stdin=file,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=child_environment(os.environ),
        start_new_session=True,  # Ctrl-C reaches the whole group of the terminal: not this one
    )


def _read_segments(pipe: IO[bytes]) -> Iterator[Segment]:
    while len(head := pipe.read(LENGTH.size)) == LENGTH.size:
        fields = json.loads(pipe.read(LENGTH.unpack(head)[0]))
        if "error" in fields:
            raise DecodeError(*fields["error"])
        data = pipe.read(fields.pop("bytes"))
        segment = Segment(data=data, **fields)
        yield segment
        if segment.is_last:
            return


def main() -> None:
    """Entry point of the child: the file is standard input, segments go to standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    file = os.fdopen(sys.stdin.fileno(), "rb", buffering=0)  # of a pipe, what is there, not a whole buffer
    size = os.fstat(file.fileno()).st_size
    import av

    def is_growing() -> bool:
        return os.fstat(file.fileno()).st_size > size  # a pipe's size is 0

    try:
        _wait_for_writer(file.fileno())
        for fields, data in _file_segments(file, float(sys.argv[1])):
            if fields["is_last"] and is_growing():
                raise DecodeError("damaged", _STILL_WRITTEN)
            write_message({**fields, "bytes": len(data)}, data)
    except BrokenPipeError:
        os._exit(0)  # nobody wants the rest
    except DecodeError as error:
        write_message({"error": [error.reason, _STILL_WRITTEN if is_growing() else str(error)]})
    except MemoryError:
        text = "no keyframe for so long that cutting the file takes more memory than allowed"
        write_message({"error": ["decoder_out_of_memory", text]})
    except av.FFmpegError as error:
        write_message({"error": ["damaged", f"FFmpeg: {error.strerror}"]})


def _wait_for_writer(file: int) -> None:
    """Until a named pipe, which was opened without waiting, has been opened by whoever writes to it."""
    if stat.S_ISFIFO(os.fstat(file).st_mode):
        poll = select.poll()
        poll.register(file, select.POLLIN)
        poll.poll()
    os.set_blocking(file, True)


def write_message(fields: dict[str, Any], data: bytes = b"") -> None:
    """To the parent."""
    body = json.dumps(fields).encode()
    sys.stdout.buffer.write(LENGTH.pack(len(body)) + body + data)
    sys.stdout.buffer.flush()


def _file_segments(file: IO[bytes], chunk_seconds: float) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Fields and data of each segment."""
    with _open(file) as source:
        is_cut = "matroska" in source.format.name and _is_cut_matroska(file)
        videos = sum(map(is_accepted, video_streams(source)))
        for fields, data in cut(source, video_stream(source), chunk_seconds):
            if is_cut and fields["is_last"]:  # FFmpeg takes the cut for the end
                raise DecodeError("damaged", "the file is cut or damaged")
            yield {**fields, "videos": videos}, data


def _is_cut_matroska(file: IO[bytes]) -> bool:
    """Whether it ends before where it says; of a pipe, or one that was recorded live, nobody knows."""
    from streamer.media_structure import HEAD_BYTES, matroska_end

    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        return False
    end = matroska_end(os.pread(file.fileno(), HEAD_BYTES, 0))
    return end is not None and end > status.st_size


def video_stream(source: Any) -> Any:
    """The stream to copy. Raises DecodeError."""
    streams = video_streams(source)
    if not streams:
        raise DecodeError("no_video", "no video stream in it")
    if not is_accepted(streams[0]):
        context = streams[0].codec_context
        name = context.name if context is not None else "unknown"
        raise DecodeError("unsupported_codec", f"codec {name}; accepted: {', '.join(CODECS.values())}")
    return streams[0]


def _open(file: IO[bytes]) -> Any:
    import av

    try:
        return av.open(
            file,
            container_options={"format_whitelist": DEMUXERS, "protocol_whitelist": "none"},
            metadata_errors="replace",
            buffer_size=_READ_BYTES,
        )
    except MemoryError:
        raise
    except av.FFmpegError as error:
        if error.errno == errno.EINVAL:  # the answer to what is not on the whitelist
            raise DecodeError("unsupported_format", f"accepted containers: {DEMUXERS}") from error
        raise DecodeError("not_media", "no video that FFmpeg can read") from error


def packets_of(source: Any, stream: Any) -> Iterator[Any]:
    """Compressed pictures. One without any time is of the picture before it, and takes its time.

    In MPEG-TS the two fields of an interlaced frame are often two packets, of which the first has a time.
    """
    import av

    pts = dts = None
    has_come = False
    try:
        for packet in source.demux(stream):
            if not packet.size:  # the packet at the end that would flush a decoder
                continue
            if packet.pts is None and packet.dts is None and not (pts is None and dts is None):
                packet.pts, packet.dts = pts, dts
                packet.is_keyframe = False  # nothing can be cut between the two
            pts, dts = packet.pts, packet.dts
            has_come = True
            yield packet
    except av.FFmpegError:
        if has_come or not _is_mp4_with_index(source, stream):
            raise
    if not has_come and _is_mp4_with_index(source, stream):
        if source.file is not None and source.size > 0:  # lies here, and is no pipe
            raise DecodeError("damaged", _NO_PICTURE)
        raise DecodeError("unsupported_format", _INDEX_AT_END)


def _is_mp4_with_index(source: Any, stream: Any) -> bool:
    """Whether it is an MP4 that lists all its pictures in one place, not in fragments."""
    return "mp4" in source.format.name and stream.frames > 0


def stated_seconds(source: Any, stream: Any) -> float | None:
    """Length of the whole video as its container states it; None: it does not."""
    import av

    is_read_as_it_comes = source.size <= 0
    if "mp4" in source.format.name and is_read_as_it_comes and not _is_mp4_with_index(source, stream):
        return None  # FFmpeg takes the first fragment's length for that of all
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if not source.duration:
        return None
    # In Matroska as FFmpeg writes it, the time at which the file ends, wherever it starts.
    start_time = max(0, source.start_time or 0) if "matroska" in source.format.name else 0
    length = source.duration - start_time
    return float((length if length > 0 else source.duration) / av.time_base)


def cut(source: Any, stream: Any, chunk_seconds: float) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Fields and data of each segment. Raises DecodeError."""
    time_base = stream.time_base
    video_seconds = stated_seconds(source, stream)
    origin: int | None = None
    start = latest = end = lost = 0
    current: Muxer | None = None
    hidden: list[Any] = []  # of the group of pictures, since its last picture that is shown

    def finished(muxer: Muxer, *, until: int, is_last: bool) -> tuple[dict[str, Any], bytes]:
        nonlocal origin
        origin = start if origin is None else origin
        fields = {
            "start_seconds": float((start - origin) * time_base),
            "duration_seconds": max(float((until - start) * time_base), 0.0),
            "video_seconds": video_seconds,
            "is_last": is_last,
            "lost": lost,
            "format": muxer.format,
        }
        return fields, muxer.finish()

    for packet in packets_of(source, stream):
        if packet.is_corrupt:
            lost += current is not None or not lost  # up to the next keyframe
            if current is not None and origin is None:
                origin = start  # the video begins with what is lost
            current, hidden = None, []
            continue
        pts = packet.dts if packet.pts is None else packet.pts
        if pts is None:
            raise DecodeError("damaged", "the file's video has no timestamps")
        if packet.is_keyframe:
            hidden = []
        if packet.is_discard:  # before or after what an MP4 edit list shows
            hidden.append(packet)
            continue
        first = hidden[0] if hidden else packet
        if current is None and not first.is_keyframe:
            continue  # a recording that was joined in the middle of a group of pictures
        is_joined = first.is_keyframe and not hidden and pts < latest  # recordings one after the other
        if current is None or (
            first.is_keyframe and (hidden or is_joined or (pts - start) * time_base >= chunk_seconds)
        ):
            if current is not None:
                yield finished(current, until=end if hidden or is_joined else pts, is_last=False)
                lost = 0
            if is_joined and origin is not None:  # the clock is set back, the video goes on
                origin, end = origin - (end - pts), pts
            current, start, latest = Muxer(stream, "mp4" if hidden else "matroska"), pts, pts
        if current.format == "mp4":
            start = min(start, pts)  # the first picture shown need not be the first decoded
        if pts >= latest:  # else it is shown before: its duration may be that of a pause, see `decode`
            latest, end = pts, pts + (packet.duration or 0)
        for each in (*hidden, packet):
            current.add(each)  # changes the packet's time base
        hidden = []
    if current is None and lost:
        raise DecodeError("damaged", "the file is cut or damaged")
    if current is None:
        raise DecodeError("no_keyframe", "the file's video has no keyframe")
    yield finished(current, until=end, is_last=True)


class Muxer:
    """Writes one segment."""

    def __init__(self, template: Any, container: str = "matroska") -> None:
        """container: `matroska`, or `mp4`, which can say that its first pictures are not to be shown."""
        import av

        self.format = container
        self._buffer = io.BytesIO()
        options = {"write_crc32": "1"} if container == "matroska" else {}
        self._container = av.open(self._buffer, "w", format=container, options=options)
        # opaque: copy the parameters as they are; PyAV would look for an encoder of the same name otherwise
        self._stream = self._container.add_stream_from_template(template, opaque=True)
        self._waiting: list[Any] = []

    def add(self, packet: Any) -> None:
        if self.format == "mp4":
            self._waiting.append(packet)  # until all are here that say which is shown first
            return
        packet.stream = self._stream
        self._container.mux(packet)

    def finish(self) -> bytes:
        shown_from = min((packet.pts for packet in self._waiting if not packet.is_discard), default=0)
        for packet in self._waiting:  # FFmpeg's edit list hides what is before 0
            packet.pts, packet.dts = packet.pts - shown_from, packet.dts - shown_from
            packet.stream = self._stream
            self._container.mux(packet)
        self._container.close()
        return self._buffer.getvalue()


if __name__ == "__main__":
    main()
