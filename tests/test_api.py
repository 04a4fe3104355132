"""The Python interface: the same pictures as the command's, and what only Python can hand over."""

from __future__ import annotations

import io
import json
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from command import SMOKE, smoke
from command import diffuse as command
from PIL import Image

import diffuse
from diffuse import terminal
from diffuse.errors import CheckpointError, ConfigError, DiffuseError, MediaError
from diffuse.media.load import read_record
from diffuse.media.pixels import pixels_sha256
from diffuse.sampling.results import Step

TINY = Path(diffuse.__file__).parent / "tiny" / "checkpoint"
PROMPT = 'a cactus, "${x}" = [1], on a pink background'
QUICK: dict[str, Any] = {  # as command.SMOKE
    "seed": 0,
    "num_inference_steps": 1,
    "hardware": "cpu",
    "memory_profile": "cpu_only",
    "overrides": ["hardware.threads=1"],
    "progress": False,
}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_torch_is_left_as_it_was() -> None:
    before = torch.get_deterministic_debug_mode(), torch.get_num_threads()
    torch.set_deterministic_debug_mode("warn")
    torch.set_num_threads(2)
    try:
        diffuse.txt2img("a cactus", **QUICK)
        pipeline = diffuse.load_pipeline("tiny", overrides=["hardware.deterministic=strict", "hardware.threads=1"])
        pipeline.encode("a cactus")
        with pytest.raises(DiffuseError, match="clip_skip"):
            pipeline.txt2img("a cactus", clip_skip=99)
        assert (torch.get_deterministic_debug_mode(), torch.get_num_threads()) == (1, 2)
    finally:
        torch.set_deterministic_debug_mode(before[0])
        torch.set_num_threads(before[1])


@pytest.mark.parametrize("wrong", [{"overrides": [3]}, {"overrides": "seed=3"}, {"overrides": 3}, {"on_step": 3}])
def test_an_argument_of_another_type_is_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        diffuse.txt2img("a cactus", **{**QUICK, **wrong})


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture without symmetry, of another size than the model's."""
    rows, columns = np.mgrid[0:72, 0:80]
    Image.fromarray(np.stack([columns * 3, rows * 3, rows + columns], axis=-1).astype(np.uint8)).save(
        tmp_path / "p.png"
    )
    return tmp_path / "p.png"


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    half = np.zeros((72, 80), np.uint8)
    half[:, :40] = 255
    Image.fromarray(half).save(tmp_path / "m.png")
    return tmp_path / "m.png"


def test_importing_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, diffuse; assert 'txt2img' in dir(diffuse); "
        "print([name for name in ('torch', 'mlflow', 'hydra', 'numpy', 'PIL', 'diffuse.api') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    with pytest.raises(AttributeError, match="txt2image"):
        diffuse.txt2image  # noqa: B018
    assert all(getattr(diffuse, name) for name in diffuse.__all__)


def test_txt2img_is_the_command(tmp_path: Path) -> None:
    made = diffuse.txt2img(PROMPT, num_images=2, guidance_scale=2.5, scheduler="euler", **QUICK)
    words = (f"prompt={PROMPT}", "num_images=2", "guidance_scale=2.5", "scheduler=euler", "output.dir=out")
    paths = [tmp_path / path for path in smoke(*words, cwd=tmp_path).paths]
    assert [np.array_equal(image, pixels(path)) for image, path in zip(made.images, paths, strict=True)] == [True] * 2
    assert {image.mode for image in made.images} == {"RGB"}
    for ours, theirs in zip(made.records, map(read_record, paths), strict=True):
        for key in ("request", "weights", "hardware", "determinism", "versions", "git", "inputs", "image"):
            assert ours[key] == theirs[key], key
        assert ours["config"]["scheduler"] == theirs["config"]["scheduler"]
    assert f"prompt={PROMPT}" in made.record["overrides"]
    assert set(made.timings) >= {"denoise_s", "total_s"} and len(made.step_seconds) == 1
    assert made.memory["rss_peak_gib"] > 0 and made.warnings == [] and made.paths == []
    assert repr(made).startswith("<Generation: 2 pictures, 64 x 64, seeds 0 to 1, ")


