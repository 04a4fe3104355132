"""`diffuse reproduce`: every kind of file of every family gives the same picture again, and a record that was tampered
with gives one line."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from command import Done, diffuse
from PIL import Image, PngImagePlugin

import diffuse as package
from diffuse.config.compose import config_from_data
from diffuse.media.images import read_image
from diffuse.media.load import read_record
from diffuse.media.pixels import pixels_sha256, psnr
from diffuse.record.differences import record_differences
from diffuse.run import open as opening
from diffuse.smoke import suite

QUICK = (
    "hardware=cpu",
    "hardware.threads=1",
    "tracking=none",
    "num_inference_steps=2",
    "seed=3",
    "prompt=a cat, (red)",
)
SMALL = ("width=32", "height=32")

# What makes each; `{...}` stands for a checkpoint or file of `inputs`.
MADE: dict[str, tuple[str, ...]] = {
    "tiny": ("output.format=png",),
    "tiny as jpg": ("output.format=jpg",),
    "tiny as webp": ("output.format=webp", "output.quality=60"),
    "tiny as tiff": ("output.format=tiff",),
    "the third of three": ("num_images=3", "memory_profile=full_gpu"),
    "the third of three, in batches of two": ("num_images=3", "memory_profile.batch_size=2"),
    "strict": ("hardware.deterministic=strict", "num_images=2"),
    "bfloat16": ("hardware.dtype=bfloat16",),
    "image to image": ("input_image={picture}", "strength=0.7", "width=40", "resize=pad", "output.format=jpg"),
    "inpainting": ("input_image={picture}", "mask_image={mask}", "keep_unmasked=true", "output.format=webp"),
    "timesteps": ("timesteps=[900,500,100]", "num_inference_steps=3"),
    "sigmas": ("scheduler=euler", "sigmas=[9,2.5,0]", "num_inference_steps=2"),
    "another sampler": ("scheduler=euler_ancestral", "guidance_rescale=0.5"),
    "a drawn seed": ("seed=null",),
    "text that OmegaConf would read": ("prompt=${oc.env:HOME} ???", "negative_prompt=???"),
    "weighted": ("prompt=(a cat:1.3), [red]", "prompt_syntax=weighted", "long_prompt=chunk"),
    "inpainting checkpoint": ("model=sd21", "model.source={sd_inpaint}", "input_image={picture}", "mask_image={mask}"),
    "distilled": ("model=sd21", "model.source={sd_distilled}", "scheduler=lcm", *SMALL),
    "flow": ("model=sd21", "model.source={sd_flow}", "scheduler=flow_match_euler", *SMALL),
    "read from the checkpoint": ("model=auto", "model.source={sdxl}", *SMALL),
    "another autoencoder": ("model=sd21", "model.source={sd}", "model.vae.source={sd_flow}", *SMALL),
    "SDXL": ("model=sdxl", "model.source={sdxl}", "prompt_2=oil", "crop_left=8", *SMALL),
    "SDXL turbo as jpg": ("model=sdxl_turbo", "model.source={sdxl}", "output.format=jpg", *SMALL),
    "SDXL, image to image": ("model=sdxl", "model.source={sdxl}", "input_image={picture}"),
    "SDXL and refiner": (
        "model=sdxl", "model.source={sdxl}", "refiner=sdxl", "refiner.source={sdxl_refiner}",
        "denoising_end=0.5", *SMALL,
    ),
    "refiner alone as webp": (
        "model=sdxl_refiner", "model.source={sdxl_refiner}", "input_image={picture}", "strength=0.6",
        "aesthetic_score=9", "output.format=webp",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return suite.write_inputs(tmp_path_factory.mktemp("inputs"))


def make(*overrides: str, inputs: dict[str, str], cwd: Path) -> Path:
    """The last picture that the command saves."""
    done = diffuse(
        *QUICK, "output.dir=made", *(o.format_map(inputs) if "${" not in o else o for o in overrides), cwd=cwd
    )
    assert done.status == 0, done.err
    return cwd / done.paths[-1]


@pytest.fixture(scope="module")
def picture(inputs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(inputs=inputs, cwd=tmp_path_factory.mktemp("picture"))


def again(file: Path, *overrides: str, cwd: Path) -> Done:
    """`diffuse reproduce FILE`, as somebody else in another folder would."""
    return diffuse("reproduce", file, "tracking=none", "output.dir=again", *overrides, cwd=cwd)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("name", MADE)
def test_every_kind_of_picture_is_made_again(name: str, inputs: dict[str, str], tmp_path: Path) -> None:
    file = make(*MADE[name], inputs=inputs, cwd=tmp_path)
    recorded = read_record(file)
    opening._pipelines.clear()  # nothing is left from this process

    done = again(file, cwd=tmp_path)

    assert done.status == 0, done.err
    (path,) = done.paths
    assert path.parent == Path("again") and path.suffix == ".png"
    assert f"{path}: identical" in done.err
    made = read_record(tmp_path / path)
    assert made["image"]["pixels_sha256"] == recorded["image"]["pixels_sha256"]
    assert made["image"]["seed"] == recorded["image"]["seed"]
    assert pixels_sha256(pixels(tmp_path / path)) == recorded["image"]["pixels_sha256"]
    for part in ("prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "width", "height"):
        assert made["request"][part] == recorded["request"][part]
    # Changes that are not committed may be others each time.
    assert all(cause.startswith("the code: ") for cause in record_differences(recorded, made))


@pytest.mark.parametrize("name", ["the third of three", "SDXL and refiner", "inpainting"])
def test_a_reproduced_picture_can_be_reproduced(name: str, inputs: dict[str, str], tmp_path: Path) -> None:
    first = again(make(*MADE[name], inputs=inputs, cwd=tmp_path), cwd=tmp_path)
    assert again(tmp_path / first.paths[0], cwd=tmp_path).status == 0


def run_record(*files: Path) -> dict[str, Any]:
    """The record.json of the run that made `files`."""
    found = [read_record(file) for file in files]
    images = [record.pop("image") for record in found]
    return {**found[0], "images": images}


def test_a_whole_run_from_its_record(inputs: dict[str, str], tmp_path: Path) -> None:
    make("num_images=3", inputs=inputs, cwd=tmp_path)
    files = sorted((tmp_path / "made").iterdir())
    (tmp_path / "record.json").write_text(json.dumps(run_record(*files)))
    done = again(tmp_path / "record.json", cwd=tmp_path)
    assert done.status == 0, done.err
    assert [pixels(tmp_path / path).tobytes() for path in done.paths] == [pixels(file).tobytes() for file in files]
    assert done.err.count(".png: identical") == 3


def job(path: Path, *files: Path, **parts: Any) -> Path:
    """Writes the job.json that a sweep would write beside `files`."""
    record = run_record(*files)
    listed = [
        {"file": f.name, "pixels_sha256": i["pixels_sha256"]} for f, i in zip(files, record["images"], strict=True)
    ]
    content = {"version": 1, "key": "k", "sweep": "s", "overrides": ["seed=3"], "status": "done", "error": None}
    path.write_text(json.dumps({**content, "media": listed, "run_id": None, "record": record, **parts}))
    return path


def test_a_job_of_a_sweep(picture: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(picture, tmp_path))
    done = again(job(tmp_path / "job.json", file), cwd=tmp_path)
    assert (done.status, len(done.paths)) == (0, 1), done.err
    differs = again(tmp_path / "job.json", "hardware.dtype=bfloat16", cwd=tmp_path)
    assert differs.status == 1 and "levels apart" in differs.err  # from the picture beside it


@pytest.mark.parametrize("suffix", ["mp4", "webm", "gif"])
def test_a_record_in_a_video(suffix: str, picture: Path, tmp_path: Path) -> None:
    file = tmp_path / f"video.{suffix}"
    comment = json.dumps(read_record(picture))
    if suffix == "gif":
        Image.open(picture).save(file, comment=comment.encode())
    else:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(picture), "-pix_fmt", "yuv420p"]
        subprocess.run([*command, "-metadata", f"comment={comment}", str(file)], check=True)
    done = again(file, cwd=tmp_path)
    assert done.status == 0 and "identical" in done.err, done.err


def test_a_run_of_the_tracking_store(inputs: dict[str, str], empty: Path, tmp_path: Path) -> None:
    """By MLflow's id; it is read from where the user tracks, and so is the new one recorded there."""
    store = f"tracking.uri=sqlite:///{shutil.copy(empty, tmp_path / 'mlflow.db')}"
    made = diffuse(*QUICK[:2], *QUICK[3:], store, "num_images=2", "output.dir=made", cwd=tmp_path)
    assert made.status == 0, made.err
    import mlflow

    client = mlflow.MlflowClient(store.partition("=")[2])
    experiments = [found.experiment_id for found in client.search_experiments()]
    (run,) = client.search_runs(experiments)
    done = diffuse("reproduce", run.info.run_id, store, "output.dir=again", cwd=tmp_path)
    assert done.status == 0, done.err
    assert [pixels(tmp_path / path).tobytes() for path in done.paths] == [
        pixels(tmp_path / path).tobytes() for path in made.paths
    ]
    runs = client.search_runs(experiments)
    assert len(runs) == 2 and len({found.data.tags["diffuse.pixels_sha256"] for found in runs}) == 1
    other = diffuse("reproduce", run.info.run_id, store, "hardware.dtype=bfloat16", "output.dir=again", cwd=tmp_path)
    assert other.status == 1 and "levels apart" in other.err  # from the pictures in the store
    unknown = diffuse("reproduce", "0" * 32, store, "output.dir=no", cwd=tmp_path)
    assert unknown.status == 2 and f"there is no run {'0' * 32}" in unknown.err and not (tmp_path / "no").exists()
    nowhere = again(Path("f" * 32), cwd=tmp_path)
    assert nowhere.status == 2 and "tracking=none keeps no runs" in nowhere.err


