"""Long and weighted prompts: where they are taken apart, and whole pictures against diffusers', which is handed
the text states that the tests make themselves of chunks written down by hand, or that compel makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import oracle_sdxl
import picture_parity
import prompt_oracle
import pytest
import torch
from compel import EmbeddingsProvider, SplitLongTextMode
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_parity import apart, assert_same, made, photograph, stencil
from PIL import Image
from prompt_oracle import Chunk

import diffuse
from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.device import hardware
from diffuse.device.memory import Memory
from diffuse.media.load import read_record
from diffuse.models.text_encoder.clip_tokenizer import CLIPTokenizer
from diffuse.pipelines.stable_diffusion import StableDiffusion
from diffuse.pipelines.stable_diffusion_xl import StableDiffusionXL
from diffuse.schema import (
    Device,
    GenerationRequest,
    HardwareConfig,
    LongPrompt,
    MemoryProfileConfig,
    PromptSyntax,
)

SMALL: dict[str, Any] = {"channels": (16, 32), "heads": 2, "cross": (True, True), "vae_channels": (8, 8, 16)}
SD = oracle.Variant(**SMALL, prediction_type="epsilon")
SD15 = oracle.Variant(  # as Stable Diffusion 1.5 publishes itself
    **SMALL, prediction_type="epsilon", linear_projection=False, hidden_act="quick_gelu", pad_token=oracle.END, seed=4
)
SDXL = oracle_sdxl.Variant(channels=(16, 32), heads=(2, 4), cross=(False, True), layers=(1, 2), vae_channels=(8, 16))
ROOM = 75


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return oracle.build(tmp_path_factory.mktemp("sd"), SD)


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return oracle.build(tmp_path_factory.mktemp("sd15"), SD15)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return oracle_sdxl.build(tmp_path_factory.mktemp("sdxl"), SDXL)


# Where a text is taken apart


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return CLIPTokenizer.from_folder(oracle.write_tokenizer(tmp_path_factory.mktemp("tokenizer"), "classic", "!"))


BORDERS: dict[str, tuple[str, list[int]]] = {  # "the" is one token, "cat" two, a comma one, an x of "xxx" one
    "nothing": ("", [0]),
    "exactly one chunk": ("the " * 75, [75]),
    "one more word": ("the " * 76, [75, 1]),
    "a word across the border": ("the " * 74 + "cat " + "the", [74, 3]),
    "a comma shortly before": ("the " * 60 + "cat, " + "the " * 20, [63, 20]),
    "the last of two commas": ("the " * 60 + ", the , " + "the " * 20, [63, 20]),
    "a comma as the 56th": ("the " * 55 + ", " + "the " * 20, [56, 20]),
    "a comma as the 55th": ("the " * 54 + ", " + "the " * 21, [75, 1]),
    "a comma as the last": ("the " * 74 + ", " + "the " * 5, [75, 5]),
    "a word longer than a chunk": ("the " + "x" * 160, [1, 75, 75, 10]),
    "marks that pad": ("!" * 100, [75, 25]),
    "a thousand": ("the " * 1000, [75] * 13 + [25]),
}


@pytest.mark.parametrize("name", BORDERS)
def test_borders(name: str, tokenizer: CLIPTokenizer) -> None:
    text, lengths = BORDERS[name]
    split = tokenizer.split(text)
    assert [len(split.ids[chunk]) for chunk in split.chunks(ROOM)] == lengths


PIECES = ["the ", "cat, ", "a ", "🐈", "!", "supercalifragilistic ", ",", ", ", "(x:1.3)", "\n", "xxxxxxx"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join), st.integers(4, 75))
def test_chunks_are_the_whole_text_and_cut_no_word_that_fits(tokenizer: CLIPTokenizer, text: str, size: int) -> None:
    split = tokenizer.split(text)
    chunks = [range(*chunk.indices(len(split.ids))) for chunk in split.chunks(size)]
    assert [i for chunk in chunks for i in chunk] == list(range(len(split.ids)))
    for chunk in chunks[:-1]:
        assert 0 < len(chunk) <= size
        assert split.words[chunk[-1]] or (len(chunk) == size and not any(split.words[i] for i in chunk))
    assert len(chunks[-1]) <= size


# Whole pictures

CAT: Chunk = [("a cat, the dog and 3 rockets", 1)]
LONG: list[Chunk] = [[("the " * 60 + "cat,", 1)], [("in the ocean of " + "a red can and " * 9 + "an", 1)]]
BLURRY: Chunk = [("blurry, the and", 1)]
HEAVY: Chunk = [("a", 1), ("cat, the", 1.5), ("dog", 0.4), ("and", 1), ("3 rockets", -0.5)]
HEAVY_TEXT = "a (cat, the:1.5) (dog:0.4) and (3 rockets:-0.5)"
EMPTY: Chunk = [("", 1)]


def text(chunks: list[Chunk]) -> str:
    return " ".join(piece for chunk in chunks for piece, _ in chunk)


# What is asked for, and by hand the chunks of the prompt and of the negative prompt.
CASES: dict[str, tuple[dict[str, Any], list[Chunk], list[Chunk]]] = {
    "a long prompt": ({"prompt": text(LONG), "long_prompt": "chunk"}, LONG, [EMPTY, EMPTY]),
    "a long negative prompt": (
        {"prompt": text([CAT]), "negative_prompt": text(LONG), "long_prompt": "chunk"},
        [CAT, EMPTY],
        LONG,
    ),
    "a thousand tokens": (
        {"prompt": "the " * 1000 + "cat", "negative_prompt": text([BLURRY]), "long_prompt": "chunk"},
        [[("the " * 75, 1)]] * 13 + [[("the " * 25 + "cat", 1)]],
        [BLURRY, *[EMPTY] * 13],
    ),
    "a long prompt, cut": ({"prompt": "the " * 74 + "of and cat"}, [[("the " * 74 + "of", 1)]], [EMPTY]),
    "emoji": (
        {"prompt": "🐈 " * 30, "negative_prompt": "🐕", "long_prompt": "chunk"},
        [[("🐈 " * 18, 1)], [("🐈 " * 12, 1)]],
        [[("🐕", 1)], EMPTY],
    ),
    "weights": (
        {"prompt": HEAVY_TEXT, "negative_prompt": "((blurry)), [the] and", "prompt_syntax": "weighted"},
        [HEAVY],
        [[("blurry", 1.1 * 1.1), (",", 1), ("the", 1 / 1.1), ("and", 1)]],
    ),
    "weights in chunks": (
        {
            "prompt": f"({text(LONG)}:1.2) (and:0)",
            "negative_prompt": HEAVY_TEXT,
            "prompt_syntax": "weighted",
            "long_prompt": "chunk",
        },
        [[(piece, 1.2) for piece, _ in LONG[0]], [*((piece, 1.2) for piece, _ in LONG[1]), ("and", 0)]],
        [HEAVY, EMPTY],
    ),
    "weights, cut": (
        {"prompt": f"({'the ' * 73}:1.2) (and of cat:2) dog", "prompt_syntax": "weighted"},
        [[("the " * 73, 1.2), ("and", 2), ("of", 2)]],
        [EMPTY],
    ),
}


@lru_cache
def loaded(kind: Any, folder: Path) -> Any:
    pipeline = kind.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def theirs(kind: Any, folder: Path, positive: list[Chunk], negative: list[Chunk], **request: Any) -> np.ndarray:
    """What diffusers makes of the states of these chunks."""
    embeds = prompt_oracle.sd_embeds(loaded(kind, folder), positive, negative)
    return picture_parity.made_by_diffusers(kind, folder, prompt=None, **embeds, **request)


@pytest.mark.parametrize("name", CASES)
def test_pictures_of_stable_diffusion(name: str, sd: Path, sd15: Path, tmp_path: Path) -> None:
    request, positive, negative = CASES[name]
    folder = sd15 if "weights" in name else sd
    ours = made(folder, tmp_path / "out", width=64, height=64, **request)
    assert_same(ours, theirs(StableDiffusionPipeline, folder, positive, negative, width=64, height=64))


def test_pictures_from_pictures(sd: Path, tmp_path: Path) -> None:
    """Image-to-image and inpainting read a prompt as text-to-image does."""
    request, positive, negative = CASES["weights in chunks"]
    files = {"input_image": photograph(tmp_path / "photo.png"), "strength": 0.7}
    peers = {"image": files["input_image"], "strength": 0.7}
    assert_same(
        made(sd, tmp_path / "out", **files, **request),
        theirs(StableDiffusionImg2ImgPipeline, sd, positive, negative, **peers),
    )
    files["mask_image"] = peers["mask_image"] = stencil(tmp_path / "mask.png")
    assert_same(
        made(sd, tmp_path / "out", **files, **request),
        theirs(StableDiffusionInpaintPipeline, sd, positive, negative, width=64, height=64, **peers),
    )


SECOND: list[Chunk] = [[("the " * 74, 1)], [("cat " * 37, 1)], [("cat " * 5, 1)]]
SDXL_CASES: dict[str, tuple[dict[str, Any], list[list[Chunk]], list[list[Chunk]]]] = {
    "a long prompt": (
        {"prompt": text(LONG), "negative_prompt": text([BLURRY]), "long_prompt": "chunk"},
        [LONG] * 2,
        [[BLURRY, EMPTY]] * 2,
    ),
    "a longer second prompt, a second negative prompt": (
        {
            "prompt": text(LONG),
            "prompt_2": text(SECOND),
            "negative_prompt": "",
            "negative_prompt_2": text([BLURRY]),
            "long_prompt": "chunk",
        },
        [[*LONG, EMPTY], SECOND],
        [[EMPTY] * 3, [BLURRY, EMPTY, EMPTY]],
    ),
    "weights": (
        {
            "prompt": HEAVY_TEXT,
            "prompt_2": "[the] (red can:1.7)",
            "negative_prompt": "(blurry:1.4), the and",
            "negative_prompt_2": "(an:0.2)",
            "prompt_syntax": "weighted",
        },
        [[HEAVY], [[("the", 1 / 1.1), ("red can", 1.7)]]],
        [[[("blurry", 1.4), (", the and", 1)]], [[("an", 0.2)]]],
    ),
    "weights in chunks": (
        {
            "prompt": f"({text(LONG)}:1.2) (and:0)",
            "negative_prompt": HEAVY_TEXT,
            "prompt_syntax": "weighted",
            "long_prompt": "chunk",
        },
        [[[(piece, 1.2) for piece, _ in LONG[0]], [*((piece, 1.2) for piece, _ in LONG[1]), ("and", 0)]]] * 2,
        [[HEAVY, EMPTY]] * 2,
    ),
}


@pytest.mark.parametrize("name", SDXL_CASES)
def test_pictures_of_sdxl(name: str, sdxl: Path, tmp_path: Path) -> None:
    request, positive, negative = SDXL_CASES[name]
    embeds = prompt_oracle.sdxl_embeds(loaded(StableDiffusionXLPipeline, sdxl), positive, negative)
    ours = made(sdxl, tmp_path / "out", model="sdxl", width=64, height=64, **request)
    assert_same(
        ours,
        picture_parity.made_by_diffusers(StableDiffusionXLPipeline, sdxl, prompt=None, width=64, height=64, **embeds),
    )


def test_an_absent_negative_prompt_is_zeros_as_long_as_the_prompt(sdxl: Path) -> None:
    encoded = pipeline(sdxl, StableDiffusionXL).encode_prompts(
        replace(REQUEST, prompt=text(LONG), negative_prompt=None), True
    )
    assert encoded.negative is not None
    assert encoded.positive["encoder_hidden_states"].shape == (1, 154, 48)
    assert encoded.negative["encoder_hidden_states"].shape == (1, 154, 48)
    assert not encoded.negative["encoder_hidden_states"].any() and not encoded.negative["text_embeds"].any()


# Against compel, which takes weights below 1 for something else


COMPEL = [
    ("a cat, the dog", 1.0),
    ("and 3 rockets", 1.4),
    ("of the ocean", 1.0),
    ("the " * 120, 2.5),
    ("an", 1.0),
]


@torch.no_grad()
def by_compel(tokenizer: Any, encoder: Any, weighed: list[tuple[str, float]]) -> torch.Tensor:
    provider = EmbeddingsProvider(tokenizer, encoder, truncate=False, split_long_text_mode=SplitLongTextMode.WORDS)
    pieces, weights = zip(*weighed, strict=True)
    made: torch.Tensor = provider.get_embeddings_for_weighted_prompt_fragments([list(pieces)], [list(weights)])
    return made


def test_pictures_of_states_that_compel_makes(sd: Path, tmp_path: Path) -> None:
    peer = loaded(StableDiffusionPipeline, sd)
    texts = (COMPEL, [("blurry", 1.2), ("the " * 76, 1.0)])
    embeds = [by_compel(peer.tokenizer, peer.text_encoder, weighed) for weighed in texts]
    assert embeds[0].shape == (1, 154, 32)
    names = ("prompt_embeds", "negative_prompt_embeds")
    expected = picture_parity.made_by_diffusers(
        StableDiffusionPipeline, sd, prompt=None, width=64, height=64, **dict(zip(names, embeds, strict=True))
    )
    written = [" ".join(f"({piece}:{weight})" for piece, weight in weighed) for weighed in texts]
    ours = made(
        sd,
        tmp_path / "out",
        width=64,
        height=64,
        prompt=written[0],
        negative_prompt=written[1],
        long_prompt="chunk",
        prompt_syntax="weighted",
    )
    assert_same(ours, expected)


# What must change nothing, and what must change something

QUICK = {"width": 64, "height": 64, "hardware.deterministic": "strict"}


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_syntax": "weighted"},
        {"long_prompt": "chunk"},
        {"prompt": "(a cat, (the:1) dog:1) and ([3 rockets])", "prompt_syntax": "weighted"},
        {"prompt": "a c(at, t:1)he dog and 3 rock(ets:1)", "prompt_syntax": "weighted", "negative_prompt": "()"},
    ],
    ids=str,
)
def test_weights_of_1_and_short_prompts_change_no_bit(change: dict[str, Any], sd: Path, tmp_path: Path) -> None:
    plain = made(sd, tmp_path / "out", **QUICK, prompt=text([CAT]))
    assert np.array_equal(plain, made(sd, tmp_path / "out", **{**QUICK, "prompt": text([CAT]), **change}))


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_syntax": "weighted", "prompt": text([CAT]) + " (of:1.2)"},
        {"prompt_syntax": "weighted", "negative_prompt": "(blurry:1.5)"},
        {"long_prompt": "chunk"},
        {"negative_prompt": "(blurry:1)"},  # which are no weights in plain text
    ],
    ids=str,
)
def test_each_matters(change: dict[str, Any], sd: Path, tmp_path: Path) -> None:
    negative = "blurry" if "blurry" in str(change) else text(LONG)
    plain = {**QUICK, "prompt": text([CAT]) + " of", "negative_prompt": negative}
    assert apart(made(sd, tmp_path / "out", **plain), made(sd, tmp_path / "out", **{**plain, **change})) > 0.5


@pytest.mark.parametrize("determinism", ["strict", "relaxed"])
def test_alone_and_in_a_batch(determinism: str, sd: Path, tmp_path: Path) -> None:
    request, _, _ = CASES["weights in chunks"]
    request = {**request, "width": 64, "height": 64, "hardware.deterministic": determinism}
    both = made(sd, tmp_path / "out", **request, num_images=2, seed=5, **{"memory_profile.batch_size": 2})
    alone = [made(sd, tmp_path / "out", **request, seed=seed)[0] for seed in (5, 6)]
    sequential = made(sd, tmp_path / "out", **request, seed=5, **{"memory_profile.guidance": "sequential"})
    difference = np.abs(both.astype(int) - np.stack(alone)).max()
    assert difference <= (0 if determinism == "strict" else 2)
    assert np.abs(sequential[0].astype(int) - alone[0]).max() <= (0 if determinism == "strict" else 2)


def test_what_is_cut_is_said_and_in_chunks_nothing_is(sd: Path, tmp_path: Path) -> None:
    request = {**QUICK, "num_inference_steps": 1, "prompt": f"({text(LONG)}:1.2)", "prompt_syntax": "weighted"}
    cut = picture_parity.run(sd, tmp_path / "out", **request)
    (line,) = (line for line in cut.err.splitlines() if line.startswith("warning"))
    assert line.startswith("warning: the prompt is longer than 77 tokens; cut off: ")
    assert line.endswith("an'; long_prompt=chunk reads it all") and "(" not in line and ":1.2" not in line
    whole = picture_parity.run(sd, tmp_path / "out", long_prompt="chunk", **request)
    assert whole.status == 0 and "warning" not in whole.err


def test_the_record_and_python(sd: Path, tmp_path: Path) -> None:
    request = {"num_inference_steps": 1, "prompt_syntax": "weighted", "long_prompt": "chunk"}
    done = picture_parity.run(sd, tmp_path / "out", **{**QUICK, **request, "prompt": HEAVY_TEXT})
    (path,) = done.paths
    record = read_record(path)
    for part in (record["request"], record["config"]):
        assert (part["prompt"], part["prompt_syntax"], part["long_prompt"]) == (HEAVY_TEXT, "weighted", "chunk")
    made = diffuse.txt2img(
        HEAVY_TEXT,
        model="sd21",
        width=64,
        height=64,
        seed=0,
        prompt_syntax="weighted",
        long_prompt="chunk",
        num_inference_steps=1,
        progress=False,
        overrides=[f"model.source={sd}", "hardware.threads=1", "hardware.deterministic=strict", "hardware=cpu"],
    )
    assert np.array_equal(made.frames[0, 0], np.asarray(Image.open(path)))


# The pipeline

REQUEST = GenerationRequest(
    prompt="a cat",
    negative_prompt="",
    seed=0,
    num_images=1,
    width=64,
    height=64,
    num_inference_steps=1,
    guidance_scale=5.0,
    long_prompt=LongPrompt.chunk,
    prompt_syntax=PromptSyntax.weighted,
)


def pipeline(folder: Path, kind: Callable[..., Any]) -> Any:
    profile = MemoryProfileConfig(name="test", on_device=["*"])
    memory = Memory(profile, hardware.detect(HardwareConfig(name="cpu", device=Device.cpu)))
    return kind(CheckpointFolder.open(folder), memory)


def test_encoding_depends_on_the_texts_alone(sd: Path) -> None:
    """So that what is encoded once can be kept for another seed, size, guidance or picture."""
    pipe = pipeline(sd, StableDiffusion)
    long = replace(REQUEST, prompt=text(LONG), negative_prompt="(blurry:1.5)")
    other = replace(long, seed=7, num_images=3, width=128, num_inference_steps=9, guidance_scale=2.0)
    with torch.inference_mode():
        first, second = pipe.encode_prompts(long, True), pipe.encode_prompts(other, True)
        unguided = pipe.encode_prompts(long, False)
    for one, two in zip(first[:2], second[:2], strict=True):
        assert torch.equal(one["encoder_hidden_states"], two["encoder_hidden_states"])
    assert unguided.negative is None
    assert torch.equal(unguided.positive["encoder_hidden_states"], first.positive["encoder_hidden_states"])


def test_a_chunk_is_encoded_once_however_often_it_stands_there(sd: Path) -> None:
    pipe, seen = pipeline(sd, StableDiffusion), []
    with pipe.memory.use("text_encoder") as encoder:
        encoder.register_forward_hook(lambda *_: seen.append(1))
    with torch.inference_mode():
        pipe.encode_prompts(replace(REQUEST, prompt="the " * 1000), True)
    assert len(seen) == 3  # of thirteen full chunks one, the last, and the empty one


def test_a_token_that_weighs_1_among_others_keeps_its_state_to_the_bit(sd: Path) -> None:
    pipe = pipeline(sd, StableDiffusion)
    with torch.inference_mode():
        plain, heavy = (
            pipe.encode_prompts(replace(REQUEST, prompt=prompt), False).positive["encoder_hidden_states"][0]
            for prompt in ("the cat and the dog", "the (cat:1.7) and the dog")
        )
    assert [i for i in range(77) if not torch.equal(plain[i], heavy[i])] == [2, 3]  # "ca" and "t", after the start
