"""The Python interface: `diffuse.txt2img`, `img2img`, `inpaint`, `txt2vid`, `img2vid`, `load_pipeline`.

Arguments become the overrides of the command line, and the same code runs: an image made here and one made by `diffuse`
from the same words are the same to the bit. Images and latents in memory, and callbacks, exist in Python alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from PIL import Image

from diffuse.arguments import argument_overrides, as_noise, model_fields, take_embeddings
from diffuse.config.compose import compose_with_hydra, own_configuration
from diffuse.config.quoting import quote_overrides
from diffuse.config.request import RequestDraft, draft_requests
from diffuse.device.hardware import kept_switches
from diffuse.errors import ConfigError, DiffuseError, Stop
from diffuse.pipelines.families import load_family
from diffuse.run.callbacks import Callbacks
from diffuse.run.generation import Generation
from diffuse.run.model_auto import compose_model
from diffuse.run.open import open_pipeline
from diffuse.run.prepare import prepare
from diffuse.run.run import generate
from diffuse.sampling.results import Step
from diffuse.schema import RequestArguments

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from diffuse.sampling.prompt_embeddings import PromptEmbeddings

__all__ = [
    "DiffuseError",
    "Fields",
    "Generation",
    "ImageLike",
    "Options",
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

ImageLike = str | Path | Image.Image | np.ndarray
"""A file, a PIL image, or an array `[H, W]`, `[H, W, 3]` or `[H, W, 4]`: uint8, floating point from 0 to 1, or bool."""

_IN_MEMORY = "a picture in memory"  # in place of the file's name in the record


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
    """`Fields`, and the options of a single call."""

    latents: Tensor | np.ndarray | Mapping[str, Tensor] | None
    """Initial noise of unit variance, `[N, C, h, w]`, instead of the noise that the seeds give; also by name, as
    `{"image": ...}`, and for films `{"video": [N, C, F, h, w], "audio": [N, c, A, bins]}`."""
    prompt_embeds: Tensor | np.ndarray | None
    """What the text encoders make of a prompt, `[1, T, D]`, in its place; see `Pipeline.encode`."""
    negative_prompt_embeds: Tensor | np.ndarray | None
    """The same of the negative prompt, of the same shape; needed where there is guidance."""
    pooled_prompt_embeds: Tensor | np.ndarray | None
    """SDXL's pooled text, `[1, D]`."""
    negative_pooled_prompt_embeds: Tensor | np.ndarray | None
    """The same of the negative prompt."""
    on_step: Callable[[Step], None] | None
    """Called with each step that has ended. It may call `step.preview()`, and raise `diffuse.Stop` to end the run."""
    save: bool | str | Path
    """Saves the images and records the run in the tracking store, as the command does; or the folder to save in."""
    progress: bool
    """Shows a bar and messages, in a notebook or on standard error; True by default."""


