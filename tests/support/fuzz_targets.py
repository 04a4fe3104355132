# ruff: noqa: E501
"""What is fuzzed: for each target, inputs that are made from a generator, and what reads them.

A target's `check` returns where the input was read or refused as it should be. Any other error is a finding.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import warnings
from abc import abstractmethod
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from checkpoint_files import fill, tensors
from command import diffuse
from mutations import json_bytes, mutated, mutated_json, with_checksums
from odd_texts import PIECES
from PIL import Image
from raw_png import chunk, png, wide_png
from safetensors.torch import save

from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.config.compose import compose_config
from diffuse.config.groups import TINY, group_options
from diffuse.config.request import draft_requests
from diffuse.errors import CheckpointError, DiffuseError
from diffuse.media.images import read_image, read_mask
from diffuse.media.load import image_sha256, read_record
from diffuse.media.save import save_media
from diffuse.record.recorded_run import read_recorded_run
from diffuse.reproduce.reproduction import build_reproduction

TINY_RUN = ("model=tiny", "hardware=cpu", "seed=0", "num_inference_steps=1", "hardware.threads=1", "tracking=none")


class Target:
    """One kind of input. `folder` is for its files, and is kept for all inputs of the target."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def check(self, random: Random) -> None:
        """Makes one input, and has it read. Raises AssertionError where it is not refused as it should be."""


def one_line(error: DiffuseError) -> None:
    """Checks that an error is told in one line that says something."""
    text = str(error)
    assert text.strip() and "\n" not in text and len(text) < 20_000, f"not one line: {text[:500]!r}"


class Pictures(Target):
    """Input pictures and masks."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.corpus = list(_pictures())

    def check(self, random: Random) -> None:
        content = mutated(random.choice(self.corpus), random, self.corpus)
        if content[:4] == b"\x89PNG" and random.random() < 0.7:
            content = with_checksums(content)
        path = self.folder / "picture"
        path.write_bytes(content)
        for read, shape in ((read_image, 3), (read_mask, 2)):
            try:
                found = read(str(path))
            except DiffuseError as error:
                one_line(error)
            else:
                assert found.pixels.dtype == np.uint8 and found.pixels.ndim == shape and found.pixels.size
                assert all("\n" not in note for note in found.notes)
        path.unlink()


def _pictures() -> Any:
    """Yields small pictures of every format and mode that is read."""
    values = np.random.default_rng(0).integers(0, 256, (9, 13, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x011A] = 72.5
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "YCbCr"):
        if mode == "I;16":
            picture = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
        else:
            picture = Image.fromarray(values).convert("RGBA" if mode == "RGBA" else "RGB").convert(mode)
        for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "TGA", "AVIF", "JPEG2000", "QOI", "ICO"):
            for options in ({}, {"exif": exif}, {"compression": "tiff_lzw"}, {"progressive": True}, {"save_all": True}):
                buffer = io.BytesIO()
                try:
                    picture.save(buffer, kind, **options)
                except (OSError, ValueError, KeyError):
                    continue
                if options and buffer.getvalue() == b"":
                    continue
                yield buffer.getvalue()
    wide = values.astype(np.uint16)[..., :3] * 257
    yield wide_png(wide, chunk(b"tRNS", bytes(range(6))), chunk(b"eXIf", exif.tobytes()[6:]))
    text = chunk(b"tEXt", b"Comment\0hello") + chunk(b"zTXt", b"Raw profile type exif\0\0abc")
    yield png(
        (13, 9, 4, 0), b"".join(b"\0" + row[:7].tobytes() for row in values[..., 0]), chunk(b"tRNS", b"\0\3"), text
    )


class Records(Target):
    """Pictures with a record, and record.json, as `diffuse reproduce` and `diffuse compare` read them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        made = folder.parent / "made"
        (path,) = diffuse(*TINY_RUN, f"output.dir={made}", "scheduler=ddim", cwd=folder.parent).paths
        self.record = read_record(path)
        self.record["config"]["output"]["dir"] = "out"
        self.corpus = {}
        for suffix in ("png", "jpg", "webp", "tiff"):
            saved = save_media(
                np.zeros((1, 8, 8, 3), np.uint8), made, "x", format=suffix, record=self.record, parameters="a"
            )
            self.corpus[suffix] = saved.read_bytes()
        self.corpus["json"] = json.dumps({**self.record, "images": [self.record["image"]]}).encode()

    def check(self, random: Random) -> None:
        suffix = random.choice(list(self.corpus))
        if random.random() < 0.5:
            content = mutated(self.corpus[suffix], random, list(self.corpus.values()))
            if suffix == "png" and random.random() < 0.7:
                content = with_checksums(content)
        elif suffix == "json":
            content = json_bytes(mutated_json(json.loads(self.corpus["json"]), random), random)
        else:
            content = self._with_record(mutated_json(self.record, random), suffix)
        path = self.folder / f"picture.{suffix}"
        path.write_bytes(content)
        try:
            for read in (read_recorded_run, image_sha256, lambda path: build_reproduction(read_recorded_run(path))):
                try:
                    read(path)
                except DiffuseError as error:
                    one_line(error)
        finally:
            path.unlink()

    def _with_record(self, record: Any, suffix: str) -> bytes:
        """Returns a picture with any JSON value as its record; what no file can hold becomes null."""
        text = json.loads(
            json.dumps(record, allow_nan=True)
            .replace("-Infinity", "null")
            .replace("Infinity", "null")
            .replace("NaN", "null")
        )
        saved = save_media(
            np.zeros((1, 8, 8, 3), np.uint8), self.folder, "made", format=suffix, record=text, parameters="a"
        )
        content = saved.read_bytes()
        saved.unlink()
        return content


