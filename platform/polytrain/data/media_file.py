"""What every decoder needs of a media file: the reason it can't be read, limits of size and time, opening it."""

from __future__ import annotations

import io
import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import av
from av.container import InputContainer
from av.stream import Discard, Disposition, Stream

MAX_PIXELS = 100_000_000
"""Largest picture that is decoded, width x height: 300 MB of RGB; checked in the header, before memory is taken."""

CONTAINERS = "mov,matroska,avi,wav,w64,flac,mp3,ogg,aac,mpegts,mpeg,flv,asf,aiff,gif,caf,au"
"""FFmpeg demuxers that are tried. Others (playlists, text art, image sequences) open further files or invent frames."""


class DecodeError(Exception):
    """A media file can't be decoded; the text is a short reason without the file's name, which the caller knows."""


class Deadline:
    """The moment a decode must be over; `check()` stands between frames, packets and other bounded pieces of work."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.end = time.monotonic() + limit_s

    def remaining(self) -> float:
        return self.end - time.monotonic()

    def check(self) -> None:
        if self.remaining() <= 0:
            self.expire()

    def expire(self, *_: object) -> None:
        raise DecodeError(f"took longer than {self.limit_s:g} s")


@contextmanager
def time_limit(limit_s: float) -> Iterator[Deadline]:
    """Raises DecodeError in the block after `limit_s` seconds of wall clock.

    In the main thread of a process an alarm interrupts, so that Python code without checks is bounded too; the
    caller's handler and timer are put back afterwards. In other threads only `Deadline.check` counts. Neither breaks
    a single call into C that never returns (a stalled network mount): for that the process has to be killed.
    """
    deadline = Deadline(limit_s)
    if threading.current_thread() is not threading.main_thread():
        yield deadline
        return
    handler = signal.signal(signal.SIGALRM, deadline.expire)
    timer_left, timer_interval = signal.setitimer(signal.ITIMER_REAL, max(limit_s, 1e-6))
    started = time.monotonic()
    try:
        yield deadline
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        # None: a handler that was not installed from Python can't be put back.
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
        if timer_left:
            signal.setitimer(signal.ITIMER_REAL, max(timer_left - (time.monotonic() - started), 1e-6), timer_interval)


def check_present(source: str | bytes) -> None:
    """Refuses what is no file with something in it: opening a pipe would wait for ever."""
    if isinstance(source, bytes):
        size = len(source)
    else:
        status = os.stat(source)
        if stat.S_ISDIR(status.st_mode):
            raise DecodeError("a folder, not a file")
        if not stat.S_ISREG(status.st_mode):
            raise DecodeError("not a regular file")
        size = status.st_size
    if size == 0:
        raise DecodeError("empty file")


def check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DecodeError(f"{width} x {height} pixels, over the limit of {MAX_PIXELS:,} pixels")


@contextmanager
def open_container(source: str | bytes, deadline: Deadline) -> Iterator[InputContainer]:
    """Opens a video or audio file with FFmpeg; its content says what it is, not its name."""
    # "file:" keeps FFmpeg from reading a name such as "concat:a|b" or "http://..." as a protocol.
    file = io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}"
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:
        container = av.open(file, options=options, metadata_errors="replace", timeout=max(deadline.remaining(), 0.01))
    except av.ArgumentError as error:
        raise DecodeError("not a video or audio container that is read here") from error
    with container:
        yield container


def only_stream(container: InputContainer, kind: str) -> Stream:
    """The first real stream of a kind ("video" or "audio"); packets of all others are skipped without being read.

    A cover picture in a sound file is no video.
    """
    streams = [s for s in getattr(container.streams, kind) if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise DecodeError(f"no {kind} stream")
    for other in container.streams:
        if other.index != streams[0].index:
            other.discard = Discard.all
    stream = streams[0]
    if stream.codec_context is None:
        raise DecodeError(f"{kind} codec unknown to this FFmpeg")
    # Decode workers are processes, one a core: a second thread in each costs CPU time (11-28 % measured).
    stream.codec_context.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    return stream


def rewind(container: InputContainer, stream: Stream) -> None:
    """Back to the stream's first packet."""
    start = stream.start_time or 0
    try:
        # Matroska skips the first packet when sent to its very time; sent before it, it stays.
        container.seek(start - int(1 / stream.time_base), stream=stream)
    except av.PermissionError:  # AVI and MP3 refuse times before the beginning
        container.seek(start, stream=stream)