@dataclass(frozen=True)
class Pipeline:
    """A model, ready to make images; see `load_pipeline`. The weights of the last two that were used stay loaded."""

    settings: Mapping[str, str] = field(default_factory=dict)  # override by its name

    def __call__(self, prompt: str | None = None, **options: Unpack[Options]) -> Generation:
        """See `txt2img`; options given here go before those given to `load_pipeline`."""
        return self.txt2img(prompt, **options)

    def txt2img(self, prompt: str | None = None, **options: Unpack[Options]) -> Generation:
        """See `txt2img`."""
        return self._generate({"prompt": prompt}, {}, options)

    def img2img(
        self,
        prompt: str | None,
        input_image: ImageLike,
        *,
        strength: float | None = None,
        resize: str | None = None,
        **options: Unpack[Options],
    ) -> Generation:
        """See `img2img`."""
        fields = {"prompt": prompt, "strength": strength, "resize": resize}
        return self._generate(fields, {"input_image": input_image}, options)

    def inpaint(
        self,
        prompt: str | None,
        input_image: ImageLike,
        mask_image: ImageLike,
        *,
        keep_unmasked: bool = False,
        strength: float | None = None,
        resize: str | None = None,
        **options: Unpack[Options],
    ) -> Generation:
        """See `inpaint`."""
        fields = {"prompt": prompt, "keep_unmasked": keep_unmasked, "strength": strength, "resize": resize}
        return self._generate(fields, {"input_image": input_image, "mask_image": mask_image}, options)

    def txt2vid(self, prompt: str | None = None, **options: Unpack[Options]) -> Generation:
        """See `txt2vid`."""
        return self._generate({"prompt": prompt}, {}, options, is_film=True)

    def img2vid(
        self,
        prompt: str | None,
        input_image: ImageLike | None = None,
        *,
        last_image: ImageLike | None = None,
        input_video: str | Path | np.ndarray | None = None,
        resize: str | None = None,
        **options: Unpack[Options],
    ) -> Generation:
        """See `img2vid`."""
        given = {"input_image": input_image, "last_image": last_image, "input_video": input_video}
        images = {name: image for name, image in given.items() if image is not None}
        if not images:
            raise ConfigError("input_image, last_image, input_video: none is given; give one, or call txt2vid")
        return self._generate({"prompt": prompt, "resize": resize}, images, options, is_film=True)

    def encode(self, prompt: str | None = None, **fields: Unpack[Fields]) -> PromptEmbeddings:
        """Encodes a prompt and a negative prompt, and makes no picture.

            made = pipeline.encode("a cat")
            pipeline(**made.as_arguments(), seed=7)  # the picture of "a cat"

        Raises:
            DiffuseError: as `txt2img`; or the pipeline has a refiner, which encodes by itself.
        """
        overrides = list({**self.settings, **argument_overrides({**fields, "prompt": prompt})}.values())
        with own_configuration(overrides), kept_switches():
            cfg = _compose(overrides)
            prepared = prepare(cfg, _one_draft(cfg))
            prepared.use()
            embeddings: PromptEmbeddings = prepared.opened.pipeline.embed_prompts(prepared.request)
            return embeddings

    def _generate(
        self,
        own_fields: Mapping[str, Any],
        images: Mapping[str, ImageLike],
        options: Options,
        *,
        is_film: bool = False,
    ) -> Generation:
        fields: dict[str, Any] = {**options, **own_fields}
        latents, on_step = fields.pop("latents", None), fields.pop("on_step", None)
        if on_step is not None and not callable(on_step):
            raise ConfigError(f"on_step: is of type {type(on_step).__name__}; give a function that takes a step")
        embeddings = take_embeddings(fields)
        save, progress = fields.pop("save", False), fields.pop("progress", True)
        if not isinstance(save, bool | str | Path | None):
            raise ConfigError(f"save: is of type {type(save).__name__}; give True, or the folder to save in")
        if save and not isinstance(save, bool):
            fields["output.dir"] = str(save)
        in_memory = {name: image for name, image in images.items() if not isinstance(image, str | Path)}
        fields |= {name: _IN_MEMORY if name in in_memory else str(image) for name, image in images.items()}

        overrides = list({**self.settings, **argument_overrides(fields)}.values())
        with own_configuration(overrides), kept_switches():
            cfg = _compose(overrides)
            if is_film and not load_family(cfg.model._target_).makes_films:
                raise ConfigError(
                    f"model={cfg.model.name}: makes pictures; call txt2img or img2img, or name a model of films"
                )
            (generation,) = generate(
                cfg,
                [_one_draft(cfg, in_memory)],
                overrides=[each for each in overrides if not each.startswith("hydra.")],  # as the command records them
                latents=None if latents is None else as_noise(latents),
                embeddings=embeddings,
                save=bool(save),
                callbacks=Callbacks(on_step=on_step, messages=progress),
            )
            return generation


def _compose(overrides: Sequence[str]) -> DictConfig:
    """Returns the configuration of one run.

    Raises:
        ConfigError: it is wrong, or its experiment is a sweep.
    """
    cfg = compose_model(overrides)
    experiments = [each for each in overrides if each.startswith("experiment=")]
    if experiments and str(compose_with_hydra(quote_overrides(overrides)).hydra.mode).endswith("MULTIRUN"):
        raise ConfigError(
            f"{experiments[-1]}: is a sweep of many runs, and not made here; diffuse -m {experiments[-1]}"
        )
    return cfg


def _one_draft(cfg: DictConfig, in_memory: Mapping[str, Any] | None = None) -> RequestDraft:
    """Returns the one request of a configuration.

    Raises:
        ConfigError: there are several, in a file of prompts, or it is wrong.
    """
    drafts = draft_requests(cfg, in_memory)
    if len(drafts) > 1:
        raise ConfigError(f"prompt_file={cfg.prompt_file}: holds {len(drafts)} prompts; give one as the prompt")
    return drafts[0]


def load_pipeline(model: str | Path = "tiny", **fields: Unpack[Fields]) -> Pipeline:
    """Opens a model, and checks that its parts fit together. Weights are read when they are first used.

        pipeline = diffuse.load_pipeline("sd21", scheduler="euler", num_inference_steps=30)
        pipeline("a lighthouse", seed=7).images[0]

    Args:
        model: a name in `conf/model`, or a folder or hub repository in the diffusers layout.
        fields: the defaults of every call of the pipeline, see `Fields`.

    Raises:
        DiffuseError: there is no such model, its files are damaged, or a field does not fit.
    """
    settings = argument_overrides({**model_fields(model), **fields})
    with own_configuration(list(settings.values())), kept_switches():
        open_pipeline(_compose(list(settings.values())))
    return Pipeline(settings)


