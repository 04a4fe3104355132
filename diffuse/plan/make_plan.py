"""Makes the plan of one request: finds its settings, predicts, and looks up rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

from omegaconf import DictConfig, OmegaConf

from diffuse.checkpoints.checkpoint import Checkpoint
from diffuse.checkpoints.embedding.locate_embedding import open_embeddings
from diffuse.checkpoints.lora.locate_lora import open_loras
from diffuse.config.checks import check_known_fields
from diffuse.config.groups import load_group
from diffuse.config.request import RequestDraft
from diffuse.device import hardware
from diffuse.device.allocator import rss_now
from diffuse.device.hardware import Hardware
from diffuse.device.profile import MAX_BATCH, choose_profile, goes_by_prediction, model_thresholds
from diffuse.device.size_limits import Shrunk, SizeLimits
from diffuse.errors import ConfigError
from diffuse.pipelines.families import choose_output_format, component_names, load_family, models
from diffuse.pipelines.learned_words import words_of_checkpoint
from diffuse.pipelines.lora import LoraFitter
from diffuse.pipelines.refined import request_fields
from diffuse.plan.budgets import budgets
from diffuse.plan.choose_levers import Choice, choose_levers
from diffuse.plan.configurations import Configurations, find_configurations
from diffuse.plan.predict import Prediction, complete_fitted_request, predict, size_limits
from diffuse.plan.rates import Card, Rates, card_rates, device_name, main_memory_rates, predicted_seconds, read_rates
from diffuse.plan.report import Plan
from diffuse.schema import Device, Dtype, GenerationRequest, HardwareConfig, MemoryProfileConfig, ReleaseTo


@dataclass(frozen=True)
class Setting:
    """The models, hardware, profile and rates that a configuration's requests have in common."""

    cfg: DictConfig
    configurations: Configurations
    hw: Hardware
    profile: MemoryProfileConfig
    card: str | None
    rates: Rates | None
    host_rates: Rates | None
    choice: Choice | None = None  # of the profile, for a request with a budget to keep

    @property
    def checkpoints(self) -> Sequence[Checkpoint]:
        """The checkpoints of the model and, where there is one, its refiner."""
        return self.configurations.checkpoints

    @cached_property
    def limits(self) -> SizeLimits:
        """The limits of the profile for what the model makes."""
        return size_limits(self.cfg, self.profile, self.hw, self.checkpoints)

    def request(self, draft: RequestDraft) -> GenerationRequest:
        """Returns the request of a draft; see `fitted_request`."""
        return self.fitted_request(draft)[0]

    def fitted_request(self, draft: RequestDraft) -> tuple[GenerationRequest, Shrunk | None]:
        """Returns the request of a draft, checked, but for its size: see `oversize`.

        It comes with what was asked for, where it was shrunk.

        Raises:
            ConfigError: the models cannot make it.
        """
        cfg = self.cfg
        known = request_fields([load_family(model._target_) for model in models(cfg)])
        check_known_fields(draft.fields, known, " refiner=".join(model.name for model in models(cfg)))
        choose_output_format(cfg)
        return complete_fitted_request(cfg, draft, self.profile, self.hw, self.checkpoints)

    def oversize(self, request: GenerationRequest) -> str | None:
        """Returns why the profile would refuse the size of a request; None where it would not."""
        try:
            self.limits.check(request)
        except ConfigError as error:
            return str(error)
        return None

    def with_levers(self, request: GenerationRequest) -> Setting:
        """Returns the setting for a request: with the profile that is chosen, where it goes by prediction.

        Raises:
            ConfigError: the budget is too small.
        """
        profiles = load_group("memory_profile")
        if not goes_by_prediction(self.cfg, profiles, self.hw):
            return self
        named = cast(MemoryProfileConfig, OmegaConf.to_object(self.cfg.memory_profile))
        choice = choose_levers(self.cfg, request, named, profiles, self.hw, self.checkpoints)
        return replace(self, profile=choice.profile, choice=choice)

    def predict(self, request: GenerationRequest) -> Prediction:
        """Returns what a request takes."""
        return predict(self.cfg, request, self.profile, hw=self.hw, checkpoints=self.checkpoints)

    def seconds(self, prediction: Prediction) -> tuple[dict[str, float], str | None]:
        """Returns the seconds of each phase, or why they are not known."""
        return predicted_seconds(prediction, self.rates, self.host_rates)