def test_jobs_of_a_sweep_that_were_made_together(tmp_path: Path) -> None:
    """Their bits depend on one another, so they are computed together again."""
    options = ("num_inference_steps=4", "scheduler=euler_ancestral", "memory_profile.batch_size=3")
    swept = diffuse("-m", *QUICK[:3], *options, "seed=5,1,9,2", "report.make=false", "output.dir=sweep", cwd=tmp_path)
    assert swept.status == 0, swept.err
    batches = {tuple(read_record(tmp_path / path).get("batch", {}).get("seeds", ())) for path in swept.paths}
    assert any(len(seeds) == 3 for seeds in batches)
    for path in swept.paths:
        done = again(tmp_path / path, cwd=tmp_path)
        assert (done.status, len(done.paths)) == (0, 1), done.err
    assert again(tmp_path / done.paths[0], cwd=tmp_path).status == 0
    assert again(tmp_path / path.parent / "job.json", cwd=tmp_path).status == 0


# What differs is said


def test_another_precision_is_measured_and_named(picture: Path, tmp_path: Path) -> None:
    done = again(picture, "hardware.dtype=bfloat16", cwd=tmp_path)
    assert done.status == 1
    (path,) = done.paths
    ours, theirs = pixels(tmp_path / path), pixels(picture)
    far = int(np.abs(ours.astype(int) - theirs).max())
    assert f"up to {far} of 255 levels apart, PSNR {psnr(ours, theirs):.1f} dB" in done.err
    assert "the unet's dtype: float32 then, bfloat16 now" in done.err
    assert "it is not the recorded picture" in done.err.splitlines()[-1]


