"""The largest pictures and films that a memory profile is meant for: larger ones are refused, or shrunk."""

from __future__ import annotations

from dataclasses import dataclass, replace

from diffuse.errors import ConfigError
from diffuse.schema import GenerationRequest, MemoryProfileConfig, SizeFit

_FIELDS = ("width", "height", "num_frames")


@dataclass(frozen=True)
class Shrunk:
    """The size and length that a request had before it was shrunk, and what it has now."""

    original: GenerationRequest
    request: GenerationRequest
    profile: str

    def line(self) -> str:
        """Returns the line for the terminal."""
        now, before = _size(self.request), _size(self.original)
        return f"fit=shrink: {now}, for memory_profile={self.profile}; {before} was asked for"

    def as_record(self) -> dict[str, int | None]:
        """Returns what was asked for, for the record of the run."""
        return {name: getattr(self.original, name) for name in _FIELDS}


@dataclass(frozen=True)
class SizeLimits:
    """The limits of a profile, and the sizes that a model makes.

    Attributes:
        multiple: width and height are multiples of it.
        frame_multiple: frames of a film are a multiple of it, and one more; None for pictures.
    """

    profile: MemoryProfileConfig
    multiple: int
    frame_multiple: int | None = None

    @property
    def sides(self) -> tuple[int, int] | None:
        """The longer and the shorter side, in pixels, either of which may be the width; None for no limit."""
        if self.frame_multiple is not None and self.profile.max_film_size is not None:
            longer, shorter = sorted(self.profile.max_film_size, reverse=True)
            return longer, shorter
        side = self.profile.max_side
        return None if side is None else (side, side)

    @property
    def frames(self) -> int | None:
        """The longest film, in frames; None for no limit."""
        return self.profile.max_frames if self.frame_multiple is not None else None

    def holds(self, request: GenerationRequest) -> bool:
        """Returns whether the size and the length of a request are within the limits."""
        longer, shorter = max(request.width, request.height), min(request.width, request.height)
        if self.sides is not None and (longer > self.sides[0] or shorter > self.sides[1]):
            return False
        return self.frames is None or request.num_frames is None or request.num_frames <= self.frames

    def largest(self, request: GenerationRequest) -> GenerationRequest:
        """Returns the request with the largest size of its proportions, and the greatest length, within the limits."""
        width, height, frames = request.width, request.height, request.num_frames
        if self.sides is not None:
            longer, shorter = self.sides
            limits = (longer, shorter) if width >= height else (shorter, longer)
            if width == height:
                limits = shorter, shorter
            scale = min(limits[0] / width, limits[1] / height)
            if scale < 1:
                width, height = (
                    self._allowed(side * scale, most) for side, most in zip((width, height), limits, strict=True)
                )
        if self.frames is not None and self.frame_multiple is not None and frames is not None:
            last = (self.frames - 1) // self.frame_multiple * self.frame_multiple + 1
            frames = min(frames, last) if frames > self.frames else frames
        return replace(request, width=width, height=height, num_frames=frames)

    def check(self, request: GenerationRequest) -> None:
        """Raises ConfigError for a request beyond the limits. The message has the largest size that is within them."""
        if self.holds(request):
            return
        largest = self.largest(request)
        found = f"the largest that fits is {_overrides(request, largest)}; give that, or fit=shrink"
        if not self.holds(largest):
            found = f"nothing fits that this model makes, in multiples of {self.multiple}"
        fields = ["max_side"] if self.frame_multiple is None else ["max_film_size", "max_frames"]
        if self.frame_multiple is not None and self.profile.max_film_size is None:
            fields[0] = "max_side"
        off = " and ".join(f"memory_profile.{name}=null" for name in fields if getattr(self.profile, name) is not None)
        raise ConfigError(
            f"{_size(request)} is more than memory_profile={self.profile.name} is meant for, {self.words()}; {found}; "
            f"or choose a larger profile, or set {off}"
        )

    def fit(self, request: GenerationRequest) -> tuple[GenerationRequest, Shrunk | None]:
        """Returns the request, shrunk where it says `fit=shrink` and is too large, and then what was asked for."""
        if request.fit is not SizeFit.shrink or self.holds(request):
            return request, None
        largest = self.largest(request)
        return largest, Shrunk(request, largest, self.profile.name)

    def _allowed(self, side: float, most: int) -> int:
        """Returns the multiple nearest to a side that is not more than `most`."""
        nearest = round(side / self.multiple) * self.multiple
        return max(min(nearest, most // self.multiple * self.multiple), self.multiple)

    def words(self) -> str:
        """Returns the limits in words, such as `640 x 480 and 33 frames`; empty where there are none."""
        parts = []
        if self.sides is not None:
            longer, shorter = self.sides
            parts.append(f"{longer} a side" if longer == shorter else f"{longer} x {shorter}")
        if self.frames is not None:
            parts.append(f"{self.frames} frames")
        return " and ".join(parts)


def _size(request: GenerationRequest) -> str:
    frames = "" if request.num_frames is None else f", {request.num_frames} frames"
    return f"{request.width} x {request.height}{frames}"


def _overrides(before: GenerationRequest, after: GenerationRequest) -> str:
    """Returns the fields that differ, as they are typed."""
    changed = [name for name in _FIELDS if getattr(before, name) != getattr(after, name)]
    return " ".join(f"{name}={getattr(after, name)}" for name in changed)
