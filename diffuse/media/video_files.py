"""Writers of films: MP4, WebM, GIF, animated WebP and AVIF, and of sound alone, through ffmpeg.

Frames go to ffmpeg one at a time, so that a film stands in memory once. Rates, colours and lengths are stated, and
nothing of the machine or the hour goes into a file: the same film gives the same bytes.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffuse.media.encoders import encode_png
from diffuse.media.ffmpeg import feed_frames, file_url
from diffuse.media.files import temporary_name, unfinished
from diffuse.media.metadata import XMP_BOX, exif_data, printable, record_json, xmp_packet
from diffuse.media.video import SOUND_FILE

_COLOURS = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]
_TO_BT709 = "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int,format=yuv420p"
_EXACT = ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-flags:a", "+bitexact"]
_PALETTE_FRAMES = 16  # of a film, from which the 256 colours of a GIF are chosen
_PALETTE_SIDE = 256  # pixels, of these frames
_FRAME_NAME = "frame_{:05}.png"
_LONGEST_RATE = 100_000  # the largest denominator of a rate: 24000/1001 and its like are exact


@dataclass(frozen=True)
class Clip:
    """Frames with their rate, and sound with its own."""

    frames: np.ndarray
    """uint8 RGB `[F, H, W, 3]`."""
    fps: float
    """Frames a second; it need not be whole."""
    sound: np.ndarray | None = None
    """float32 `[C, S]` from -1 to 1; None where there is none."""
    sample_rate: int | None = None
    """Samples of sound a second."""


def write_mp4(clip: Clip, path: Path, record: Mapping[str, Any], parameters: str, quality: int) -> None:
    """Writes H.264 and AAC, which every browser and player shows.

    H.264 in the layout that they read has sides of even length; an odd one gets its last row or column once more.
    """
    rate = ["-c:v", "libx264", "-preset", "medium", "-crf", str(_between(quality, 42, 8))]
    sound = ["-c:a", "aac", "-b:a", "192k"]
    container = ["-movflags", "+faststart", "-f", "mp4"]
    _encode(clip, path, ["-vf", _TO_BT709, *rate, *_COLOURS, *sound, *container], (record, parameters), even=True)


def write_webm(clip: Clip, path: Path, record: Mapping[str, Any], parameters: str, quality: int) -> None:
    """Writes VP9 and Opus, which are free to use."""
    rate = ["-c:v", "libvpx-vp9", "-crf", str(_between(quality, 60, 8)), "-b:v", "0"]
    speed = ["-deadline", "good", "-cpu-used", "2", "-row-mt", "1"]
    sound = ["-c:a", "libopus", "-b:a", "160k"]
    _encode(clip, path, ["-vf", _TO_BT709, *rate, *speed, *_COLOURS, *sound, "-f", "webm"], (record, parameters))


def write_gif(clip: Clip, path: Path, record: Mapping[str, Any], parameters: str, quality: int) -> None:
    """Writes a GIF of 256 colours, the same for all frames, so that still areas do not flicker. It has no sound.

    It counts time in hundredths of a second: the frames of other rates come at the nearest.
    """
    with _palette(clip.frames) as palette:
        colours = ["-i", file_url(palette), "-lavfi", "[0:v][1:v]paletteuse=dither=sierra2_4a"]
        _encode(clip, path, ["-f", "gif"], None, inputs=colours, sound=False)
    content = path.read_bytes()
    place = 13 + (3 << (content[10] & 7) + 1 if content[10] & 0x80 else 0)  # behind the screen and its colours
    text = record_json(record, ascii_only=True).encode("ascii")
    blocks = b"".join(bytes([len(part)]) + part for part in _parts(text, 255))
    path.write_bytes(content[:place] + b"\x21\xfe" + blocks + b"\0" + content[place:])


def write_webp(clip: Clip, path: Path, record: Mapping[str, Any], parameters: str, quality: int) -> None:
    """Writes an animated WebP that is played for ever. It has no sound.

    Source: "WebP Container Specification", Google, sections Extended File Format and Metadata.
    """
    rate = ["-c:v", "libwebp_anim", "-quality", str(quality), "-lossless", "0", "-compression_level", "4"]
    _encode(clip, path, [*rate, "-loop", "0", "-f", "webp"], None, sound=False)
    content = bytearray(path.read_bytes())
    if content[12:16] != b"VP8X":  # of one frame; a film is always extended
        raise OSError("ffmpeg wrote no animation")
    content[20] |= 0x08  # it has EXIF data
    exif = exif_data(record, parameters)
    content += b"EXIF" + struct.pack("<I", len(exif)) + exif + bytes(len(exif) % 2)
    content[4:8] = struct.pack("<I", len(content) - 8)
    path.write_bytes(content)


def write_avif(clip: Clip, path: Path, record: Mapping[str, Any], parameters: str, quality: int) -> None:
    """Writes an animated AVIF. It has no sound. The record is the description in an XMP packet behind the film.

    Sources: ISO/IEC 14496-12, "ISO base media file format", section 4.2; Adobe, "XMP Specification Part 3", section
    1.2.7.1.
    """
    colours = "scale=out_color_matrix=bt709:out_range=pc:flags=accurate_rnd+full_chroma_int,format=yuv444p"
    rate = ["-c:v", "libaom-av1", "-crf", str(_between(quality, 60, 8)), "-cpu-used", "6", "-row-mt", "1"]
    tags = [*_COLOURS[:-1], "pc"]
    _encode(clip, path, ["-vf", colours, *rate, *tags, "-f", "avif"], None, sound=False)
    packet = xmp_packet(record_json(record, ascii_only=True))
    with open(path, "ab") as file:
        file.write(struct.pack(">I", 8 + len(XMP_BOX) + len(packet)) + b"uuid" + XMP_BOX + packet)


def write_wav(clip: Clip, path: Path, record: Mapping[str, Any], parameters: str, quality: int) -> None:
    """Writes the sound alone, 16 bits a sample; the clip has some."""
    with _metadata_file(path.parent, record, parameters) as metadata, _sound_file(path.parent, clip) as sound:
        tags = ["-f", "ffmetadata", "-i", file_url(metadata), "-map_metadata", "1", "-map", "0:a"]
        feed_frames([*_sound_input(clip, sound), *tags, "-c:a", "pcm_s16le", *_EXACT, "-f", "wav", file_url(path)], ())


def write_frames(clip: Clip, folder: Path, record: Mapping[str, Any], parameters: str) -> None:
    """Writes each frame as a PNG, the first with the record, and `sound.wav` where there is sound, into `folder`."""
    for index, frame in enumerate(clip.frames):
        content = encode_png(frame, record, parameters, 100) if index == 0 else encode_png(frame, {}, "", 100)
        (folder / _FRAME_NAME.format(index)).write_bytes(content)
    if clip.sound is not None:
        write_wav(clip, folder / SOUND_FILE, record, parameters, 100)


def _encode(
    clip: Clip,
    path: Path,
    output: Sequence[str],
    texts: tuple[Mapping[str, Any], str] | None,
    *,
    inputs: Sequence[str] = (),
    even: bool = False,
    sound: bool = True,
) -> None:
    """Feeds the frames to ffmpeg, which writes the file at `path`.

    Args:
        output: ffmpeg's options of the file.
        texts: the record and the parameters, where the container has a place for a comment.
        inputs: further inputs, with their options.
        even: repeats the last row or column where a side is odd.
    """
    count, height, width, _ = clip.frames.shape
    bottom, right = (height % 2, width % 2) if even else (0, 0)
    rate = Fraction(clip.fps).limit_denominator(_LONGEST_RATE)
    size = f"{width + right}x{height + bottom}"
    options = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-framerate", f"{rate}", "-i", "pipe:0", *inputs]
    folder = path.parent
    with _metadata_file(folder, *(texts or ({}, ""))) as metadata, _sound_file(folder, clip, used=sound) as sound_path:
        index = 1
        maps = [] if inputs else ["-map", "0:v"]
        if sound_path is not None:
            options += _sound_input(clip, sound_path)
            maps += ["-map", f"{index}:a"]
            index += 1
        if texts is not None:
            options += ["-f", "ffmetadata", "-i", file_url(metadata)]
            maps += ["-map_metadata", str(index)]
        frames = (
            frame if not (bottom or right) else np.pad(frame, ((0, bottom), (0, right), (0, 0)), "edge")
            for frame in clip.frames
        )
        # As many frames as there are: nothing is doubled or dropped to keep a rate.
        exactly = ["-fps_mode", "passthrough", "-frames:v", str(count)]
        feed_frames([*options, *maps, *exactly, *_EXACT, *output, file_url(path)], frames)


def _sound_input(clip: Clip, path: Path) -> list[str]:
    assert clip.sound is not None
    return ["-f", "f32le", "-ar", str(clip.sample_rate), "-ac", str(len(clip.sound)), "-i", file_url(path)]


@contextmanager
def _sound_file(folder: Path, clip: Clip, *, used: bool = True) -> Iterator[Any]:
    """Gives a file of the sound, float32 samples channel by channel; None where there is no sound, or it is not
    `used`."""
    if clip.sound is None or not used:
        yield None
        return
    samples = np.clip(clip.sound, -1, 1).astype("<f4").T
    with _temporary_file(folder, np.ascontiguousarray(samples).tobytes()) as path:
        yield path


@contextmanager
def _metadata_file(folder: Path, record: Mapping[str, Any], parameters: str) -> Iterator[Path]:
    """Gives a file of ffmpeg's metadata: the record as the comment, the parameters as the description."""
    values = {"comment": record_json(record, ascii_only=False), "description": printable(parameters)}
    lines = [f"{name}={_escaped(value)}\n" for name, value in values.items() if value]
    with _temporary_file(folder, (";FFMETADATA1\n" + "".join(lines)).encode()) as path:
        yield path


