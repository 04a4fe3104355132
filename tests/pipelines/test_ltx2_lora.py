"""LoRA files for LTX-2, in the names of diffusers and of the authors: weights by the formula, and films."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import film_peers
import pytest
import torch
from film_peers import REQUEST, TinyFilms, make
from safetensors.torch import save_file
from torch import Tensor, nn

from diffuse.checkpoints.folder import CheckpointFolder
from diffuse.checkpoints.lora.locate_lora import NamedLora
from diffuse.checkpoints.lora.lora_file import LoraFile
from diffuse.config.lora import LoraSetting
from diffuse.errors import CheckpointError, ConfigError
from diffuse.pipelines.lora import LoraFitter
from diffuse.pipelines.ltx2_components import COMPONENTS
from diffuse.schema import MemoryProfileConfig

CPU = torch.device("cpu")
RANK = 2
PARTS = ("transformer", "connectors")
SHORT = replace(REQUEST, num_inference_steps=1, width=64, guidance_scale=1.0, audio_guidance_scale=1.0)
# In the authors' own names: what diffusers calls otherwise.
TOP = {
    "proj_in": "patchify_proj",
    "audio_proj_in": "audio_patchify_proj",
    "time_embed": "adaln_single",
    "audio_time_embed": "audio_adaln_single",
    "prompt_adaln": "prompt_adaln_single",
    "audio_prompt_adaln": "audio_prompt_adaln_single",
    "av_cross_attn_video_scale_shift": "av_ca_video_scale_shift_adaln_single",
    "av_cross_attn_audio_scale_shift": "av_ca_audio_scale_shift_adaln_single",
    "av_cross_attn_video_a2v_gate": "av_ca_a2v_gate_adaln_single",
    "av_cross_attn_audio_v2a_gate": "av_ca_v2a_gate_adaln_single",
}


@pytest.fixture(scope="module", params=["2.0", "2.3"])
def films(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyFilms:
    return film_peers.tiny(request.param, tmp_path_factory)


def factors(films: TinyFilms) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    """Both factors of each linear layer of the transformer and the connectors."""
    generator = torch.Generator().manual_seed(5)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / 4

    return {
        (part, name): (rand(RANK, module.in_features), rand(module.out_features, RANK))
        for part in PARTS
        for name, module in films.parts[part].named_modules()
        if isinstance(module, nn.Linear)
    }


def authors_name(part: str, module: str) -> str:
    if part == "transformer":
        first, _, rest = module.partition(".")
        return f"diffusion_model.{TOP.get(first, first)}" + (f".{rest}" if rest else "")
    if "text_proj_in" in module:
        return "text_embedding_projection." + module.replace("text_proj_in", "aggregate_embed")
    module = module.replace("_connector.", "_embeddings_connector.")
    return "diffusion_model." + module.replace("transformer_blocks", "transformer_1d_blocks")


SPELLINGS = {
    "diffusers": lambda part, module: (f"{part}.{module}.lora_A.weight", f"{part}.{module}.lora_B.weight"),
    "authors": lambda part, module: tuple(f"{authors_name(part, module)}.lora_{each}.weight" for each in "AB"),
    "kohya": lambda part, module: tuple(
        "lora_unet_" + authors_name(part, module).partition(".")[2].replace(".", "_") + f".lora_{each}.weight"
        for each in ("down", "up")
    ),
}


def write(path: Path, films: TinyFilms, spelling: str) -> Path:
    content = {}
    for place, pair in factors(films).items():
        if spelling != "kohya" or place[0] == "transformer":
            content |= dict(zip(SPELLINGS[spelling](*place), pair, strict=True))
    save_file(content, path)
    return path


def named(file: Path, weight: float = 1.0, **more: Any) -> NamedLora:
    return NamedLora(LoraFile.open(file, file.name), LoraSetting(str(file), weight, **more))


def patched(films: TinyFilms, *loras: NamedLora) -> dict[tuple[str, str], Tensor]:
    result = {}
    for component, patch in LoraFitter(COMPONENTS, CheckpointFolder.open(films.folder)).patches(loras).items():
        for group in patch.originals(patch.weights, CPU, torch.float32):
            result |= {(component, key.removesuffix(".weight")): value for key, value in patch.patched(group)}
    return result


def test_each_spelling_makes_the_weights_of_the_formula(films: TinyFilms, tmp_path: Path) -> None:
    from diffusers.loaders.lora_pipeline import LTX2LoraLoaderMixin

    files = {name: write(tmp_path / f"{name}.safetensors", films, name) for name in SPELLINGS}
    ours = {name: patched(films, named(file)) for name, file in files.items()}
    pairs = factors(films)
    assert ours["diffusers"].keys() == ours["authors"].keys() == pairs.keys()
    assert {place for place in pairs if place not in ours["kohya"]} == {p for p in pairs if p[0] == "connectors"}
    for place, (down, up) in pairs.items():
        weight = dict(films.parts[place[0]].named_parameters())[f"{place[1]}.weight"].detach()
        for name, own in ours.items():
            if place in own:
                torch.testing.assert_close(own[place], weight + up @ down, rtol=1e-5, atol=1e-5, msg=f"{name} {place}")
    # diffusers reads the authors' names as the same modules.
    theirs = LTX2LoraLoaderMixin.lora_state_dict(str(files["authors"]))
    for (part, module), (down, _) in pairs.items():
        if part == "transformer" or "text_proj_in" in module:
            assert torch.equal(theirs[f"{part}.{module}.lora_A.weight"], down), module


@pytest.mark.parametrize("films", ["2.3"], indirect=True)
def test_films_have_as_much_of_it_as_is_asked_for(films: TinyFilms, tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", films, "authors")
    pipe = films.ours()

    def made(*loras: NamedLora, through: Any = pipe) -> bytes:
        through.memory.set_patches(through.patches(loras))
        return make(through, SHORT).frames.tobytes()

    plain, whole = made(), made(named(file))
    assert made(named(file, 0.0)) == plain
    others = [made(named(file, -1.0)), made(named(file, transformer=0.0)), made(named(file, connectors=0.0))]
    others.append(made(named(file, blocks={"transformer_blocks.1": 0.0})))
    assert len({plain, whole, *others}) == 6
    assert made(named(file)) == whole
    assert made() == plain
    with pipe.memory.use("transformer") as transformer:
        for key, weight in transformer.named_parameters():
            own = weight.detach().to_dense() if weight.is_mkldnn else weight.detach()
            assert torch.equal(own, films.parts["transformer"].state_dict()[key]), key
    streaming = MemoryProfileConfig(name="streaming", on_device=["*"], streamed=["transformer"], batch_size=4)
    streamed = film_peers.pipeline(films.folder, profile=streaming)
    assert made(named(file), through=streamed) == whole
    assert made(through=streamed) == plain


def test_what_does_not_fit_is_refused_in_a_line(films: TinyFilms, tmp_path: Path) -> None:
    def refused(content: dict[str, Tensor], **more: Any) -> str:
        save_file(content, tmp_path / "a.safetensors")
        with pytest.raises((CheckpointError, ConfigError)) as caught:
            films.ours().patches([named(tmp_path / "a.safetensors", **more)])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    pair = {"lora_A.weight": torch.ones(2, 40), "lora_B.weight": torch.ones(40, 2)}
    wide = {f"diffusion_model.transformer_blocks.0.attn1.to_q.{key}": value for key, value in pair.items()}
    assert "does not fit model.source=" in refused(wide)
    assert "it was made for LTX-Video or LTX-2" in refused(wide)
    unet = {f"lora_unet_down_blocks_0_attentions_0_proj_in.{key}": value for key, value in pair.items()}
    assert "changes no layer of model.source=" in refused(unet)
    near = {f"diffusion_model.transformer_blocks.9.audio_attn1.to_q.{key}": value for key, value in pair.items()}
    assert "it was made for LTX-2" in refused(near)
    place = "transformer", "proj_in"
    good = dict(zip(SPELLINGS["diffusers"](*place), factors(films)[place], strict=True))
    assert "lora.0.unet=0: the model has no unet; it has connectors, transformer" in refused(good, unet=0.0)
