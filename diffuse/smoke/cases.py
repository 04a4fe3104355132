"""What a smoke run makes: one small request for each thing that there is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffuse.config.groups import TINY, group_options
from diffuse.errors import ConfigError

SIDE = 32  # pixels; what a request does not say otherwise
_COMMON = ("seed=1", f"width={SIDE}", f"height={SIDE}", "num_inference_steps=2", "prompt=a cactus on a pink background")
_GROUPS = ("output", "hardware", "memory_profile", "tracking")  # what the user may say of all of them
_NAMES = ("experiment", "suite")
_SAMPLERS = {  # what some need of their own
    "flow_match_euler": ("model.source={sd_flow}",),  # a model that predicts a flow
    "pndm": ("num_inference_steps=4",),
}


@dataclass(frozen=True)
class Case:
    """A request. In its overrides, `{sd}` and the other names of `checkpoints.KINDS` stand for their folders,
    `{picture}` and `{mask}` for files."""

    name: str
    overrides: tuple[str, ...]

    @property
    def slug(self) -> str:
        """The name as that of a file."""
        return re.sub(r"\W+", "_", self.name.lower())


def cases() -> list[Case]:
    """All of them, families first."""
    picture, mask = "input_image={picture}", "mask_image={mask}"
    families = {
        "tiny, text to image": ("model=tiny", "width=64", "height=64"),
        "tiny, two pictures": ("model=tiny", "num_images=2"),
        "tiny, image to image": ("model=tiny", picture, "strength=0.6"),
        "tiny, inpainting": ("model=tiny", picture, mask, "keep_unmasked=true"),
        "tiny, model=auto": ("model=auto", f"model.source={TINY}"),
        "SD 2.x inpainting checkpoint": ("model=sd21", "model.source={sd_inpaint}", picture, mask),
        "SD 2.x distilled, LCM": ("model=sd21", "model.source={sd_distilled}", "scheduler=lcm", "guidance_scale=8"),
        "SDXL, text to image": ("model=sdxl", "model.source={sdxl}", "prompt_2=oil on canvas", "negative_prompt=grey"),
        "SDXL, image to image": ("model=sdxl", "model.source={sdxl}", picture, "strength=0.6"),
        "SDXL turbo": ("model=sdxl_turbo", "model.source={sdxl}", "num_inference_steps=1"),
        "SDXL and refiner": (
            "model=sdxl",
            "model.source={sdxl}",
            "refiner=sdxl",
            "refiner.source={sdxl_refiner}",
            "denoising_end=0.5",
        ),
        "SDXL refiner alone": ("model=sdxl_refiner", "model.source={sdxl_refiner}", picture, "strength=0.6"),
    }
    samplers = {
        f"scheduler={name}": ("model=sd21", "model.source={sd}", f"scheduler={name}", *_SAMPLERS.get(name, ()))
        for name in group_options("scheduler")
    }
    return [Case(name, (*_COMMON, *own)) for name, own in (families | samplers).items()]


def check(overrides: Sequence[str], junit: Path | None) -> None:
    """Refuses what a smoke run has no use for. `overrides` are those it was composed with.

    Raises:
        ConfigError: an override says what to make, which the cases do; or there is no folder for the JUnit file.
    """
    for override in overrides:
        name = override.partition("=")[0]
        if (name.partition(".")[0] not in _GROUPS and name not in _NAMES) or name == "output.name":
            raise ConfigError(
                f"{override}: experiment=smoke makes requests of its own; it takes output.dir, output.format, "
                "hardware, memory_profile and tracking"
            )
    if junit is not None and (junit.is_dir() or not junit.absolute().parent.is_dir()):
        what = "is a folder" if junit.is_dir() else "its folder does not exist"
        raise ConfigError(f"--junit {junit}: {what}; give the name of a file")