def test_img2img_is_the_command_whatever_the_picture_comes_in(photo: Path, tmp_path: Path) -> None:
    quick = QUICK | {"num_inference_steps": 2}
    words = (f"input_image={photo}", "strength=0.5", "resize=crop", "width=64", "height=64", "num_inference_steps=2")
    expected = pixels(tmp_path / smoke(*words, "prompt=a cat", "output.dir=out", cwd=tmp_path).paths[0])
    for picture in (photo, Image.open(photo), pixels(photo) / 255):
        made = diffuse.img2img("a cat", picture, strength=0.5, resize="crop", width=64, height=64, **quick)
        assert np.array_equal(made.frames[0, 0], expected)
        given = made.record["inputs"]["input_image"]
        assert given["file"] == (str(photo) if isinstance(picture, str | Path) else None)
        assert (given["width"], given["height"], len(given["sha256"])) == (80, 72, 64)
        assert len(made.step_seconds) == 1


def test_inpaint_is_the_command(photo: Path, mask: Path, tmp_path: Path) -> None:
    words = (f"input_image={photo}", f"mask_image={mask}", "keep_unmasked=true", "prompt=a cat", "output.dir=out")
    expected = pixels(tmp_path / smoke(*words, cwd=tmp_path).paths[0])
    for given in (mask, pixels(mask)[..., 0] > 0):
        made = diffuse.inpaint("a cat", Image.open(photo), given, keep_unmasked=True, **QUICK)
        assert np.array_equal(made.frames[0, 0], expected)
    assert np.array_equal(made.frames[0, 0][:, 40:], pixels(photo)[:, 40:])
    assert not np.array_equal(made.frames[0, 0], diffuse.inpaint("a cat", photo, mask, **QUICK).frames[0, 0])


def test_a_pipeline_keeps_what_it_was_told(photo: Path) -> None:
    fields = {name: value for name, value in QUICK.items() if name != "progress"}
    pipeline = diffuse.load_pipeline(TINY, guidance_scale=3, **fields)  # of any folder, with its family's defaults
    assert isinstance(pipeline, diffuse.Pipeline)
    expected = diffuse.txt2img("a cat", scheduler="euler", **QUICK | {"seed": 3})
    assert np.array_equal(
        pipeline("a cat", seed=3, scheduler="euler", progress=False).frames[:, 0], expected.frames[:, 0]
    )
    assert np.array_equal(
        pipeline.img2img("a cat", photo, strength=1, progress=False).frames[:, 0],
        diffuse.img2img("a cat", photo, strength=1, **QUICK).frames[:, 0],
    )


def test_saved_and_tracked_where_it_is_asked_for(tmp_path: Path) -> None:
    store = f"tracking.uri=sqlite:///{tmp_path}/runs.db"
    quick = QUICK | {"overrides": [*QUICK["overrides"], store]}
    made = diffuse.txt2img("a cat", save=tmp_path / "out", num_images=2, **quick)
    assert made.paths == [tmp_path / "out" / f"a_cat_{seed}.png" for seed in (0, 1)]
    for path, image, record in zip(made.paths, made.images, made.records, strict=True):
        assert np.array_equal(pixels(path), image)
        assert read_record(path) == json.loads(json.dumps(record))
    with closing(sqlite3.connect(tmp_path / "runs.db")) as db:
        assert db.execute("select status from runs").fetchall() == [("FINISHED",)]
        tags = dict(db.execute("select key, value from tags"))
    assert tags["diffuse.pixels_sha256"].split() == [record["image"]["pixels_sha256"] for record in made.records]


def test_a_generation_saves_itself(tmp_path: Path) -> None:
    made = diffuse.txt2img("a cat", **QUICK)
    assert made.save(tmp_path) == [tmp_path / "a_cat_0.png"]
    assert made.save(tmp_path, "x", format="webp", quality=80) == [tmp_path / "x.webp"]
    assert made.save(tmp_path, "x", format="webp") == [tmp_path / "x_1.webp"]
    assert read_record(tmp_path / "x.webp")["image"]["pixels_sha256"] == pixels_sha256(made.frames[0, 0])
    with pytest.raises(MediaError, match=r"output\.format=bmp"):
        made.save(tmp_path, format="bmp")


