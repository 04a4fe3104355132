"""Films from pictures and clips through the configuration: what is recorded, made again, predicted and refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import film_peers
import numpy as np
import pytest
from command import diffuse as command
from film_peers import TinyFilms
from PIL import Image
from videos import grey_video

import diffuse
from diffuse.config.compose import compose_config
from diffuse.config.request import RequestDraft, draft_requests
from diffuse.errors import DiffuseError
from diffuse.media.images import file_sha256
from diffuse.media.load import read_record
from diffuse.plan.make_plan import open_setting

FIELDS = ("num_frames=17", "num_inference_steps=1", "stg_blocks=[1]", "seed=3", "width=96", "height=64")
UNGUIDED = ("guidance_scale=1", "audio_guidance_scale=1", "modality_scale=1", "stg_scale=0")
QUICK = (*FIELDS, *UNGUIDED, "hardware=cpu", "hardware.threads=1", "tracking=none")


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> TinyFilms:
    """A checkpoint whose texts take no time."""
    films = film_peers.tiny("2.3", tmp_path_factory)
    folder, file = tmp_path_factory.mktemp("short") / "films", "tokenizer/tokenizer_config.json"
    return replace(films, folder=film_peers.edited(films.folder, folder, file, model_max_length=film_peers.TOKENS))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A picture, another that is upright, a clip of 24 frames, eight a second, and a short one."""
    folder = tmp_path_factory.mktemp("inputs")
    picture, upright, short = folder / "picture.png", folder / "upright.png", folder / "short.mp4"
    Image.fromarray(film_peers.picture()).save(picture)
    Image.fromarray(film_peers.picture(64, 96)).save(upright)
    clip = grey_video(folder / "clip.mp4", [10 * index for index in range(24)])
    return {"picture": picture, "upright": upright, "clip": clip, "short": grey_video(short, [50] * 12)}


def draft(files: dict[str, Path], *overrides: str) -> RequestDraft:
    given = [each.format_map(files) for each in overrides]
    return draft_requests(compose_config(["model=ltx2", "prompt=x", "seed=1", *given]))[0]


def test_a_film_from_a_clip_is_recorded_and_made_again(
    films: TinyFilms, files: dict[str, Path], tmp_path: Path
) -> None:
    clip = shutil.copy(files["clip"], tmp_path / "clip.mp4")
    given = [f"input_video={clip}", f"last_image={files['picture']}", "num_conditioning_frames=9", "fps=8"]
    source = ["model=auto", f"model.source={films.folder}", "model.request_defaults.negative_prompt=null"]
    done = command("prompt=the robot", *source, *QUICK, *given, "output.dir=out", "output.format=webp", cwd=tmp_path)
    assert done.status == 0, done.err
    (path,) = done.paths
    again = ("reproduce", path, "tracking=none", "output.dir=again")
    record = read_record(tmp_path / path)
    assert {name: entry["sha256"] for name, entry in record["inputs"].items()} == {
        "input_video": file_sha256(clip), "last_image": file_sha256(str(files["picture"]))
    }  # fmt: skip
    assert record["inputs"]["input_video"]["fps"] == 8 and record["request"]["num_conditioning_frames"] == 9
    Path(clip).unlink()
    grey_video(Path(clip), [50] * 24)
    done = command(*again, cwd=tmp_path)
    assert done.status == 2 and "is another file now" in done.err and "input_video=FILE" in done.err
    done = command(*again, f"input_video={files['clip']}", cwd=tmp_path)
    assert done.status == 0 and "identical" in done.err, done.err


def test_pictures_in_memory_are_those_of_files(films: TinyFilms, files: dict[str, Path]) -> None:
    options: dict[str, Any] = {"model": films.folder, "overrides": list(QUICK), "input_crf": 0, "progress": False}
    picture = film_peers.picture()
    one = diffuse.img2vid("x", files["picture"], last_image=files["picture"], **options)
    other = diffuse.img2vid("x", picture, last_image=picture, **options)
    np.testing.assert_array_equal(one.frames, other.frames)
    assert other.record["inputs"]["last_image"]["file"] is None
    clip = np.stack([picture] * 9)
    del options["input_crf"]
    made = diffuse.img2vid("x", input_video=clip, num_conditioning_frames=9, **options)
    assert made.record["inputs"]["input_video"]["file"] is None
    assert np.abs(made.frames.astype(int) - one.frames).max() > 9
    with pytest.raises(DiffuseError, match="none is given; give one, or call txt2vid"):
        diffuse.img2vid("x", **options)


