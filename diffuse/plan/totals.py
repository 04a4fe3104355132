"""Sums the plans of many requests: the jobs of a sweep, or the prompts of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from diffuse.config.request import RequestDraft
from diffuse.device.gpus import GIB
from diffuse.errors import ConfigError
from diffuse.plan.make_plan import Setting
from diffuse.plan.report import PETA, arithmetic, fits, has_card
from diffuse.schema import PROMPT_FIELDS, GenerationRequest

# Bytes a pixel of pictures that models make, about: half of what TIFF takes is saved by PNG, and most of it by JPEG.
_BYTES_A_PIXEL: Mapping[str, float] = {"png": 1.6, "jpg": 0.45, "webp": 0.35, "tiff": 3.0, "frames": 1.6}
# And of a film, whose frames are alike; a WAV has a few samples a frame.
_BYTES_A_PIXEL_OF_FILM = {"mp4": 0.06, "webm": 0.06, "gif": 0.5, "webp": 0.2, "avif": 0.06, "wav": 0.02}
_HOUR = 3600


@dataclass(frozen=True)
class PlannedJob:
    """The costs of one request."""

    pictures: int
    media_bytes: int
    flops: int
    device_bytes: int
    host_bytes: int
    seconds: float | None
    no_seconds: str | None  # why there are none
    has_card: bool
    fits: bool | None
    texts: frozenset[tuple[str, str]]  # each with the model that encodes it

    def with_texts(self, draft: RequestDraft, model: str) -> PlannedJob:
        """Returns the plan of a request that differs in its texts."""
        return replace(self, texts=texts(draft, model))


@dataclass(frozen=True)
class Totals:
    """The sums of the jobs that are to be made, and how many there are of each kind."""

    jobs: int
    existing: int
    duplicate: int
    wrong: int
    to_make: tuple[PlannedJob, ...]

    @property
    def seconds(self) -> float | None:
        """The seconds of all jobs; None where those of one are not known."""
        known = [job.seconds for job in self.to_make if job.seconds is not None]
        return sum(known) if len(known) == len(self.to_make) else None

    @property
    def text_count(self) -> int:
        """How many texts are encoded: each once for a model."""
        return len(frozenset[tuple[str, str]]().union(*(job.texts for job in self.to_make)))

    def as_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        jobs, seconds = self.to_make, self.seconds
        return {
            "kind": "sweep",
            "jobs": self.jobs,
            "there": self.existing,
            "double": self.duplicate,
            "wrong": self.wrong,
            "to_make": len(jobs),
            "pictures": sum(job.pictures for job in jobs),
            "texts": self.text_count,
            "media_bytes": sum(job.media_bytes for job in jobs),
            "pflop": sum(job.flops for job in jobs) / PETA,
            "hours": None if seconds is None else seconds / _HOUR,
            "device_bytes": max((job.device_bytes for job in jobs), default=0),
            "host_bytes": max((job.host_bytes for job in jobs), default=0),
            "do_not_fit": sum(job.fits is False for job in jobs),
        }

    def lines(self) -> list[str]:
        """Returns the lines of the report."""
        values = self.as_json()
        reason = next((job.no_seconds for job in self.to_make if job.no_seconds), "not known")
        hours = reason if self.seconds is None else f"{self.seconds / _HOUR:.2f} hours"
        there = f"{self.existing} are there, {len(self.to_make)} to make"
        there += f", {self.duplicate} given twice" if self.duplicate else ""
        there += f", {self.wrong} wrong" if self.wrong else ""
        misfits = f"; {values['do_not_fit']} jobs do not fit" if values["do_not_fit"] else ""
        jobs = f"jobs         {self.jobs}: {there}"
        if not self.to_make:
            return [jobs]
        device = f"device       {values['device_bytes'] / GIB:.2f} GiB at most{misfits}"
        return [
            jobs,
            f"pictures     {values['pictures']}, about {values['media_bytes'] / (1 << 20):.1f} MiB",
            f"texts        {values['texts']} to encode",
            f"arithmetic   {arithmetic(sum(job.flops for job in self.to_make))}",
            f"time         {hours}",
            *([device] if any(job.has_card for job in self.to_make) else []),
            f"main memory  {values['host_bytes'] / GIB:.2f} GiB at most, without the program",
        ]


def texts(draft: RequestDraft, model: str) -> frozenset[tuple[str, str]]:
    """Returns the texts that a request has encoded, each with the model that does it."""
    values = {"prompt": draft.prompt, **{name: draft.fields.get(name) for name in PROMPT_FIELDS if name != "prompt"}}
    return frozenset((model, value) for value in values.values() if value is not None)


def plan_job(setting: Setting, draft: RequestDraft, model: str = "") -> PlannedJob:
    """Plans one of many requests.

    Raises:
        ConfigError: the request is wrong, or larger than the profile is meant for.
    """
    request: GenerationRequest = setting.request(draft)
    setting = setting.with_levers(request)
    if reason := setting.oversize(request):
        raise ConfigError(reason)
    prediction = setting.predict(request)
    seconds, reason = setting.seconds(prediction)
    frames = getattr(request, "num_frames", None)
    pixels = request.width * request.height * request.num_images * (frames or 1)
    name = setting.cfg.output.format.name
    of_film = {} if frames is None else _BYTES_A_PIXEL_OF_FILM
    return PlannedJob(
        request.num_images,
        round(pixels * of_film.get(name, _BYTES_A_PIXEL.get(name, 0))),
        prediction.flops,
        prediction.device_bytes,
        prediction.host_bytes,
        sum(seconds.values()) if seconds else None,
        reason,
        has_card(setting.hw),
        fits(setting.hw, prediction),
        texts(draft, model),
    )