def test_latents_are_the_noise_that_is_started_from_and_what_is_decoded() -> None:
    drawn = diffuse.txt2img("a cat", **QUICK)
    shape = drawn.latents["image"].shape
    noise = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(0))
    for latents in (noise.numpy(), noise.double(), {"image": noise}):
        given = diffuse.txt2img("a cat", latents=latents, **QUICK | {"seed": 5})
        assert np.array_equal(given.frames[:, 0], drawn.frames[:, 0]) and torch.equal(
            given.latents["image"], drawn.latents["image"]
        )
    assert given.record["inputs"]["latents"]["shape"] == list(shape)
    assert not drawn.latents["image"].is_inference() and drawn.latents["image"].dtype == torch.float32
    with pytest.raises(ConfigError, match=re.escape(f"this request needs {tuple(shape)}")):
        diffuse.txt2img("a cat", latents=noise[:, :1], **QUICK)
    with pytest.raises(ConfigError, match="latents: hold NaN"):
        diffuse.txt2img("a cat", latents=noise * np.nan, **QUICK)
    with pytest.raises(ConfigError, match="latents: cannot be read as numbers"):
        diffuse.txt2img("a cat", latents="noise", **QUICK)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="latents: hold video; give those of the image"):
        diffuse.txt2img("a cat", latents={"video": noise}, **QUICK)


def test_timesteps_are_those_that_are_visited(tmp_path: Path) -> None:
    told: list[Step] = []
    quick = {key: value for key, value in QUICK.items() if key != "num_inference_steps"}
    made = diffuse.txt2img("a cat", timesteps=np.array([900, 400]), on_step=told.append, **quick)
    assert [step.timestep for step in told] == [900, 400]
    smoked = smoke("prompt=a cat", "timesteps=[900,400]", "num_inference_steps=2", "output.dir=out", cwd=tmp_path)
    path = tmp_path / smoked.paths[0]
    assert np.array_equal(pixels(path), made.frames[0, 0])
    assert read_record(path)["config"]["timesteps"] == [900, 400] == made.record["request"]["timesteps"]
    started = diffuse.img2img("a cat", made.images[0], timesteps=[900, 400], strength=0.5, on_step=told.append, **quick)
    assert [step.timestep for step in told[2:]] == [400] and len(started.step_seconds) == 1
    for wrong, message in {(400, 900): "must fall", (1000,): "between 0 and 999", (): "timesteps=\\[\\]"}.items():
        with pytest.raises(ConfigError, match=message):
            diffuse.txt2img("a cat", timesteps=wrong, **quick)
    with pytest.raises(ConfigError, match="num_inference_steps=3: timesteps says 2"):
        diffuse.txt2img("a cat", timesteps=[9, 4], **quick | {"num_inference_steps": 3})


def test_sigmas_are_those_that_are_visited(tmp_path: Path) -> None:
    told: list[Step] = []
    quick = {key: value for key, value in QUICK.items() if key != "num_inference_steps"} | {"scheduler": "euler"}
    made = diffuse.txt2img("a cat", sigmas=np.array([9, 2.5, 0]), on_step=told.append, **quick)
    assert len(told) == 2 and made.record["request"]["sigmas"] == [9, 2.5, 0]
    options = ("scheduler=euler", "sigmas=[9,2.5]", "num_inference_steps=2", "output.dir=out")
    path = tmp_path / smoke("prompt=a cat", *options, cwd=tmp_path).paths[0]
    assert np.array_equal(pixels(path), made.frames[0, 0])
    assert "Schedule type" not in Image.open(path).info["parameters"]
    started = diffuse.img2img("a cat", made.images[0], sigmas=[9, 2.5], strength=0.5, **quick)
    assert len(started.step_seconds) == 1
    wrong = {
        "should fall": {"sigmas": [1, 2]},
        "sigmas=\\[\\]": {"sigmas": []},
        "num_inference_steps=3: sigmas says 2": {"sigmas": [9, 4, 0], "num_inference_steps": 3},
        "timesteps and sigmas are both set": {"sigmas": [9, 4], "timesteps": [9, 4]},
        "sigmas: DDIM visits timesteps": {"sigmas": [9, 4], "scheduler": "ddim"},
        "sigmas: LCM visits timesteps": {"sigmas": [9, 4], "scheduler": "lcm"},
    }
    for message, arguments in wrong.items():
        with pytest.raises(ConfigError, match=message):
            diffuse.txt2img("a cat", **quick | arguments)