def test_what_is_given_is_predicted(films: TinyFilms, files: dict[str, Path]) -> None:
    """The encoding of each, and the tokens of a last picture."""

    def flops(*given: str) -> tuple[int, int]:
        cfg = compose_config(["model=ltx2_3", f"model.source={films.folder}", "prompt=x", *QUICK, *given])
        setting = open_setting(cfg)
        encode, denoise, _ = setting.predict(setting.request(draft_requests(cfg)[0])).phases
        found = {work.component: work.flops for work in encode.work}
        return found.get("vae", 0), sum(work.flops for work in denoise.work)

    first = flops(f"input_image={files['picture']}", "conditioning_strength=1")
    more = flops(
        f"input_video={files['clip']}", "num_conditioning_frames=9", f"last_image={files['picture']}", "fps=24"
    )
    assert 0 < 3 * first[0] < more[0]  # two frames of the latents, and one
    assert first[1] < more[1]


def test_a_clip_says_its_size_and_rate(files: dict[str, Path]) -> None:
    found = draft(files, "input_video={clip}")
    assert (found.width, found.height) == (32, 32)  # 48 x 32, in multiples of 32
    assert (found.fields["fps"], found.fields["num_conditioning_frames"]) == (8.0, 17)
    assert found.inputs is not None and found.inputs.notes == ()
    short = draft(files, "input_video={short}", "fps=4")
    assert (short.fields["fps"], short.fields["num_conditioning_frames"]) == (4.0, 1)
    assert short.inputs is not None
    assert [note.partition("short.mp4: ")[2] for note in short.inputs.notes] == [
        "is short; the last frame is taken", "has 8 frames a second, and is read at fps=4"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("input_video={picture}", "picture.png: is a picture; give it as input_image=FILE"),
        ("input_image={clip}", "clip.mp4: is a film; give a picture, such as one of its frames; input_video=FILE goes"),
        ("last_image={clip}", "clip.mp4: is a film; give a picture"),
        ("input_image={picture} mask_image={clip}", "mask_image={clip}: is a film; give a picture"),
        ("input_image={picture} input_video={clip}", "input_image and input_video both begin the film"),
        ("input_video={clip} num_conditioning_frames=25", "clip.mp4 has 24 at 8 frames a second; try 17"),
        (
            "input_video={clip} num_conditioning_frames=17 num_frames=17",
            "num_conditioning_frames=17: leaves nothing to",
        ),
        ("input_video={short} num_conditioning_frames=99999", "leaves nothing to make of num_frames=121, which counts"),
        ("input_video={short} num_conditioning_frames=17", "short.mp4 has 12 at 8 frames a second; try 9"),
        ("input_image={picture} last_image={upright}", "is 64 x 96 pixels and the input_image 96 x 64; give them the"),
        ("input_video={clip} last_image={upright}", "is 64 x 96 pixels and the input_video 48 x 32"),
        ("input_image={picture} conditioning_strength=0", "conditioning_strength=0.0: should be a number above 0, up"),
        ("input_image={picture} conditioning_strength=nan", "conditioning_strength=nan: should be a number above 0"),
        ("input_image={picture} conditioning_strength=2", "conditioning_strength=2.0: should be a number above 0"),
        ("last_image={picture} last_image_strength=1.5", "last_image_strength=1.5: should be a number above 0, up to"),
        ("conditioning_strength=0.5", "add input_image=FILE or last_image=FILE or input_video=FILE"),
        ("input_image={picture} last_image_strength=0.5", "last_image_strength: is of a last picture; add last_image"),
        ("last_image={picture} frame_index=3", "frame_index: is of a picture to start from; add input_image=FILE"),
        ("input_video={clip} input_crf=3", "input_crf: is of pictures to start from; add input_image=FILE or last_im"),
        ("input_image={picture} num_conditioning_frames=9", "is of a clip to go on from; add input_video=FILE"),
        ("input_video=", "input_video is empty: give a file, or leave it out"),
        ("last_image=nothing.png", "last_image=nothing.png: there is no such file"),
    ],
)
def test_what_cannot_be_given_is_told_in_a_line(files: dict[str, Path], given: str, said: str) -> None:
    with pytest.raises(DiffuseError) as caught:
        draft(files, *given.split())
    assert said.format_map(files) in str(caught.value) and "\n" not in str(caught.value)


def test_pictures_of_other_proportions_fit_where_one_says_how(files: dict[str, Path]) -> None:
    found = draft(files, "input_image={picture}", "last_image={upright}", "resize=crop", "input_crf=0")
    assert found.inputs is not None
    request = found.request(None)
    arrays = found.inputs.arrays(request)
    assert {name: array.shape for name, array in arrays.items()} == dict.fromkeys(("image", "last_image"), (64, 96, 3))
    compressed = found.inputs.arrays(replace(request, input_crf=51))
    assert all(np.abs(compressed[name].astype(int) - array).max() > 9 for name, array in arrays.items())


def test_a_strength_of_pictures_points_to_that_of_films(films: TinyFilms, files: dict[str, Path]) -> None:
    options: dict[str, Any] = {"model": films.folder, "progress": False}
    overrides = [*FIELDS[:2], "strength=0.5", f"input_image={files['picture']}"]
    with pytest.raises(DiffuseError, match="knows no strength; conditioning_strength says how far it keeps a picture"):
        diffuse.txt2img("x", overrides=overrides, **options)
