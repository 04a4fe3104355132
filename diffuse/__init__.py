"""A declarative, reproducible runner for diffusion models."""

from typing import TYPE_CHECKING

from diffuse.device import fork as fork  # notes what a fork takes away, from now on

__version__ = "0.1.0"
__all__ = [
    "DiffuseError",
    "Generation",
    "Pipeline",
    "Step",
    "Stop",
    "img2img",
    "img2vid",
    "inpaint",
    "load_pipeline",
    "txt2img",
    "txt2vid",
]

if TYPE_CHECKING:
    from diffuse.api import (
        DiffuseError,
        Generation,
        Pipeline,
        Step,
        Stop,
        img2img,
        img2vid,
        inpaint,
        load_pipeline,
        txt2img,
        txt2vid,
    )


def __getattr__(name: str) -> object:
    # On first use: the command's help needs none of it, and it takes seconds to import.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module("diffuse.api"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
