"""The text half of CLIP (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
2021), as CLIP-L and the OpenCLIP models publish it, with the state-dict keys of the published checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.errors import CheckpointError
from diffuse.layers.packed import Linear


@dataclass(frozen=True)
class CLIPTextConfig:
    """The architecture, under the names of the published `text_encoder/config.json`."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512
    eos_token_id: int = 49407

    SECTION: ClassVar[str] = "text_config"  # where the file is that of a whole CLIP
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"model_type": ("clip_text_model", "clip", None)}
    # Settings of training, of generating text, and of how the file was written: none changes what is computed here.
    # `architectures` says which class saved the file; what is taken of it is the pipeline's choice.
    IGNORED: ClassVar[frozenset[str]] = frozenset(
        """
        architectures attention_dropout attn_implementation bad_words_ids bos_token_id chunk_size_feed_forward
        decoder_start_token_id diversity_penalty do_sample dropout dtype early_stopping encoder_no_repeat_ngram_size
        exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id id2label
        initializer_factor initializer_range label2id length_penalty logit_scale_init_value max_length min_length
        no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states
        output_scores pad_token_id prefix problem_type remove_invalid_values repetition_penalty return_dict
        return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature text_config_dict
        tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript transformers_version
        typical_p use_bfloat16 use_cache vision_config vision_config_dict
        """.split()  # noqa: SIM905
    )

    def __post_init__(self) -> None:
        if self.hidden_act not in _ACTIVATIONS:
            raise CheckpointError(
                f"text_encoder/config.json: hidden_act={self.hidden_act} is not implemented; "
                f"implemented: {', '.join(_ACTIVATIONS)}; use another checkpoint"
            )
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise CheckpointError(
                f"text_encoder/config.json: num_attention_heads={self.num_attention_heads} does not divide "
                f"hidden_size={self.hidden_size}; the file is damaged: copy or download it again"
            )


class CLIPTextOutput(NamedTuple):
    """The output of a text encoder.

    `last_hidden_state` `[B, T, D]` after the final norm; `hidden_states`, the embeddings and every layer's output
    before that norm, so that `[-2]` is the penultimate state; `pooled` `[B, D]` or `[B, projection_dim]`.
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...]
    pooled: Tensor


def _quick_gelu(x: Tensor) -> Tensor:
    return (1.702 * x).sigmoid_().mul_(x)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": _quick_gelu, "gelu": F.gelu}


class _SelfAttention(nn.Module):
    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj = Linear(width, width)
        self.k_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.out_proj = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, T, D]` to `[B, T, D]`; a token sees itself and those before it."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, T, head_dim]
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        result: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return result


class _MLP(nn.Module):
    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[config.hidden_act]
        self.fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, T, D]` to `[B, T, D]`."""
        result: Tensor = self.fc2(self.activation(self.fc1(x)))
        return result


class _Layer(nn.Module):
    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.self_attn = _SelfAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = _MLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, T, D]` to `[B, T, D]`."""
        x = x + self.self_attn(self.layer_norm1(x))
        result: Tensor = x + self.mlp(self.layer_norm2(x))
        return result


class _Embeddings(nn.Module):
    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, ids: Tensor, learned: Tensor | None = None) -> Tensor:
        """Maps ids `[B, T]` to `[B, T, D]`; those behind the vocabulary stand for `learned` vectors `[N, D]`."""
        if learned is None:
            tokens: Tensor = self.token_embedding(ids)
        else:
            place = ids - self.token_embedding.num_embeddings
            own = self.token_embedding(ids.masked_fill(place >= 0, 0))
            other = learned.to(own.device, own.dtype)[place.clamp_min(0)]
            tokens = torch.where(place[..., None] >= 0, other, own)
        return tokens + self.position_embedding.weight[: ids.shape[1]]


class _TextTransformer(nn.Module):
    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, ids: Tensor, learned: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Maps ids `[B, T]` to the normed last state and all states, `[B, T, D]` each; see `_Embeddings`."""
        states = [self.embeddings(ids, learned)]
        for layer in self.encoder.layers:  # type: ignore[union-attr]
            states.append(layer(states[-1]))
        return self.final_layer_norm(states[-1]), tuple(states)


class CLIPTextModel(nn.Module):
    """The text encoder: from token ids to hidden states and a pooled vector."""

    streamed_blocks: ClassVar[tuple[type[nn.Module], ...]] = (_Layer,)

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = _TextTransformer(config)
        self.text_projection: Linear | None = None

    def forward(self, input_ids: Tensor, skipped_layers: int = 0, learned: Tensor | None = None) -> CLIPTextOutput:
        """Encodes token ids `[B, T]`, int64, to states `[B, T, D]`; see `CLIPTextOutput`.

        Ids behind the vocabulary stand for `learned` vectors `[N, D]`, those of textual inversion.
        Without the last `skipped_layers` layers the states are those of a shorter encoder, with the same final norm.
        The pooled state is the end token's after all layers.
        """
        last, states = self.text_model(input_ids, learned)
        if self.config.eos_token_id == 2:
            # Published with a wrong end token: there it is the largest id of the vocabulary. A learned word's is larger
            # still, and its state is then the pooled one, as in diffusers, with which such words are trained.
            end = input_ids.argmax(dim=-1)
        else:
            end = (input_ids == self.config.eos_token_id).int().argmax(dim=-1)
        pooled = last[torch.arange(last.shape[0], device=last.device), end]  # [B, D]
        if skipped_layers:
            states = states[:-skipped_layers]
            last = self.text_model.final_layer_norm(states[-1])
        return CLIPTextOutput(last, states, pooled if self.text_projection is None else self.text_projection(pooled))


class CLIPTextModelWithProjection(CLIPTextModel):
    """The text encoder whose pooled vector is projected to where pictures are too."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__(config)
        self.text_projection = Linear(config.hidden_size, config.projection_dim, bias=False)


_OTHERS = ("logit_scale", "vision_model.", "visual_projection.")  # of a whole CLIP


def rename(key: str) -> str | None:
    """Maps a published key to that of `CLIPTextModel`, or to None where it has none.

    Some files lack the prefix `text_model.`, some hold the positions, the projection, or a whole CLIP.
    """
    return None if key.startswith("text_projection.") else rename_projected(key)


def rename_projected(key: str) -> str | None:
    """Maps a published key to that of `CLIPTextModelWithProjection`, or to None where it has none."""
    if key.endswith("position_ids") or key.startswith(_OTHERS):
        return None
    return key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}"