def _escaped(text: str) -> str:
    """Returns `text` as a value in a file of ffmpeg's metadata."""
    return "".join(f"\\{each}" if each in "=;#\\\n" else each for each in text)


@contextmanager
def _palette(frames: np.ndarray) -> Iterator[Path]:
    """Gives a picture of 16 x 16 pixels with the 256 colours that serve `frames` best."""
    count, height, width, _ = frames.shape
    step = -(-max(height, width) // _PALETTE_SIDE)
    chosen = np.unique(np.linspace(0, count - 1, min(count, _PALETTE_FRAMES)).round().astype(int))
    sample = Image.fromarray(np.concatenate([frames[index, ::step, ::step] for index in chosen]))
    colours = sample.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).getpalette() or []
    colours += [0] * (3 * 256 - len(colours))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "palette.png"
        Image.fromarray(np.asarray(colours, np.uint8).reshape(16, 16, 3)).save(path)
        yield path


@contextmanager
def _temporary_file(folder: Path, content: bytes) -> Iterator[Path]:
    path = folder / temporary_name()
    with unfinished(path):
        path.write_bytes(content)
        yield path


def _between(quality: int, worst: int, best: int) -> int:
    """Returns the rate factor of a quality from 1 to 100."""
    return round(worst + (best - worst) * (quality - 1) / 99)


def _parts(content: bytes, size: int) -> Iterator[bytes]:
    return (content[start : start + size] for start in range(0, len(content), size))