@pytest.mark.parametrize(("memory_profile", "batches"), [("balanced", 1), ("unet_gpu", 2)])
def test_a_callback_sees_each_step_and_the_picture_does_not_change(memory_profile: str, batches: int) -> None:
    overrides = [*QUICK.get("overrides", []), f"memory_profile.batch_size={2 // batches}"]
    quick = QUICK | {"memory_profile": memory_profile, "num_inference_steps": 2, "overrides": overrides}
    told: list[Step] = []
    previews: list[Image.Image] = []

    def on_step(step: Step) -> None:
        told.append(step)
        previews.extend(step.preview())

    made = diffuse.txt2img("a cat", num_images=2, on_step=on_step, **quick)
    assert [(step.index, step.total) for step in told] == [(i, 2 * batches) for i in range(2 * batches)]
    assert sum(len(step.latents) for step in told) == 4
    # The last thing that the model said of a picture is nearly the picture.
    last = np.stack([np.asarray(image) for image in previews])[[1, 3] if batches == 2 else [2, 3]]
    assert np.abs(last.astype(int) - made.frames[:, 0]).mean() < 8
    assert np.array_equal(made.frames[:, 0], diffuse.txt2img("a cat", num_images=2, **quick).frames[:, 0])


def test_a_callback_may_stop_the_run(tmp_path: Path) -> None:
    def on_step(step: Step) -> None:
        raise diffuse.Stop if step.index == 0 else AssertionError

    quick = QUICK | {"overrides": [f"tracking.uri=sqlite:///{tmp_path}/runs.db"], "num_inference_steps": 3}
    with pytest.raises(diffuse.Stop, match=r"^stopped by on_step$"):
        diffuse.txt2img("a cat", on_step=on_step, save=tmp_path / "out", **quick)
    assert not (tmp_path / "out").exists()
    with closing(sqlite3.connect(tmp_path / "runs.db")) as db:
        assert db.execute("select status from runs").fetchall() == [("KILLED",)]
    with pytest.raises(ZeroDivisionError):
        diffuse.txt2img("a cat", on_step=lambda step: 1 / 0, **QUICK)  # type: ignore[arg-type, return-value]
    assert diffuse.txt2img("a cat", **QUICK).images  # the pipeline goes on


