"""Names that other programs have for our fields and samplers: what somebody who types one of them means here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches

# Of AUTOMATIC1111's web UI, ComfyUI, diffusers and k-diffusion; see docs/coming-from.md.
_FIELDS = {
    "steps": "num_inference_steps",
    "num_steps": "num_inference_steps",
    "sampling_steps": "num_inference_steps",
    "inference_steps": "num_inference_steps",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "cfg_rescale": "guidance_rescale",
    "sampler": "scheduler",
    "sampler_name": "scheduler",
    "sampling_method": "scheduler",
    "negative": "negative_prompt",
    "neg_prompt": "negative_prompt",
    "denoise": "strength",
    "denoising_strength": "strength",
    "n_iter": "num_images",
    "batch_count": "num_images",
    "num_images_per_prompt": "num_images",
    "checkpoint": "model",
    "ckpt": "model",
    "sd_model_checkpoint": "model",
    "sd_vae": "model.vae.source",
    "init_image": "input_image",
    "init_images": "input_image",
    "first_frame": "input_image",
    "first_image": "input_image",
    "end_image": "last_image",
    "last_frame": "last_image",
    "init_video": "input_video",
    "video": "input_video",
    "num_cond_frames": "num_conditioning_frames",
    "outdir": "output.dir",
    "output_dir": "output.dir",
    "filename": "output.name",
    "filename_prefix": "output.name",
    "dtype": "hardware.dtype",
    "precision": "hardware.dtype",
    "karras": "scheduler.use_karras_sigmas",
}
# Without signs and in small letters.
_SAMPLERS = {
    "ddim": "ddim",
    "ddpm": "ddpm",
    "deis": "deis",
    "deismultistep": "deis",
    "dpm2": "kdpm2",
    "dpm2a": "kdpm2_ancestral",
    "dpm2ancestral": "kdpm2_ancestral",
    "kdpm2discrete": "kdpm2",
    "kdpm2ancestraldiscrete": "kdpm2_ancestral",
    "dpmpp": "dpmpp_2m",
    "dpmpp2m": "dpmpp_2m",
    "dpmpp2msde": "dpmpp_2m_sde",
    "dpmppsde": "dpmpp_sde",
    "dpmsolver": "dpmpp_2m",
    "dpmsolverpp": "dpmpp_2m",
    "dpmsolvermultistep": "dpmpp_2m",
    "dpmsolversde": "dpmpp_sde",
    "euler": "euler",
    "eulera": "euler_ancestral",
    "eulerancestral": "euler_ancestral",
    "eulerdiscrete": "euler",
    "eulerancestraldiscrete": "euler_ancestral",
    "flowmatcheulerdiscrete": "flow_match_euler",
    "heun": "heun",
    "heundiscrete": "heun",
    "lcm": "lcm",
    "lms": "lms",
    "lmsdiscrete": "lms",
    "plms": "pndm",
    "pndm": "pndm",
    "unipc": "unipc",
    "unipcbh2": "unipc",
    "unipcmultistep": "unipc",
}
_SCHEDULES = {
    "karras": "scheduler.use_karras_sigmas=true",
    "exponential": "scheduler.use_exponential_sigmas=true",
    "beta": "scheduler.use_beta_sigmas=true",
    "sgmuniform": "scheduler.timestep_spacing=trailing",
    "simple": "scheduler.timestep_spacing=simple",
}


def field_meant(name: str) -> str | None:
    """Returns the field that another program calls by the last part of a dotted name, or by one much like it."""
    last = name.rpartition(".")[2].lower()
    near = get_close_matches(last, _FIELDS, 1, 0.8)
    return _FIELDS[near[0]] if near else None


def sampler_meant(name: str, samplers: Sequence[str]) -> str | None:
    """Returns the sampler that another program calls `name`, and the option that stands for the rest of the name.

    So `DPM++ 2M Karras` is `dpmpp_2m with scheduler.use_karras_sigmas=true`.

    Args:
        samplers: those that are there.
    """
    text = re.sub(r"^(k|sample)[_ ]", "", name.lower()).replace("++", "pp")
    plain = re.sub(r"[^a-z0-9]", "", text).removesuffix("scheduler")
    for schedule, option in {"": "", **_SCHEDULES}.items():
        meant = _SAMPLERS.get(plain.removesuffix(schedule)) if plain.endswith(schedule) else None
        if meant in samplers:
            return f"{meant} with {option}" if option else meant
    return None
