"""Requests from the configuration: files of prompts, and values that are refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffuse.config.compose import compose_config
from diffuse.config.request import draft_requests
from diffuse.errors import ConfigError


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ('\n  one, (x:1) = "y"  \r\n\r\n${seed} 🚀\n', ['one, (x:1) = "y"', "${seed} 🚀"]),
        ("\ufeffwith a mark\n", ["with a mark"]),
        ("# not a comment\nnull\n???", ["# not a comment", "null", "???"]),
        ("line\u2028separator\x0bkept\n", ["line\u2028separator\x0bkept"]),
    ],
)
def test_a_file_of_prompts_has_one_a_line(content: str, prompts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "prompts, (a) = [b].txt"
    path.write_text(content, encoding="utf-8", newline="")
    drafts = draft_requests(compose_config([f"prompt_file={path}"]))
    assert [draft.prompt for draft in drafts] == prompts
    assert len({draft.seed for draft in drafts}) == len(drafts)  # drawn for each
    same = draft_requests(compose_config([f"prompt_file={path}", "seed=3"]))
    assert {draft.seed for draft in same} == {3}


@pytest.mark.parametrize("content", [b"", b"\n \n", b"caf\xe9\n", b"\xff\xfea\0"])
def test_files_without_prompts_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    for wrong in (path, tmp_path / "missing.txt", tmp_path):
        assert "prompt_file" in refused(f"prompt_file={wrong}")
    assert "both set" in refused(f"prompt_file={path}", "prompt=a")


def refused(*overrides: str) -> str:
    """The one line that says why."""
    with pytest.raises(ConfigError) as caught:
        draft_requests(compose_config(overrides))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


WRONG = {
    "seed=abc": "whole number",
    "seed=1.5": "whole number",
    "seed=": "whole number",
    "seed=true": "whole number",
    "seed=1e3": "whole number",
    "seed=-1": "from 0",
    f"seed={2**63}": "from 0",
    "width=64.5": "whole number",
    "width=65": "64",
    "height=-8": "1 or more",
    "num_images=0": "1 or more",
    "num_images=null": "null",
    "num_inference_steps=0": "1 or more",
    "guidance_scale=high": "number",
    "guidance_scale=nan": "number",
    "guidance_scale=inf": "number",
    "guidance_scale=-1": "0 or more",
    "output.quality=0": "from 1 to 100",
    "output.quality=101": "from 1 to 100",
    "output.format=bmp": "png, jpg, webp",
    "output.dir=null": "null",
    "output.dir=": "folder",
    "output=3": "output.dir",
    "hardware.device=tpu": "auto, cpu, cuda, mps",
    "hardware.dtype=half": "bfloat16",
    "hardware.deterministic=yes": "relaxed, strict",
    "memory_profile.guidance=both": "batched, sequential",
    "memory_profile.tiled_decode=maybe": "true or false",
    "memory_profile.on_device=unet": "list",
    "scheduler.eta=abc": "number",
    "scheduler.timestep_spacing=even": "leading",
    "seed=1,2": "diffuse -m",
    "seed=choice(1,2)": "diffuse -m",
    "+seed=3": "seed=3",
    "~seed": "seed=null",
    "prompt": "NAME=VALUE",
    "=3": "NAME=VALUE",
    "=x": "NAME=VALUE",
    "model=null": "NAME=VALUE",
    "model.source=": "model.source",
    "input_image=": "is empty",
    "mask_image=": "is empty",
    "prompt_file=": "is empty",
    "objective.reference= ": "is empty",
    "+model.request_defaults.seed=true": "seed=true: should be a whole number",
    "prompt=\udce9": "UTF-8",
    "negative_prompt=\udce9": "UTF-8",
    "+model.request_defaults.sed=1": "seed",
    "+hydrant=3": "hydrant",
    "+model.request_defaults_x=3": "request_defaults",
    "+model.request_defaults.num_images=3": "model.request_defaults.num_images: has no effect",
    "+refiner.request_defaults.keep_unmasked=true": "refiner.request_defaults.keep_unmasked: has no effect",
    "+refiner.request_defaults.sed=1": "refiner.request_defaults.sed",
    "+model.min_vram_gib.balance=1": "balanced",
    "model._target_=os.system": "diffuse.pipelines",
    "scheduler._target_=builtins.eval": "diffuse.schedulers",
    "seed=${nothing}": "nothing",
    "width=${height}${seed}": "width",
}


@pytest.mark.parametrize("override", WRONG)
def test_a_value_that_does_not_fit_is_refused_in_one_line(override: str) -> None:
    said = refused(override)
    assert WRONG[override] in said
    assert override.lstrip("+~").partition("=")[0] in said