class Checkpoints(Target):
    """Configurations and tokenizer files of a checkpoint, of which a picture is made where they can be read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.source = folder.parent / "checkpoint"
        shutil.copytree(TINY, self.source, copy_function=os.symlink)
        self.files = [path for path in sorted(TINY.rglob("*")) if path.suffix in (".json", ".txt")]

    def check(self, random: Random) -> None:
        file = random.choice(self.files)
        path = self.source / file.relative_to(TINY)
        content = file.read_bytes()
        if file.suffix == ".json" and random.random() < 0.85:
            content = json_bytes(mutated_json(json.loads(content), random), random)
        else:
            content = mutated(content, random, [content])
        path.unlink()
        path.write_bytes(content)
        try:
            ended(self.folder, *TINY_RUN, f"model.source={self.source}", "output.dir=out")
        finally:
            path.unlink()
            path.symlink_to(file)


def ended(folder: Path, *arguments: str) -> None:
    """Runs a command, which must make its pictures, or say in lines why it did not, and leave nothing."""
    done = diffuse(*arguments, cwd=folder)
    assert done.status in (None, 0, 1, 2), done.status
    assert "Traceback" not in done.err, done.err
    if done.status in (1, 2):
        lines = [line for line in done.err.splitlines() if line.startswith("diffuse: ")]
        assert len(lines) == 1 and not done.out, (done.out, done.err)
        assert not list(folder.rglob("*.*")), list(folder.rglob("*"))
    shutil.rmtree(folder / "out", ignore_errors=True)


class Weights(Target):
    """Files of weights, their headers above all."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.whole = save(tensors(), metadata={"format": "pt"})
        component = folder / "unet"
        component.mkdir()
        (folder / "model_index.json").write_text('{"_class_name": "P", "unet": ["diffusers", "X"]}')
        (component / "config.json").write_text("{}")
        self.path = component / "diffusion_pytorch_model.safetensors"

    def check(self, random: Random) -> None:
        length = int.from_bytes(self.whole[:8], "little")
        header, data = self.whole[8 : 8 + length], self.whole[8 + length :]
        if random.random() < 0.6:
            header = json_bytes(mutated_json(json.loads(header), random), random)
            content = len(header).to_bytes(8, "little") + header + data
        else:
            content = mutated(self.whole, random, [self.whole])
        self.path.write_bytes(content)
        try:
            fill(CheckpointFolder.open(self.folder))
        except CheckpointError as error:
            one_line(error)
        self.path.unlink()


class Overrides(Target):
    """Lines of overrides, as the command and Python compose them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        groups = ("model", "scheduler", "memory_profile", "hardware", "tracking", "experiment", "refiner", "report")
        self.groups = {name: [*group_options(name), "x"] for name in groups if group_options(name)}
        cfg = compose_config(["model=tiny"])
        self.fields = [str(name) for name in cfg if str(name) not in self.groups]
        self.nested = [f"{group}.{name}" for group in cfg if hasattr(cfg[group], "keys") for name in cfg[group]]

    def check(self, random: Random) -> None:
        overrides = [self._override(random) for _ in range(random.choice((1, 1, 2, 3, 6)))]
        try:
            draft_requests(compose_config(overrides))
        except DiffuseError as error:
            one_line(error)
        if random.random() < 0.3:
            ended(self.folder, *(each for each in overrides if each not in ("-m", "--")), "--cfg", "job")

    def _override(self, random: Random) -> str:
        kind = random.random()
        if kind < 0.25:
            group = random.choice(list(self.groups))
            return f"{random.choice(('', '', '+', '~', '++'))}{group}={random.choice(self.groups[group])}"
        if kind < 0.9:
            prefix = random.choice(("", "", "", "+", "++", "~", "@", "hydra."))
            return (
                f"{prefix}{random.choice(self.fields + self.nested)}{random.choice(('=', '=', '=', '', '==', '@', ':'))}"
                + self._value(random)
            )
        return self._value(random)

    def _value(self, random: Random) -> str:
        values = (
            "0",
            "1",
            "-1",
            "1e400",
            "nan",
            "inf",
            "null",
            "true",
            "abc",
            "",
            "0.5",
            "[]",
            "{}",
            "[1,2",
            "a,b",
            "64",
        )
        if random.random() < 0.5:
            return random.choice(values)
        return "".join(random.choice(PIECES) for _ in range(random.randrange(6)))


TARGETS: dict[str, type[Target]] = {
    "pictures": Pictures,
    "records": Records,
    "checkpoints": Checkpoints,
    "weights": Weights,
    "overrides": Overrides,
}
warnings.simplefilter("ignore")
