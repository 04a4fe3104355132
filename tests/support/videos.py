"""Small videos for tests."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image

RECORD = {"request": {"prompt": 'quotes " and \\ and = ; # and\na line, \N{ROCKET}'}}


def grey_video(path: Path, levels: list[int], record: object = RECORD) -> Path:
    """A video of one even grey a frame, eight frames a second."""
    frames = [np.full((32, 48, 3), level, np.uint8) for level in levels]
    if path.suffix == ".gif":
        pictures = [Image.fromarray(frame) for frame in frames]
        comment = json.dumps(record).encode()
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=125, comment=comment)
        return path
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "48x32"]
    command += ["-r", "8", "-i", "-", "-pix_fmt", "yuv420p", "-metadata", f"comment={json.dumps(record)}", str(path)]
    subprocess.run(command, input=np.stack(frames).tobytes(), check=True)
    return path
