"""The transformer of LTX-2 against diffusers'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel as Peer
from ltx2_peers import (
    COLUMNS,
    FRAMES,
    LATER,
    ROWS,
    SOUND,
    TEXT,
    TOKENS,
    VERSIONS,
    inputs,
    noise,
    our_transformer,
    peer_transformer,
    peer_velocities,
    rotations,
)
from storage_peak import storage_peak
from torch import Tensor

from diffuse.checkpoints.architecture import read_architecture
from diffuse.device.streaming import BlockStream, outermost_blocks
from diffuse.errors import ConfigError
from diffuse.models.transformer.ltx2_block import LTX2VideoTransformerBlock
from diffuse.models.transformer.ltx2_config import LTX2VideoTransformer3DConfig
from diffuse.models.transformer.transformer_ltx2 import AudioVideoVelocity, LTX2VideoTransformer3DModel

FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}
PUBLISHED = {"2.0": (18_876_174_592, 3510), "2.3": (18_988_838_144, 4186)}
SPLIT = {"rope_type": "split"}

# One time for each token: of a film that begins with an image, the first frame is not noisy.
FIRST = (torch.arange(TOKENS) < ROWS * COLUMNS).float()
LEVELS = torch.tensor([[700.0], [300.0]])
BY_TOKEN = {
    "timestep": LEVELS * (1 - FIRST),
    "audio_timestep": LEVELS.flatten(),
    "sigma": torch.tensor([690.0, 310.0]),
    "audio_sigma": torch.tensor([500.0, 400.0]),
}


def agree(ours: AudioVideoVelocity, theirs: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(ours.video, theirs[0], **FLOAT32)
    torch.testing.assert_close(ours.audio, theirs[1], **FLOAT32)


def differ(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return any(float((a - b).abs().max()) > 1e-3 for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("version", "changes"),
    [
        ("2.0", {}),
        ("2.3", {}),
        ("2.0", {"rope_type": "interleaved"}),
        ("2.3", {"rope_type": "interleaved", "audio_num_attention_heads": 2, "audio_attention_head_dim": 16}),
        ("2.0", {"rope_double_precision": False, "rope_theta": 1e6}),
        ("2.3", {"pos_embed_max_pos": 3, "base_height": 50, "base_width": 70, "audio_pos_embed_max_pos": 2}),
        ("2.0", {"vae_scale_factors": [4, 16, 8], "causal_offset": 3}),
        ("2.3", {"audio_scale_factor": 2, "audio_hop_length": 100, "audio_sampling_rate": 8000, "causal_offset": 0}),
        ("2.0", {"cross_attn_timestep_scale_multiplier": 1}),
        ("2.0", {"gated_attn": True}),
        ("2.0", {"audio_gated_attn": True}),
        ("2.0", {"cross_attn_mod": True}),
        ("2.0", {"audio_cross_attn_mod": True}),
        ("2.3", {"use_prompt_embeddings": True}),
        ("2.3", {"use_prompt_adaln_single": False}),
        ("2.3", {"ff_bias": False}),
        ("2.0", {"audio_ff_bias": False, "norm_eps": 1e-2}),
        ("2.0", {"out_channels": None, "audio_out_channels": None}),
    ],
    ids=str,
)
def test_each_setting_agrees_with_diffusers(version: str, changes: dict[str, Any]) -> None:
    peer = peer_transformer(version, **changes)
    model = our_transformer(peer)
    given = inputs(peer)
    agree(model(**given, rotations=rotations(model)), peer_velocities(peer, given))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "changes",
    [
        BY_TOKEN,
        BY_TOKEN | {"use_cross_timestep": True},
        {"sigma": torch.tensor([5.0, 990.0]), "audio_timestep": LEVELS.flatten(), "use_cross_timestep": True},
        {"encoder_attention_mask": (torch.arange(TEXT) >= torch.tensor([[3], [0]])).long()},
        {"audio_encoder_attention_mask": (torch.arange(TEXT) < torch.tensor([[3], [TEXT]])).long()},
        {"video_self_attention_mask": (noise(2, TOKENS, TOKENS, seed=15) > 0).float()},
        {"isolate_modalities": True},
    ],
    ids=lambda changes: "+".join(changes),
)
def test_each_input_agrees_with_diffusers(version: str, changes: dict[str, Any]) -> None:
    peer = peer_transformer(version)
    model = our_transformer(peer)
    given = inputs(peer)
    theirs = peer_velocities(peer, given | changes)
    agree(model(**(given | changes), rotations=rotations(model)), theirs)
    if version == "2.3" or "sigma" not in changes:  # 2.0 reads the noise level of the other stream alone
        assert differ(theirs, peer_velocities(peer, given))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("blocks", "samples"), [([1], None), ([0, 2], [True, False]), ((), [True, True])], ids=str)
def test_perturbed_attention_agrees_with_diffusers(version: str, blocks: Any, samples: Any) -> None:
    peer = peer_transformer(version, perturbed_attn=True)
    model = our_transformer(peer)
    given, marked = inputs(peer), None if samples is None else torch.tensor(samples)
    ours = model(**given, rotations=rotations(model), stg_blocks=blocks, stg_samples=marked)
    kept = None if marked is None else 1.0 - marked.float()
    theirs = peer_velocities(peer, given | {"spatio_temporal_guidance_blocks": list(blocks), "perturbation_mask": kept})
    agree(ours, theirs)
    assert differ(theirs, peer_velocities(peer, given)) == bool(blocks)


def test_perturbed_attention_needs_no_setting() -> None:
    """diffusers leaves out the perturbation of 2.0 in silence; the published pipeline of 2.0 has it."""
    peer = peer_transformer("2.0")
    model = our_transformer(peer)
    given, turned = inputs(peer), rotations(model)
    assert differ(model(**given, rotations=turned, stg_blocks=[1]), model(**given, rotations=turned))


def test_a_perturbed_block_that_is_not_there_is_refused() -> None:
    model = our_transformer(peer_transformer("2.3"))
    with pytest.raises(ConfigError, match=r"stg_blocks=\[1, 29\]: the model has the blocks 0 to 2, and no block 29"):
        model(**inputs(model), rotations=rotations(model), stg_blocks=[1, 29])


def test_some_of_a_batch_are_isolated() -> None:
    model = our_transformer(peer_transformer("2.3"))
    given = inputs(model) | {"rotations": rotations(model)}
    together, apart = model(**given), model(**given, isolate_modalities=True)
    some = model(**given, isolate_modalities=torch.tensor([False, True]))
    agree(some, (torch.stack((together[0][0], apart[0][1])), torch.stack((together[1][0], apart[1][1]))))


def test_a_text_of_which_nothing_is_seen_is_no_error() -> None:
    model = our_transformer(peer_transformer("2.0"))
    given = inputs(model) | {"rotations": rotations(model)}
    found = model(**given, encoder_attention_mask=torch.zeros(2, TEXT))
    # All are seen alike then, up to the rounding of products beside -10000.
    torch.testing.assert_close(found.video, model(**given).video, rtol=0, atol=1e-3)


def test_one_timestep_is_for_all() -> None:
    model = our_transformer(peer_transformer("2.3"))
    given = inputs(model) | {"rotations": rotations(model)}
    one, all_of_them = torch.tensor([700.0]), torch.tensor([700.0, 700.0])
    agree(model(**(given | {"timestep": one})), model(**(given | {"timestep": all_of_them})))
    with pytest.raises(ValueError, match="needs sigma"):
        model(**(given | {"timestep": BY_TOKEN["timestep"]}))


def test_places_may_differ_in_a_batch() -> None:
    peer = peer_transformer("2.3")
    model = our_transformer(peer)
    film, sound = model.coordinates(FRAMES, ROWS, COLUMNS, fps=24.0, audio_frames=SOUND)
    films, sounds = torch.stack((film, film.flip(0) + 0.25)), torch.stack((sound, sound * 3))
    given = inputs(peer)
    placed = {"video_coords": films.transpose(1, 2), "audio_coords": sounds.transpose(1, 2)}
    agree(model(**given, rotations=model.rotations(films, sounds)), peer_velocities(peer, given | placed))


def test_keyframes_are_marked_as_in_diffusers() -> None:
    peer = peer_transformer("2.3", use_keyframes_abs_pos_embedding=True)
    model = our_transformer(peer)
    marked = inputs(peer) | {"video_keyframes_mask": FIRST[None, :, None].repeat(2, 1, 1)}
    theirs = peer_velocities(peer, marked)
    agree(model(**marked, rotations=rotations(model)), theirs)
    assert differ(theirs, peer_velocities(peer, inputs(peer)))


@pytest.mark.parametrize("version", VERSIONS)
def test_bfloat16_is_as_near_to_float32_as_diffusers(version: str) -> None:
    peer = peer_transformer(version, num_layers=6)
    model = our_transformer(peer)
    given = inputs(peer)
    exact = peer_velocities(peer, given)
    turned = rotations(model)
    half = {name: value if name == "timestep" else value.bfloat16() for name, value in given.items()}
    theirs, ours = peer_velocities(peer.bfloat16(), half), model.bfloat16()(**half, rotations=turned)
    for true, one, two in zip(exact, ours, theirs, strict=True):
        assert one.dtype == torch.bfloat16
        # Both round by chance: which is nearer differs from processor to processor.
        assert (one - true).square().mean() < 1.5 * (two - true).square().mean()


@pytest.mark.parametrize("version", VERSIONS)
def test_full_size_has_the_published_keys_and_shapes(version: str) -> None:
    settings = (LATER if version == "2.3" else {}) | SPLIT
    config = read_architecture(LTX2VideoTransformer3DConfig, settings, "transformer/config.json")
    with torch.device("meta"):
        module, shallow = LTX2VideoTransformer3DModel(config), Peer(**settings, num_layers=1)
    state = module.state_dict()
    assert (sum(tensor.numel() for tensor in state.values()), len(state)) == PUBLISHED[version]
    # A peer of all 48 blocks takes seconds to make; its blocks are alike.
    expected = {key: tensor.shape for key, tensor in shallow.state_dict().items()}
    first = {key: shape for key, shape in expected.items() if key.startswith("transformer_blocks.0.")}
    for number in range(1, config.num_layers):
        expected |= {key.replace(".0.", f".{number}.", 1): shape for key, shape in first.items()}
    assert {key: tensor.shape for key, tensor in state.items()} == expected


@pytest.mark.parametrize("by_token", [False, True])
def test_a_step_takes_less_memory_than_in_diffusers(by_token: bool) -> None:
    peer = peer_transformer("2.3")
    model = our_transformer(peer)
    given = inputs(peer, batch=1)
    given["hidden_states"] = noise(1, 240, 8, seed=1)
    given["sigma"] = given["audio_timestep"] = given["timestep"]
    if by_token:
        given["timestep"] = torch.full((1, 240), 700.0)
    places = model.coordinates(10, 6, 4, fps=24.0, audio_frames=SOUND)
    ours, found = storage_peak(lambda: model(**given, rotations=model.rotations(*places)))
    sizes = {"num_frames": 10, "height": 6, "width": 4}
    theirs, expected = storage_peak(lambda: peer_velocities(peer, given | sizes))
    agree(found, expected)
    assert ours < 0.85 * theirs


def test_a_step_on_the_meta_device() -> None:
    model = our_transformer(peer_transformer("2.3"))
    given = {name: value.to("meta") for name, value in inputs(model).items()}
    places = model.coordinates(FRAMES, ROWS, COLUMNS, fps=24.0, audio_frames=SOUND)
    found = model.to("meta")(**given, rotations=model.rotations(*places, device="meta"), stg_blocks=[1])
    assert (found.video.shape, found.audio.shape) == ((2, TOKENS, 6), (2, SOUND, 5))
    assert found.video.is_meta


def test_every_weight_can_be_trained() -> None:
    with torch.inference_mode(False):
        model = our_transformer(peer_transformer("2.3")).requires_grad_(True)
        found = model(**inputs(model), rotations=rotations(model))
        (found.video.square().mean() + found.audio.square().mean()).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_blocks_stream() -> None:
    model = our_transformer(peer_transformer("2.3"))
    given = inputs(model) | {"rotations": rotations(model)}
    expected = model(**given)
    assert len(outermost_blocks(model, model.streamed_blocks)) == 3
    assert {type(block) for block in model.transformer_blocks} == {LTX2VideoTransformerBlock}
    stream = BlockStream(model, model.streamed_blocks, torch.device("cpu"), 1)
    stream.arrive()
    for one, two in zip(model(**given), expected, strict=True):
        assert torch.equal(one, two)
    stream.leave()