def test_other_weights_are_named_before_the_run(inputs: dict[str, str], tmp_path: Path) -> None:
    file = make("model=sd21", "model.source={sd}", *SMALL, inputs=inputs, cwd=tmp_path)
    done = again(file, f"model.source={inputs['sd_distilled']}", cwd=tmp_path)
    assert done.status == 1, done.err
    assert "the weights: SHA-256" in done.err.splitlines()[0]
    assert "not identical" in done.err


def test_weights_that_moved_are_found_by_the_user(inputs: dict[str, str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(inputs["sd"], tmp_path / "there"))
    file = make("model=sd21", f"model.source={folder}", *SMALL, inputs=inputs, cwd=tmp_path)
    folder.rename(tmp_path / "elsewhere")
    missing = again(file, cwd=tmp_path)
    assert missing.status == 2 and str(folder) in missing.err and "model.source" in missing.err
    assert again(file, f"model.source={tmp_path / 'elsewhere'}", cwd=tmp_path).status == 0


def changed(picture: Path, target: Path, change: Callable[[dict[str, Any]], Any], pixels: Any = None) -> Path:
    """A copy of a picture with another record."""
    record = read_record(picture)
    record = change(record) or record
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("diffuse", json.dumps(record))
    (Image.open(picture) if pixels is None else Image.fromarray(pixels)).save(target, pnginfo=chunks)
    return target


def test_what_another_machine_had_is_named(picture: Path, tmp_path: Path) -> None:
    def elsewhere(record: dict[str, Any]) -> None:
        record["versions"]["torch"] = "2.9.1+cu126"
        record["hardware"]["cpu"] = "Another processor"
        record["git"] = {"commit": "0123456789abcdef0123456789abcdef01234567", "clean": False}
        record["determinism"]["threads"] = 64
        record["config"]["model"]["source"] = "/home/someone/lib/diffuse/tiny/checkpoint"

    done = again(changed(picture, tmp_path / "x.png", elsewhere), cwd=tmp_path)
    assert done.status == 0, done.err  # the same all the same, from the checkpoint that ships here
    for said in (
        "torch: 2.9.1+cu126 then",
        "cpu: Another processor then",
        "0123456789ab with changes then",
        "threads: 64 then",
    ):
        assert said in done.err


def test_threads_that_are_not_here(picture: Path, tmp_path: Path) -> None:
    done = again(changed(picture, tmp_path / "x.png", put("hardware.threads", 10**6)), cwd=tmp_path)
    assert done.status in (0, 1) and "made with 1000000 threads" in done.err, done.err


def test_memory_profiles_of_the_user_that_are_not_here(picture: Path, tmp_path: Path) -> None:
    def made_under_own(record: dict[str, Any]) -> None:
        record["config"]["model"]["min_vram_gib"]["lean"] = 1
        record["hardware"]["memory_profile"]["name"] = "lean"

    done = again(changed(picture, tmp_path / "x.png", made_under_own), cwd=tmp_path)
    assert done.status == 0, done.err


def test_a_file_whose_pixels_were_changed_is_found_out(picture: Path, tmp_path: Path) -> None:
    altered = pixels(picture).copy()
    altered[:8] = 0
    done = again(changed(picture, tmp_path / "x.png", lambda record: None, altered), cwd=tmp_path)
    assert done.status == 1
    assert "identical; but the file's own pixels were changed" in done.err


def test_the_input_must_be_the_recorded_one(inputs: dict[str, str], tmp_path: Path) -> None:
    source = Path(shutil.copy(inputs["picture"], tmp_path / "source.png"))
    file = make(f"input_image={source}", "strength=0.6", inputs=inputs, cwd=tmp_path)
    moved = source.rename(tmp_path / "moved.png")
    for said in ("there is no such file", "is another file now"):
        done = again(file, cwd=tmp_path)
        assert done.status == 2 and said in done.err and "input_image=FILE" in done.err
        assert done.err.count("\n") == 1 and not (tmp_path / "again").exists()
        Image.new("RGB", (32, 32), "red").save(source)
    assert again(file, f"input_image={moved}", cwd=tmp_path).status == 0
    other = again(file, f"input_image={source}", cwd=tmp_path)
    assert other.status == 1 and "the input_image: SHA-256" in other.err


def test_pictures_that_were_in_memory(inputs: dict[str, str], tmp_path: Path) -> None:
    source, mask = Image.open(inputs["picture"]), Image.open(inputs["mask"])
    made = package.inpaint(
        "a cat", source, mask, seed=1, num_inference_steps=1, hardware="cpu", overrides=["hardware.threads=1"],
        progress=False,
    )  # fmt: skip
    (file,) = made.save(tmp_path, "made")
    assert "input_image was in memory" in again(file, cwd=tmp_path).err
    files = (f"input_image={inputs['picture']}", f"mask_image={inputs['mask']}")
    done = again(file, *files, cwd=tmp_path)
    assert done.status == 0 and "is not the recorded one" not in done.err, done.err
    assert read_image(inputs["picture"]).pixels_sha256 == made.record["inputs"]["input_image"]["sha256"]


def test_latents_that_were_in_memory(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(1, 8, 16, 16)).astype(np.float32)
    made = package.txt2img(
        "a cat", latents=noise, seed=1, num_inference_steps=1, hardware="cpu", overrides=["hardware.threads=1"],
        progress=False,
    )  # fmt: skip
    done = again(made.save(tmp_path, "made")[0], cwd=tmp_path)
    assert done.status == 2 and "started from latents given in Python" in done.err


def test_it_is_tracked_where_the_user_tracks(picture: Path, empty: Path, tmp_path: Path) -> None:
    store = shutil.copy(empty, tmp_path / "mlflow.db")
    done = diffuse("reproduce", picture, f"tracking.uri=sqlite:///{store}", "output.dir=again", cwd=tmp_path)
    assert done.status == 0, done.err
    import mlflow

    found = mlflow.MlflowClient(f"sqlite:///{store}").search_runs(["0", "1"])
    assert [run.data.tags["diffuse.pixels_sha256"] for run in found] == [read_record(picture)["image"]["pixels_sha256"]]


# A record is data of whoever sent it


def put(dotted: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets a value of the configuration, and of the request where it has that too."""

    def change(record: dict[str, Any]) -> None:
        *parts, last = dotted.split(".")
        node = record["config"]
        for part in parts:
            node = node[part]
        node[last] = value
        if not parts and last in record["request"]:
            record["request"][last] = value

    return change


def put_root(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda record: record.update({name: value})


def step_down(**values: Any) -> Callable[[dict[str, Any]], None]:
    event = {"phase": "denoise", "component": "unet", "step": 1, "decoded": 0, "loading": False}
    return put_root("step_downs", [{**event, "lever": "batch_size", "value": 1, **values}])


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda record: {key: value for key, value in record.items() if key != name}


def image(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda record: record["image"].update(values)


def profile(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda record: record["hardware"]["memory_profile"].update(values)


def weights(source: str) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        put("model.source", source)(record)
        record["weights"] |= {"source": source, "sha256": "0" * 64}

    return change


def nested(record: dict[str, Any]) -> None:
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    record["config"]["prompt"] = deep


def input_file(path: str, digest: str = "0" * 64) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        put("input_image", path)(record)
        put("strength", 0.5)(record)
        record["inputs"]["input_image"] = {"file": path, "sha256": digest, "width": 8, "height": 8}

    return change


TAMPERED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another target": (put("model._target_", "os.system"), "model._target_=os.system"),
    "a target beside": (
        put("model._target_", "diffuse.pipelines.latent_diffusion.weights"),
        "there is no such pipeline",
    ),
    "a target with a trick": (put("model._target_", "diffuse.pipelines..os.system"), "should be a class in"),
    "a scheduler's target": (put("scheduler._target_", "subprocess.Popen"), "scheduler._target_=subprocess.Popen"),
    "a function of a sampler's room": (put("scheduler._target_", "diffuse.schedulers.build.build_sampler"), "sampler"),
    "a refiner's target": (put("refiner._target_", "builtins.eval"), "refiner._target_=builtins.eval"),
    "no target": (put("model", {"name": "tiny"}), "model._target_"),
    "a million steps": (put("num_inference_steps", 1_000_000), "num_inference_steps=1000000"),
    "a million steps of training": (put("scheduler.num_train_timesteps", 10**6), "num_train_timesteps=1000000"),
    "a million timesteps": (put("timesteps", [*range(5000, 0, -1)]), "more than 1000"),
    "a huge picture": (put("width", 10**6), "memory_profile.max_side=null"),
    "a huge picture by its profile": (
        lambda record: [put("height", 80_000)(record), profile(max_side=10**6)(record)][0],
        "memory_profile.max_side=null",
    ),
    "a huge batch": (profile(batch_size=10**6), "memory_profile.batch_size=1000000"),
    "a profile that is none": (profile(name="../../x"), "there is no such memory profile"),
    "a profile whose name is a list": (profile(name=["low"]), "there is no such memory profile"),
    "a profile whose name is a mapping": (profile(name={"low": 1}), "there is no such memory profile"),
    "a profile whose name is null": (profile(name=None), "there is no such memory profile"),
    "a model whose name is a mapping": (put("model.name", {"tiny": 1}), "model.name"),
    "a device that is a list": (put("hardware.device", ["cpu"]), "hardware.device"),
    "a field of a profile that is none": (profile(run="x"), "memory_profile.run: there is no such field"),
    "a million pictures": (put("num_images", 10**6), "num_images=1000000"),
    "another seed": (put("seed", 4), "is not a picture of its run"),
    "a picture of another run": (image(index=5), "is not a picture of its run"),
    "no digest": (image(pixels_sha256="../../etc"), "is not a picture of its run"),
    "a number too large": (put("crop_left", 2**70), "crop_left"),
    "text for a number": (put("guidance_scale", "much"), "guidance_scale"),
    "no number": (put("guidance_scale", "nan"), "guidance_scale=nan"),
    "a batch of others": (put_root("batch", {"seeds": [1, 2], "first": 0}), "is not a batch of its run"),
    "a batch that is none": (put_root("batch", [3]), "is not a batch of its run"),
    "step-downs that are none": (put_root("step_downs", {"step": 1}), "its step_downs is missing or of another kind"),
    "a step-down that is none": (put_root("step_downs", [3]), "3 is no stepping down"),
    "an unknown lever": (step_down(lever="half"), "is no stepping down"),
    "a batch of no pictures": (step_down(value=0), "is no stepping down"),
    "a step before the first": (step_down(step=-1), "is no stepping down"),
    "a lever that is a list": (step_down(lever=["batch_size"]), "is no stepping down"),
    "an unknown part": (put_root("hooks", {"on_load": "x"}), "a record has no hooks"),
    "what a terminal would obey": (put_root("\x1b[2J\x9b31m", 1), "a record has no \N{REPLACEMENT CHARACTER}[2J"),
    "an unknown field": (put("callbacks", ["x"]), "callbacks"),
    "an unknown field of a group": (put("hardware.command", "x"), "hardware.command"),
    "an unknown option of the sampler": (put("scheduler.exec", "x"), "scheduler.exec"),
    "a missing part": (without("weights"), "its weights is missing"),
    "a part of another kind": (put_root("determinism", "strict"), "its determinism is missing or of another kind"),
    "a contradiction": (lambda record: record["request"].update(prompt="b"), "contradicts itself: prompt"),
    "a file of prompts": (put("prompt_file", "/etc/passwd"), "prompt_file=/etc/passwd"),
    "a file that is not the recorded one": (input_file("/etc/passwd"), "is another file now"),
    "a file that never ends": (input_file("/dev/zero"), "there is no such file"),
    "a file on another computer": (input_file("\\\\attacker\\share\\x.png"), "is on another computer"),
    "weights on another computer": (put("model.source", "//attacker/share"), "is on another computer"),
    "weights that are not here": (weights("../../weights"), "does not exist"),
    "pictures from nowhere": (put("input_image", "/etc/passwd"), "was in memory"),
    "nested too deep": (nested, "nested more than"),
    "a suite": (put("suite", "smoke"), "suite=smoke"),
    "interpolation for a number": (put("seed", "${oc.env:HOME}"), "seed"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_record_is_refused_in_one_line(name: str, picture: Path, tmp_path: Path) -> None:
    change, said = TAMPERED[name]
    (tmp_path / "here").mkdir()
    file = changed(picture, tmp_path / "x.png", change)
    done = again(file, cwd=tmp_path / "here")
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1), done.err
    assert said in done.err and done.err.startswith("diffuse: ")
    assert list((tmp_path / "here").iterdir()) == [] and sorted(tmp_path.iterdir()) == [tmp_path / "here", file]


def test_where_the_record_writes_is_not_where_files_go(picture: Path, tmp_path: Path) -> None:
    """Not its folder, not its name, not its store, and nothing is fetched because it says so."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()

    def change(record: dict[str, Any]) -> None:
        output = {"dir": str(elsewhere), "name": "../../../../../../tmp/escaped", "format": "png", "quality": 95}
        record["config"]["output"] = output
        record["config"]["tracking"] = {"name": "mlflow", "uri": f"sqlite:///{elsewhere}/mlflow.db"}
        record["config"]["model"]["download"] = "yes"
        record["config"]["objective"] = {"metric": "quality/psnr", "reference": "/etc/passwd"}
        record["overrides"] = [
            f"output.dir={elsewhere}",
            "hydra.run.dir=/x",
            f"tracking.uri=sqlite:///{elsewhere}/m.db",
        ]

    done = again(changed(picture, tmp_path / "x.png", change), cwd=here)
    assert done.status == 0, done.err
    assert [path.parent for path in done.paths] == [Path("again")] and not elsewhere.exists()
    made = read_record(here / done.paths[0])
    assert made["config"]["output"]["dir"] == "again" and made["config"]["model"]["download"] == "ask"
    assert not any("elsewhere" in override for override in made["overrides"])


def test_what_would_be_fetched_is_named_and_asked_for(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = changed(picture, tmp_path / "x.png", weights("stranger/weights"))
    done = again(file, "model.download=never", cwd=tmp_path)
    assert done.status == 2 and "stranger/weights" in done.err and "model.download" in done.err


def test_a_record_of_a_repository_keeps_its_commit(picture: Path) -> None:
    from diffuse.record.recorded_run import read_recorded_run, recorded_run
    from diffuse.reproduce.reproduction import build_reproduction

    recorded = read_recorded_run(picture)
    record = copy.deepcopy(recorded.record)
    put("model.source", "someone/weights")(record)
    record["weights"] |= {"source": "someone/weights", "revision": "a" * 40, "sha256": "b" * 64}
    asked = build_reproduction(recorded_run(record, "x"), ["tracking=none"])
    assert (asked.cfg.model.source, asked.cfg.model.revision) == ("someone/weights", "a" * 40)


JSON: dict[str, tuple[str, str]] = {
    "no JSON": ("seed: 3", "is not JSON"),
    "an array": ("[1, 2]", "holds no record"),
    "another object": ('{"a": 1}', "holds no record"),
    "too deep": ("[" * 100_000, "is not JSON"),
    "too long": ('{"a": "' + "x" * (5 << 20) + '"}', "longer than 4 MiB"),
    "bytes": ("\udcff\udcfe", "is not JSON"),
    "a number too long": ('{"a": ' + "9" * 5000 + "}", "is not JSON"),
}


@pytest.mark.parametrize("name", JSON)
def test_a_file_that_is_no_record(name: str, tmp_path: Path) -> None:
    content, said = JSON[name]
    (tmp_path / "record.json").write_bytes(content.encode(errors="surrogateescape"))
    done = again(tmp_path / "record.json", cwd=tmp_path)
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1) and said in done.err, done.err


@pytest.mark.parametrize("name", ["../x.png", "/etc/passwd", "a\\b.png", "..", "C:x.png", 7])
def test_a_job_lists_files_beside_it_alone(name: Any, picture: Path, tmp_path: Path) -> None:
    file = job(tmp_path / "job.json", picture, media=[{"file": name, "pixels_sha256": "x"}])
    done = again(file, cwd=tmp_path)
    assert done.status == 2 and "is not the name of a file beside it" in done.err and done.err.count("\n") == 1


def test_jobs_of_another_kind(picture: Path, tmp_path: Path) -> None:
    assert "is of version 9" in again(job(tmp_path / "job.json", picture, version=9), cwd=tmp_path).err
    failed = {key: value for key, value in run_record(picture).items() if key != "images"}
    assert "made no picture" in again(job(tmp_path / "job.json", picture, record=failed), cwd=tmp_path).err
    assert (
        "made no picture" in again(job(tmp_path / "x.json", picture, record={**failed, "images": []}), cwd=tmp_path).err
    )


def test_what_is_no_video(tmp_path: Path) -> None:
    """A playlist under a video's name would have ffmpeg open what it lists."""
    playlist = tmp_path / "x.mp4"
    playlist.write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")
    assert "is no MP4 file" in again(playlist, cwd=tmp_path).err
    assert "there is no such file" in again(tmp_path / "no.mp4", cwd=tmp_path).err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "make what again?"),
        (("no.png",), "no.png"),
        (("x.png", "seed=4"), "that is for the record to say"),
        (("x.png", "model=sdxl"), "that is for the record to say"),
        (("x.png", "rocket.png"), "rocket.png: diffuse reproduce makes one file again at a time"),
        (("x.png", "--force"), "--force"),
        (("-x",), "-x"),
        ((".",), "cannot be read"),
    ],
)
def test_what_cannot_be_asked(arguments: tuple[str, ...], said: str, picture: Path, tmp_path: Path) -> None:
    shutil.copy(picture, tmp_path / "x.png")
    done = diffuse("reproduce", *arguments, cwd=tmp_path)
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1) and said in done.err, done.err


def test_text_of_a_record_is_text_to_the_configuration() -> None:
    texts = ["${oc.env:HOME}", "\\${x}", "a\\\\${b}", "$", "{}", "${"]
    cfg = config_from_data({"prompt": "x", "model": {"request_defaults": {"list": texts}}})
    assert list(cfg.model.request_defaults.list) == texts
    for text in [*texts, "???"]:
        assert config_from_data({"prompt": text}).prompt == text