def txt2img(prompt: str | None = None, *, model: str | Path = "tiny", **options: Unpack[Options]) -> Generation:
    """Makes images from a prompt.

        diffuse.txt2img("a cactus on a pink background", seed=7, num_images=4).images
        diffuse.txt2img("a lighthouse", model="sd21", scheduler="euler", save="pictures").paths

    Args:
        prompt: the text, taken literally.
        model: a name in `conf/model`, or a folder or hub repository in the diffusers layout.
        options: see `Options` and `Fields`.

    Raises:
        DiffuseError: the request is wrong, and nothing was made; or the run failed (RunError) or was stopped (Stop).
    """
    return Pipeline(argument_overrides(model_fields(model))).txt2img(prompt, **options)


def img2img(
    prompt: str | None,
    input_image: ImageLike,
    *,
    model: str | Path = "tiny",
    strength: float | None = None,
    resize: str | None = None,
    **options: Unpack[Options],
) -> Generation:
    """Makes images that start from another.

    Args:
        prompt: the text, taken literally.
        input_image: the image to start from; its width and height are taken unless others are given.
        model: a name in `conf/model`, or a folder or hub repository in the diffusers layout.
        strength: above 0 up to 1, how far the image may change; 0.8 unless the model has another default.
        resize: `stretch`, `crop` or `pad`: how an image of another size is made to fit.
        options: see `Options` and `Fields`.

    Raises:
        DiffuseError: as `txt2img`; or the image cannot be read.
    """
    pipeline = Pipeline(argument_overrides(model_fields(model)))
    return pipeline.img2img(prompt, input_image, strength=strength, resize=resize, **options)


def inpaint(
    prompt: str | None,
    input_image: ImageLike,
    mask_image: ImageLike,
    *,
    model: str | Path = "tiny",
    keep_unmasked: bool = False,
    strength: float | None = None,
    resize: str | None = None,
    **options: Unpack[Options],
) -> Generation:
    """Makes images of which a region is painted anew.

    Args:
        prompt: the text, taken literally.
        input_image: the image to paint into.
        mask_image: of the same size; white is painted anew, black is kept.
        model: a name in `conf/model`, or a folder or hub repository in the diffusers layout.
        keep_unmasked: returns the pixels outside the mask unchanged, which the autoencoder would change a little.
        strength: above 0 up to 1, how far the painted region may change; 1 forgets what was there.
        resize: see `img2img`.
        options: see `Options` and `Fields`.

    Raises:
        DiffuseError: as `img2img`; or the mask is of another size.
    """
    return Pipeline(argument_overrides(model_fields(model))).inpaint(
        prompt,
        input_image,
        mask_image,
        keep_unmasked=keep_unmasked,
        strength=strength,
        resize=resize,
        **options,
    )


def txt2vid(prompt: str | None = None, *, model: str | Path = "ltx2", **options: Unpack[Options]) -> Generation:
    """Makes films from a prompt, with sound where the model makes some.

        film = diffuse.txt2vid("a fox runs through snow", num_frames=121, fps=24, save="films")
        film.frames, film.fps, film.sound, film.sample_rate  # and in a notebook it plays

    Args:
        prompt: the text, taken literally.
        model: a name in `conf/model`, or a folder or hub repository in the diffusers layout.
        options: see `Options` and `Fields`.

    Raises:
        DiffuseError: as `txt2img`; or the model makes pictures.
    """
    return Pipeline(argument_overrides(model_fields(model))).txt2vid(prompt, **options)


def img2vid(
    prompt: str | None,
    input_image: ImageLike | None = None,
    *,
    model: str | Path = "ltx2",
    last_image: ImageLike | None = None,
    input_video: str | Path | np.ndarray | None = None,
    resize: str | None = None,
    **options: Unpack[Options],
) -> Generation:
    """Makes films that begin with an image, end with one, or go on from a clip.

    Args:
        prompt: the text, taken literally.
        input_image: the first frame, or that of `frame_index`; its width and height are taken unless others are given.
        model: a name in `conf/model`, or a folder or hub repository in the diffusers layout.
        last_image: what the film ends with.
        input_video: a film whose last `num_conditioning_frames` begin this one: a file, a folder of frames, or an array
            `[F, H, W, 3]` of uint8.
        resize: see `img2img`.
        options: see `Options` and `Fields`.

    Raises:
        DiffuseError: as `txt2vid`; or the image cannot be read.
    """
    pipeline = Pipeline(argument_overrides(model_fields(model)))
    return pipeline.img2vid(
        prompt, input_image, last_image=last_image, input_video=input_video, resize=resize, **options
    )