def open_setting(cfg: DictConfig, card_name: str | None = None) -> Setting:
    """Finds out what there is: settings, hardware, profile and rates.

    `hardware.vram_gb` with `hardware=auto`, or a card's name, plan for a card that need not be there.

    Raises:
        ConfigError, HardwareError, CheckpointError: something does not fit.
    """
    config = cast(HardwareConfig, OmegaConf.to_object(cfg.hardware))
    measured = read_rates()
    host_rates = main_memory_rates(measured)
    card: str | None = None
    rates: Rates | None
    if card_name is not None:
        published, rates = card_rates(card_name)
        card = rates.name
        hw = _planned_card(config, card, published)
    else:
        hw = _plan_hardware(config)
        rates = measured.get(device_name(hw))
    hardware.check_dtype(hw)
    profiles = load_group("memory_profile")
    if goes_by_prediction(cfg, profiles, hw):  # chosen for each request, see `with_levers`
        profile = cast(MemoryProfileConfig, OmegaConf.to_object(cfg.memory_profile))
    else:
        profile = choose_profile(cfg.memory_profile, profiles, model_thresholds(cfg), hw)
    found = find_configurations(cfg, component_names(cfg))
    _check_files(cfg, found)
    return Setting(cfg, found, hw, profile, card, rates, host_rates)


def _check_files(cfg: DictConfig, configurations: Configurations) -> None:
    """Raises an error for a LoRA file or an embedding that is not there, or does not fit a model that is here."""
    loras, embeddings = open_loras(cfg), open_embeddings(cfg)
    components = load_family(cfg.model._target_).components
    if loras and configurations.here:
        LoraFitter(components, configurations.checkpoints[0]).patches(loras)
    if embeddings:
        words_of_checkpoint(embeddings, components, configurations.checkpoints[0])


def _planned_card(config: HardwareConfig, name: str, card: Card) -> Hardware:
    """Returns a card of the table as the device, whatever this computer has."""
    if config.device not in (Device.auto, Device.cuda):
        device = config.device.value
        raise ConfigError(f"--card {name}: plans for a card, and hardware={device} for another device; leave one out")
    hw = hardware.detect(replace(config, device=Device.cpu, dtype=Dtype.auto))
    vram = card.vram_gib if config.vram_gb is None else config.vram_gb
    return replace(
        hw,
        device="cuda",
        dtype=config.dtype,
        name=name,
        vram_total_gib=vram,
        vram_free_gib=vram,
        capability=card.capability,
        driver=None,
        planned=True,
    )


def _plan_hardware(config: HardwareConfig) -> Hardware:
    """Returns the device of this computer; a card of unknown make where a budget is given and there is none."""
    hw = replace(hardware.detect(replace(config, dtype=Dtype.auto)), dtype=config.dtype)
    if hw.planned and hw.device == "cpu" and config.device is Device.auto:
        hw = replace(hw, device="cuda", name="")
    return hw


def make_plan(setting: Setting, draft: RequestDraft) -> Plan:
    """Makes the plan of a request.

    Raises:
        ConfigError: the request is wrong.
    """
    program = rss_now()
    cfg, hw, found = setting.cfg, setting.hw, setting.configurations
    request, shrunk = setting.fitted_request(draft)
    setting = setting.with_levers(request)
    prediction = setting.predict(request)
    seconds, reason = setting.seconds(prediction)
    # Nobody has said how large the files are: as large as the weights in the precision in which they are fetched.
    half = (cfg.model.variant or cfg.model.fetch_variant) == "fp16"
    guess = sum(component.parameters for component in prediction.components) * (2 if half else 4)
    exact = found.disk_bytes is not None and found.download_bytes is not None
    profile = setting.profile
    if setting.choice is not None:  # of which the levers are taken back
        profile = replace(profile, batch_size=min(MAX_BATCH, request.num_images), release_to=ReleaseTo.host)
    loras = tuple((each.setting.source, each.file.path.stat().st_size) for each in open_loras(cfg))
    levers = [] if hw.device == "cpu" else budgets(cfg, request, profile, hw, setting.checkpoints)
    return Plan(
        cfg.model.name if cfg.refiner._target_ is None else f"{cfg.model.name} refiner={cfg.refiner.name}",
        request,
        setting.profile,
        hw,
        setting.card,
        prediction,
        program,
        found.disk_bytes if found.disk_bytes is not None else guess,
        0 if found.here else found.download_bytes if found.download_bytes is not None else guess,
        exact,
        seconds,
        reason,
        None if setting.rates is None else setting.rates.name,
        levers,
        setting.choice,
        loras,
        setting.oversize(request),
        shrunk,
    )
