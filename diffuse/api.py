"""The Python interface: `diffuse.txt2img`, `img2img`, `inpaint`, `load_pipeline`.

Arguments become the overrides of the command line, and what runs is what the command runs: a picture made here and one
made by `diffuse` from the same words are the same to the bit. What only Python can hand over goes beside them: pictures
and latents in memory, and a function to be told of each step.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from PIL import Image

from diffuse.config.groups import group_options
from diffuse.config.request import draft_requests
from diffuse.errors import ConfigError, DiffuseError, Stop
from diffuse.run import model_auto, run
from diffuse.run import open as opening
from diffuse.run.generation import Generation
from diffuse.sampling.results import Step
from diffuse.schema import RequestArguments

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "DiffuseError",
    "Fields",
    "Generation",
    "Options",
    "Picture",
    "Pipeline",
    "Step",
    "Stop",
    "img2img",
    "inpaint",
    "load_pipeline",
    "txt2img",
]

Picture = str | Path | Image.Image | np.ndarray
"""A file, a PIL image, or an array `[H, W]`, `[H, W, 3]` or `[H, W, 4]`: uint8, floating point from 0 to 1, or bool."""

_IN_MEMORY = "a picture in memory"  # stands in the record for the file


class Fields(RequestArguments, total=False):
    """The request fields (see `RequestArguments`, `diffuse --help`), the groups, and any other override.

    What is None or left out takes the model's default.
    """

    refiner: str | None
    scheduler: str | None
    memory_profile: str | None
    hardware: str | None
    tracking: str | None
    experiment: str | None
    overrides: Sequence[str]
    """Anything else, as on the command line: `["scheduler.eta=0.5", "hardware.dtype=bfloat16"]`."""


class Options(Fields, total=False):
    """`Fields`, and what is of one call alone."""

    latents: Tensor | np.ndarray | None
    """Initial noise of unit variance, `[N, C, h, w]`, instead of that which the seeds give."""
    on_step: Callable[[Step], None] | None
    """Told of each step as it ends; may look at `step.preview()`, and may raise `diffuse.Stop` to end the run."""
    save: bool | str | Path
    """Writes the pictures and records the run in the tracking store, as the command does; a folder says where to."""
    progress: bool
    """Whether a bar and messages are shown, in a notebook or on standard error. They are unless this is False."""


@dataclass(frozen=True)
class Pipeline:
    """A model, ready to make pictures; see `load_pipeline`. The weights of the last two that were used stay loaded."""

    settings: Mapping[str, str] = field(default_factory=dict)  # override by its name

    def __call__(self, prompt: str | None = None, **options: Unpack[Options]) -> Generation:
        """See `txt2img`; what is given here goes before what `load_pipeline` was given."""
        return self.txt2img(prompt, **options)

    def txt2img(self, prompt: str | None = None, **options: Unpack[Options]) -> Generation:
        """See `txt2img`."""
        return self._make({"prompt": prompt}, {}, options)

    def img2img(
        self,
        prompt: str | None,
        input_image: Picture,
        *,
        strength: float | None = None,
        resize: str | None = None,
        **options: Unpack[Options],
    ) -> Generation:
        """See `img2img`."""
        said = {"prompt": prompt, "strength": strength, "resize": resize}
        return self._make(said, {"input_image": input_image}, options)

    def inpaint(
        self,
        prompt: str | None,
        input_image: Picture,
        mask_image: Picture,
        *,
        keep_unmasked: bool = False,
        strength: float | None = None,
        resize: str | None = None,
        **options: Unpack[Options],
    ) -> Generation:
        """See `inpaint`."""
        said = {"prompt": prompt, "keep_unmasked": keep_unmasked, "strength": strength, "resize": resize}
        return self._make(said, {"input_image": input_image, "mask_image": mask_image}, options)

    def _make(self, said: Mapping[str, Any], pictures: Mapping[str, Picture], options: Options) -> Generation:
        fields: dict[str, Any] = {**options, **said}
        latents, on_step = fields.pop("latents", None), fields.pop("on_step", None)
        save, progress = fields.pop("save", False), fields.pop("progress", True)
        if save and not isinstance(save, bool):
            fields["output.dir"] = str(save)
        in_memory = {name: picture for name, picture in pictures.items() if not isinstance(picture, str | Path)}
        fields |= {name: _IN_MEMORY if name in in_memory else str(picture) for name, picture in pictures.items()}

        overrides = list({**self.settings, **_overrides(fields)}.values())
        cfg = model_auto.compose(overrides)
        drafts = draft_requests(cfg, in_memory)
        if len(drafts) > 1:
            raise ConfigError(f"prompt_file={cfg.prompt_file}: holds {len(drafts)} prompts; give one as the prompt")
        (generation,) = run.generate(
            cfg,
            drafts,
            overrides=overrides,
            latents=None if latents is None else _noise(latents),
            save=bool(save),
            told=run.Told(on_step=on_step, messages=progress),
        )
        return generation


def load_pipeline(model: str | Path = "tiny", **fields: Unpack[Fields]) -> Pipeline:
    """A model by its name in `conf/model`, or a folder or hub repository in the diffusers layout.

    Finds the checkpoint and checks that its parts fit together; weights are read when they are first used. `fields` are
    the defaults of every picture that is made with it.

        pipeline = diffuse.load_pipeline("sd21", scheduler="euler", num_inference_steps=30)
        pipeline("a lighthouse", seed=7).images[0]

    Raises:
        DiffuseError: there is no such model, its files are damaged, or a field does not fit.
    """
    settings = _overrides({**_model(model), **fields})
    opening.open_pipeline(model_auto.compose(list(settings.values())))
    return Pipeline(settings)


def txt2img(prompt: str | None = None, *, model: str | Path = "tiny", **options: Unpack[Options]) -> Generation:
    """Pictures from a prompt.

        diffuse.txt2img("a cactus on a pink background", seed=7, num_images=4).images
        diffuse.txt2img("a lighthouse", model="sd21", scheduler="euler", save="pictures").paths

    Args:
        prompt: what the picture shows, to the letter.
        model: a name in `conf/model`, or a folder or hub repository in the diffusers layout.
        options: see `Options` and `Fields`.

    Raises:
        DiffuseError: the request is wrong, and nothing was made; or the run failed (RunError) or was stopped (Stop).
    """
    return Pipeline(_overrides(_model(model))).txt2img(prompt, **options)


def img2img(
    prompt: str | None,
    input_image: Picture,
    *,
    model: str | Path = "tiny",
    strength: float | None = None,
    resize: str | None = None,
    **options: Unpack[Options],
) -> Generation:
    """Pictures that start from another.

    Args:
        prompt: what the picture shows, to the letter.
        input_image: what to start from; width and height are then its own unless given.
        model: a name in `conf/model`, or a folder or hub repository in the diffusers layout.
        strength: above 0 up to 1, how far the picture may change; 0.8 where the model says nothing else.
        resize: `stretch`, `crop` or `pad`: how a picture of another size is made to fit.
        options: see `Options` and `Fields`.

    Raises:
        DiffuseError: as `txt2img`; or the picture cannot be read.
    """
    pipeline = Pipeline(_overrides(_model(model)))
    return pipeline.img2img(prompt, input_image, strength=strength, resize=resize, **options)


def inpaint(
    prompt: str | None,
    input_image: Picture,
    mask_image: Picture,
    *,
    model: str | Path = "tiny",
    keep_unmasked: bool = False,
    strength: float | None = None,
    resize: str | None = None,
    **options: Unpack[Options],
) -> Generation:
    """Pictures of which a part is painted anew.

    Args:
        prompt: what the picture shows, to the letter.
        input_image: the picture to paint into.
        mask_image: of the same size; white is painted anew, black is kept.
        model: a name in `conf/model`, or a folder or hub repository in the diffusers layout.
        keep_unmasked: returns the pixels outside the mask unchanged, which the autoencoder would change a little.
        strength: above 0 up to 1, how far the painted part may keep to what was there; 1 forgets it.
        resize: see `img2img`.
        options: see `Options` and `Fields`.

    Raises:
        DiffuseError: as `img2img`; or the mask is of another size.
    """
    return Pipeline(_overrides(_model(model))).inpaint(
        prompt,
        input_image,
        mask_image,
        keep_unmasked=keep_unmasked,
        strength=strength,
        resize=resize,
        **options,
    )


def _model(model: str | Path) -> dict[str, str]:
    """The fields that name a model: an option of its group, or any checkpoint."""
    name = str(model)
    if name in group_options("model") or not ("/" in name or Path(name).is_dir()):
        return {"model": name}
    return {"model": "auto", "model.source": name}


def _overrides(fields: Mapping[str, Any]) -> dict[str, str]:
    """By its name, each field that is given as an override; those of `overrides` among them."""
    given = dict(fields)
    own = {override.partition("=")[0]: override for override in given.pop("overrides", ())}
    return own | {name: f"{name}={_word(name, value)}" for name, value in given.items() if value is not None}


def _word(name: str, value: Any) -> str:
    """A value as it is written on a command line."""
    if hasattr(value, "tolist"):  # NumPy's and torch's own numbers and lists of them
        value = value.tolist()
    if isinstance(value, str | Path):
        return str(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Sequence):
        return f"[{','.join(_word(name, item) for item in value)}]"
    try:
        return str(operator.index(value))
    except TypeError:
        raise ConfigError(f"{name}: is of type {type(value).__name__}; give text or a number") from None


def _noise(latents: Any) -> Tensor:
    """Latents of any kind as float32 on the CPU."""
    import torch

    try:
        tensor = torch.as_tensor(latents).detach().to("cpu", torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"latents: cannot be read as numbers ({error}); give a tensor or an array") from None
    if not bool(torch.isfinite(tensor).all()):
        raise ConfigError("latents: hold NaN or infinity; give noise of unit variance")
    return tensor