WRONG: dict[str, tuple[type[DiffuseError], dict[str, Any], str]] = {
    "a name": (ConfigError, {"num_steps": 3}, "num_steps=3: there is no field or group num_steps; did you mean"),
    "a value": (ConfigError, {"guidance_scale": "high"}, "guidance_scale=high: 'high' is not a number"),
    "a range": (ConfigError, {"width": 63}, "width=63: should be a multiple of 8"),
    "a type": (ConfigError, {"width": object()}, "width: is of type object; give text or a number"),
    "a model": (ConfigError, {"model": "tony"}, "model=tony: there is no such model; did you mean tiny?"),
    "a scheduler": (ConfigError, {"scheduler": "eular"}, "scheduler=eular: there is no such scheduler; did you mean"),
    "several": (ConfigError, {"scheduler": "ddim,euler"}, "scheduler=ddim,euler: has several values"),
    "no checkpoint": (CheckpointError, {"model": "/nowhere/at-all"}, "/nowhere/at-all"),
    "a folder": (MediaError, {"save": "/proc/nowhere"}, "output.dir=/proc/nowhere cannot be written"),
    "sigmas": (ConfigError, {"sigmas": [3]}, "sigmas: DDIM visits timesteps; give timesteps, or add scheduler=deis|dp"),
    "several prompts": (ConfigError, {"negative_prompt": ["a", "b"]}, "negative_prompt: is of type list, and a call"),
    "a number for a text": (ConfigError, {"prompt_2": 5}, "prompt_2: is of type int; give a text"),
    "a number for a folder": (ConfigError, {"save": 3}, "save: is of type int; give True, or the folder"),
    "prompts": (ConfigError, {"overrides": ["prompt_file=x"]}, "prompt and prompt_file are both set"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests_say_so_in_one_line(case: str) -> None:
    kind, fields, message = WRONG[case]
    with pytest.raises(kind, match="^" + re.escape(message) if case != "no checkpoint" else message) as caught:
        diffuse.txt2img("a cat", **QUICK | fields)
    assert "\n" not in str(caught.value)


def test_it_says_on_standard_error_what_the_command_says(
    photo: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    quick = {key: value for key, value in QUICK.items() if key != "progress"} | {"num_inference_steps": 2}
    made = diffuse.img2img("a cat " * 99, photo, strength=0.5, **quick)
    out, err = capsys.readouterr()
    words = ("num_inference_steps=2", f"input_image={photo}", "strength=0.5", f"prompt={'a cat ' * 99}")
    done = command(*SMOKE, *words, "tracking=none", cwd=tmp_path)
    assert out == "" and done.status == 0

    def told(text: str) -> list[str]:
        return [re.sub(r"[\d.]+ s:.*|a picture in memory", "", line) for line in text.splitlines()]

    assert told(err) == told(done.err)
    assert any("is longer than" in line for line in made.warnings)
    diffuse.img2img("a cat", photo, strength=0.5, **QUICK | {"num_inference_steps": 2})
    assert capsys.readouterr() == ("", "")


def test_a_notebook_shows_a_generation() -> None:
    made = diffuse.txt2img("a cat", num_images=5, **QUICK)
    shown = np.asarray(Image.open(io.BytesIO(made._repr_png_())))
    assert shown.shape == (2 * 64 + 4, 4 * 64 + 3 * 4, 3)
    assert np.array_equal(shown[:64, 68:132], made.frames[1, 0]) and np.array_equal(shown[68:, :64], made.frames[4, 0])
    assert (shown[68:, 68:] == 255).all()


def test_a_notebook_shows_the_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """IPython is none of the project's dependencies: this stands for what of it is used."""
    cells: list[dict[str, str]] = []

    def display(data: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        assert raw and display_id
        cells.append(data)
        return SimpleNamespace(update=lambda data, raw: cells.append(data))

    ipython, room = ModuleType("IPython"), ModuleType("IPython.display")
    monkeypatch.setattr(ipython, "get_ipython", lambda: SimpleNamespace(kernel=None), raising=False)
    monkeypatch.setattr(room, "display", display, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", room)
    diffuse.txt2img("a cat", **QUICK)
    assert cells == []
    diffuse.txt2img("a cat", **QUICK | {"progress": True, "num_inference_steps": 2})
    assert [cell["text/plain"] for cell in cells] == ["", "1/2", "2/2", ""]
    assert 'value="2" max="2"' in cells[2]["text/html"]
    monkeypatch.setattr(ipython, "get_ipython", lambda: SimpleNamespace())  # IPython in a terminal
    assert terminal.notebook_display() is None


def test_an_encoding_is_of_one_prompt(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    with pytest.raises(ConfigError, match=r"prompts.txt: holds 2 prompts; give one as the prompt"):
        diffuse.Pipeline({}).encode(overrides=[f"prompt_file={tmp_path / 'prompts.txt'}"])


def test_an_experiment_that_is_a_sweep_is_no_picture() -> None:
    with pytest.raises(ConfigError, match=r"experiment=seeds_by_steps: is a sweep .*; diffuse -m experiment"):
        diffuse.txt2img("a cat", experiment="seeds_by_steps")
