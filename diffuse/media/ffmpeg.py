"""The ffmpeg program, which imageio-ffmpeg finds: frames go in one at a time, so that a film stands in memory once."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from diffuse.errors import MediaError

_SECONDS = 120  # for one call that reads a file
# What it says of a file whose end is missing, or which holds something else in between; other messages are of no harm.
_DAMAGED = re.compile("partial file|ended prematurely|damaged|corrupt|Invalid data|error while decoding", re.IGNORECASE)


def ffmpeg_program() -> str:
    """Returns the path of the ffmpeg program.

    Raises:
        MediaError: there is none.
    """
    try:
        import imageio_ffmpeg

        program = str(imageio_ffmpeg.get_ffmpeg_exe())
        if shutil.which(program) is None:  # one that the environment names is not looked for there
            raise FileNotFoundError(program)
        return program
    except (ImportError, RuntimeError, FileNotFoundError) as error:
        hint = "install imageio-ffmpeg with its program, or name one in IMAGEIO_FFMPEG_EXE"
        raise MediaError(f"films and sound are read and written by ffmpeg, and there is none; {hint}") from error


def feed_frames(options: Sequence[str], frames: Iterable[np.ndarray]) -> None:
    """Runs ffmpeg with these options and writes `frames`, `[H, W, 3]` each, to its standard input.

    Raises:
        OSError: it failed, for instance because the disk is full.
    """
    command = [ffmpeg_program(), "-v", "error", "-nostdin", "-y", *options]
    with tempfile.TemporaryFile() as messages:  # not a pipe, which would fill up while nobody reads it
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=messages)
        try:
            assert process.stdin is not None
            try:
                for frame in frames:
                    process.stdin.write(np.ascontiguousarray(frame).data)
                process.stdin.close()
            except BrokenPipeError:  # it has ended; its message says why
                pass
            status = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        if status != 0:
            messages.seek(0)
            lines = messages.read().decode(errors="replace").strip().splitlines() or [f"exit status {status}"]
            raise OSError(f"ffmpeg: {lines[-1]}")


def stream_frames(
    path: Path, size: tuple[int, int], *, before: Sequence[str] = (), after: Sequence[str] = ()
) -> Iterator[np.ndarray]:
    """Yields the frames of the first video stream of a file, uint8 RGB `[H, W, 3]`, one at a time.

    Args:
        size: width and height in pixels of the frames that come.
        before: ffmpeg's options of the input.
        after: those of the output.

    Raises:
        MediaError: there is no ffmpeg; or the file is cut short or damaged, which is known after the last frame.
    """
    command = [ffmpeg_program(), "-v", "error", "-nostdin", *before, "-i", file_url(path), "-map", "0:v:0", *after]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    width, height = size
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=messages)
        try:
            assert process.stdout is not None
            while len(content := process.stdout.read(3 * width * height)) == 3 * width * height:
                yield np.frombuffer(content, np.uint8).reshape(height, width, 3)
            process.wait()
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        messages.seek(0)
        text = messages.read().decode(errors="replace")
    if process.returncode or content or _DAMAGED.search(text):
        raise MediaError(f"{path} is cut short or damaged; copy it again")


def convert_media(path: Path, *output: str, target: str = "-") -> bytes:
    """Returns what ffmpeg writes of a file with these options, or has it write that to `target`.

    Raises:
        MediaError: there is no such file, it has not what is asked for, or there is no ffmpeg.
    """
    if not path.is_file():
        raise MediaError(f"{path}: there is no such file; give a video that diffuse made")
    command = [ffmpeg_program(), "-v", "error", "-y", "-i", file_url(path), *output, target]
    try:
        process = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=True)
    except subprocess.SubprocessError as error:
        raise MediaError(f"{path} is no video that can be read, or is damaged; give one that diffuse made") from error
    return process.stdout


def file_url(path: Path) -> str:
    """Returns a name that ffmpeg takes for a file, and not for an option, a protocol or a pattern."""
    return f"file:{path.absolute()}"
