"""A picture as a film's compression leaves it: models of films learned from frames that had been through it."""

from __future__ import annotations

import subprocess

import numpy as np

from diffuse.errors import MediaError
from diffuse.media.ffmpeg import ffmpeg_program

WORST = 51  # H.264's largest constant rate factor
_SECONDS = 120  # for one call of ffmpeg


def compress_picture(pixels: np.ndarray, crf: int) -> np.ndarray:
    """Returns pixels `[H, W, 3]`, uint8, as H.264 leaves them at a constant rate factor, `[H, W, 3]` of even sides.

    Raises:
        MediaError: there is no ffmpeg, or it cannot compress the picture.
    """
    height, width = (side // 2 * 2 for side in pixels.shape[:2])
    if not height or not width:
        raise MediaError(f"a picture of {pixels.shape[1]} x {pixels.shape[0]} pixels cannot be compressed; input_crf=0")
    size = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", "1", "-i", "-"]
    rate = ["-c:v", "libx264", "-preset", "veryfast", "-crf", str(crf), "-pix_fmt", "yuv420p", "-threads", "1"]
    film = _run([*size, *rate, "-f", "h264", "-"], np.ascontiguousarray(pixels[:height, :width]).tobytes())
    raw = _run(["-f", "h264", "-i", "-", "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], film)
    return np.frombuffer(raw, np.uint8).reshape(height, width, 3)


def _run(options: list[str], content: bytes) -> bytes:
    """Returns what ffmpeg makes of `content`."""
    command = [ffmpeg_program(), "-v", "error", *options]
    try:
        process = subprocess.run(command, input=content, capture_output=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise MediaError("ffmpeg cannot compress the input_image; set input_crf=0, which leaves it as it is") from error
    return process.stdout
