"""The names that LoRA files have for the layers of a model: those of diffusers, and of the first implementations (LDM,
SGM; the authors of LTX-2), with dots or, as kohya's scripts write them, with underscores.

Underscored names cannot be taken apart without knowing the model, so they are made of its layers and looked up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from diffuse.models.single_file.ldm_unet import ldm_layer_names
from diffuse.models.single_file.ltx2_names import authors_connectors_name, authors_transformer_name

UNET, TEXT_ENCODER, TEXT_ENCODER_2 = "unet", "text_encoder", "text_encoder_2"
TRANSFORMER, CONNECTORS = "transformer", "connectors"
_DENOISER = (UNET, TRANSFORMER, CONNECTORS)  # whose names in one file are below one prefix
_ALL = (UNET, TEXT_ENCODER, TEXT_ENCODER_2, TRANSFORMER, CONNECTORS)

# What a name begins with, and the components that it may then be of. Of two that fit, the longer one counts.
_PREFIXES: dict[str, tuple[str, ...]] = {
    "unet.": (UNET,),
    "lora_unet_": _DENOISER,
    "lycoris_unet_": (UNET,),
    "diffusion_model.": _DENOISER,
    "model.diffusion_model.": _DENOISER,
    "transformer.": (TRANSFORMER,),
    "connectors.": (CONNECTORS,),
    "text_embedding_projection.": (CONNECTORS,),
    "text_encoder.": (TEXT_ENCODER,),
    "text_encoder_2.": (TEXT_ENCODER_2,),
    "lora_te_": (TEXT_ENCODER,),
    "lora_te1_": (TEXT_ENCODER,),
    "lora_te2_": (TEXT_ENCODER_2,),
    "lycoris_": (UNET, TEXT_ENCODER, TRANSFORMER),
    "base_model.model.": _ALL,
    "": _ALL,
}
_BY_LENGTH = sorted(_PREFIXES, key=len, reverse=True)
_TEXT = "text_model."


_OF_LTX2 = {TRANSFORMER: authors_transformer_name, CONNECTORS: authors_connectors_name}


class Layer(NamedTuple):
    """A layer of a component, by its path in our module, such as `mid_block.attentions.0.proj_in`."""

    component: str
    module: str


class LayerNames:
    """The names of a model's layers.

    Args:
        layers: component -> the paths of its layers in our modules.
    """

    def __init__(self, layers: Mapping[str, Iterable[str]]) -> None:
        self._modules = {
            component: dict(_names(component, sorted(modules))) for component, modules in layers.items() if modules
        }

    @property
    def components(self) -> list[str]:
        """Lists the components that have layers."""
        return list(self._modules)

    def find(self, name: str) -> Layer | None:
        """Returns the layer that a file means by `name`; None where the model has none."""
        name = name.replace(".processor.", ".")  # as diffusers wrote it first
        for prefix in _BY_LENGTH:
            if not name.startswith(prefix):
                continue
            for component in _PREFIXES[prefix]:
                module = self._modules.get(component, {}).get(name[len(prefix) :])
                if module is not None:
                    return Layer(component, module)
        return None

    def spellings(self, name: str) -> list[str]:
        """Returns the names of all layers that a file could mean by a name that begins as `name` does."""
        for prefix in _BY_LENGTH:
            if prefix and name.startswith(prefix):
                own = [self._modules.get(component, {}) for component in _PREFIXES[prefix]]
                return [f"{prefix}{known}" for names in own for known in names]
        return [known for names in self._modules.values() for known in names]


def _names(component: str, modules: list[str]) -> Iterator[tuple[str, str]]:
    """Yields each name of each module, and the module."""
    others = ldm_layer_names(modules) if component == UNET else {}
    if component in _OF_LTX2:
        others = {module: _OF_LTX2[component](module) for module in modules}
    for module in modules:
        for name in (*_spelled(module), *([others[module]] if module in others else [])):
            yield name, module
            yield name.replace(".", "_"), module


def _spelled(module: str) -> Iterator[str]:
    yield module
    if module.startswith(_TEXT):  # which trainers do not agree on
        yield module.removeprefix(_TEXT)
    if module.endswith(".to_out.0"):  # as diffusers wrote it first
        yield module.removesuffix(".0")
