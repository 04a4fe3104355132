"""The text half of Gemma 3 (Gemma Team, "Gemma 3 Technical Report", 2025), as an encoder: no logits, no vision tower.

A video model reads the states of all its layers. Kept together they take more memory than everything else that is
computed here, so each is handed to the caller as it is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.errors import CheckpointError

_SLIDING, _FULL = "sliding_attention", "full_attention"
_FILE = "text_encoder/config.json"


@dataclass(frozen=True)
class Gemma3TextConfig:
    """The architecture, under the names of the published `text_encoder/config.json`.

    Files of 2025 name the rotary embeddings in `rope_theta`, `rope_local_base_freq` and `rope_scaling`, and the global
    layers by `sliding_window_pattern`; later ones have `rope_parameters` and `layer_types`, which count where both are.
    """

    vocab_size: int = 262_208
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    rms_norm_eps: float = 1e-6
    query_pre_attn_scalar: float = 256.0
    sliding_window: int = 4096
    sliding_window_pattern: int = 6
    layer_types: tuple[str, ...] | None = None
    rope_parameters: Mapping[str, Any] | None = None
    rope_theta: float = 1_000_000.0
    rope_local_base_freq: float = 10_000.0
    rope_scaling: Mapping[str, Any] | None = None

    SECTION: ClassVar[str] = "text_config"
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "model_type": ("gemma3_text",),
        "hidden_activation": ("gelu_pytorch_tanh",),
        "attention_bias": (False,),
        "attn_logit_softcapping": (None,),
        "use_bidirectional_attention": (False, None),
    }
    # Settings of training, of generation, and of how the file was written: none changes what is computed here.
    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {
            "architectures",
            "attention_dropout",
            "bos_token_id",
            "cache_implementation",
            "chunk_size_feed_forward",
            "dtype",
            "eos_token_id",
            "final_logit_softcapping",
            "id2label",
            "initializer_range",
            "label2id",
            "max_position_embeddings",
            "pad_token_id",
            "problem_type",
            "return_dict",
            "tie_word_embeddings",
            "torch_dtype",
            "transformers_version",
            "use_cache",
        }
    )

    def __post_init__(self) -> None:
        if self.num_key_value_heads < 1 or self.num_attention_heads % self.num_key_value_heads:
            raise CheckpointError(
                f"{_FILE}: num_key_value_heads={self.num_key_value_heads} does not divide "
                f"num_attention_heads={self.num_attention_heads}; the file is damaged: copy or download it again"
            )
        if self.sliding_window < 1 or self.sliding_window_pattern < 1 or self.head_dim % 2:
            raise CheckpointError(
                f"{_FILE}: sliding_window={self.sliding_window}, sliding_window_pattern={self.sliding_window_pattern} "
                f"and head_dim={self.head_dim} make no model; the file is damaged: copy or download it again"
            )
        if len(self.attention_types) != self.num_hidden_layers or set(self.attention_types) - {_SLIDING, _FULL}:
            raise CheckpointError(
                f"{_FILE}: layer_types does not name {_SLIDING} or {_FULL} for each of the {self.num_hidden_layers} "
                "layers; the file is damaged: copy or download it again"
            )
        for kind in (_SLIDING, _FULL):
            self.rotary(kind)

    @property
    def attention_types(self) -> tuple[str, ...]:
        """The kind of attention of each layer."""
        if self.layer_types is not None:
            return self.layer_types
        layers = range(1, self.num_hidden_layers + 1)
        return tuple(_SLIDING if layer % self.sliding_window_pattern else _FULL for layer in layers)

    def rotary(self, kind: str) -> tuple[float, float]:
        """Returns the base of a kind's rotary embedding, and the factor that its positions are divided by.

        Raises:
            CheckpointError: the file asks for another kind of scaling.
        """
        base = self.rope_theta if kind == _FULL else self.rope_local_base_freq
        if self.rope_parameters is not None:
            found = self.rope_parameters.get(kind) or {}
        else:
            found = (self.rope_scaling or {}) if kind == _FULL else {}
        try:
            base = float(found.get("rope_theta", base))
            scaling = found.get("rope_type", found.get("type", "default"))
            factor = {"default": 1.0, "linear": float(found.get("factor", 1.0))}[scaling]
            if base <= 0 or factor <= 0:
                raise ValueError
        except (AttributeError, KeyError, TypeError, ValueError):
            raise CheckpointError(
                f"{_FILE}: the rotary embedding {str(found)[:80]} of {kind} is not implemented, only rope_type default "
                "or linear; use another checkpoint"
            ) from None
        return base, factor


class _RMSNorm(nn.Module):
    """Root mean square normalisation in float32, times 1 + weight (Zhang and Sennrich, 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[..., D]` to `[..., D]`."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float() + 1.0, self.eps).to(x.dtype)


class _SelfAttention(nn.Module):
    def __init__(self, config: Gemma3TextConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.groups = config.num_attention_heads // config.num_key_value_heads
        self.scale = config.query_pre_attn_scalar**-0.5
        width = config.hidden_size
        queries, keys = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        # A text has up to a thousand tokens: beside their products, reordering a weight at each call costs nothing, and
        # a weight that is packed would no longer be a page of its file.
        self.q_proj = nn.Linear(width, queries, bias=False)
        self.k_proj = nn.Linear(width, keys, bias=False)
        self.v_proj = nn.Linear(width, keys, bias=False)
        self.o_proj = nn.Linear(queries, width, bias=False)
        self.q_norm = _RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = _RMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """Maps `[B, T, D]` to `[B, T, D]`; `mask` `[B, 1, T, T]` is true where a token sees another, or
        none, where each sees itself and those before it.

        `rotation` holds the cosines and sines `[T, head_dim]`. Each head of keys and values serves a group of heads.
        """
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, heads, T, head_dim]
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = _rotate(self.q_norm(q), *rotation), _rotate(self.k_norm(k), *rotation)
        if self.groups > 1:
            k, v = (t.repeat_interleave(self.groups, dim=1) for t in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=self.scale)
        result: Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return result


def _rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotates `[..., T, head_dim]`, whose halves are paired (Su et al., "RoFormer", 2021)."""
    first, second = x.chunk(2, dim=-1)
    return (x * cosines).addcmul_(torch.cat((-second, first), dim=-1), sines)


class _MLP(nn.Module):
    def __init__(self, config: Gemma3TextConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, T, D]` to `[B, T, D]`."""
        result: Tensor = self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh").mul_(self.up_proj(x)))
        return result


class _Layer(nn.Module):
    compiled: ClassVar[bool] = True  # as a whole, where hardware.compile asks for it

    def __init__(self, config: Gemma3TextConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = _SelfAttention(config)
        self.mlp = _MLP(config)
        self.input_layernorm = _RMSNorm(width, eps)
        self.post_attention_layernorm = _RMSNorm(width, eps)
        self.pre_feedforward_layernorm = _RMSNorm(width, eps)
        self.post_feedforward_layernorm = _RMSNorm(width, eps)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """Maps `[B, T, D]` to `[B, T, D]`; see `_SelfAttention`."""
        x = self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), rotation, mask)).add_(x)
        result: Tensor = self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x))).add_(x)
        return result


class Gemma3TextModel(nn.Module):
    """The text encoder: from token ids to the states of all layers."""

    streamed_blocks: ClassVar[tuple[type[nn.Module], ...]] = (_Layer,)

    def __init__(self, config: Gemma3TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = _RMSNorm(config.hidden_size, config.rms_norm_eps)

    @property
    def states(self) -> int:
        """The number of hidden states: the embeddings and one a layer."""
        return len(self.layers) + 1

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, receive: Callable[[int, Tensor], None] | None = None
    ) -> Tensor:
        """Encodes token ids `[B, T]`, int64, to the last state `[B, T', D]`.

        `attention_mask` `[B, T]` is nonzero at the tokens of a text and zero at its padding. Columns at the beginning
        that are padding in every row are left out: `T'` is `T` without them. At padding that is left between, states
        are finite and mean nothing. Positions count from the left edge with all padding, as in transformers.

        `receive` is called with the number of a state and the state `[B, T', D]`, one after the other: the scaled
        embeddings, then every layer's output, of which the last is after the final norm. It must not change them.
        """
        valid = attention_mask != 0
        length = input_ids.shape[1]
        first = _leading_padding(valid)
        input_ids, valid = input_ids[:, first:], valid[:, first:]
        x = self.embed_tokens(input_ids)
        # The factor is rounded to the weights' dtype, with which the model was trained.
        x = x * float(torch.tensor(self.config.hidden_size**0.5, dtype=x.dtype, device="cpu"))
        if receive is not None:
            receive(0, x)
        positions = torch.arange(first, length, device=x.device)
        kinds = self.config.attention_types
        masks = {kind: self._mask(kind, valid) for kind in set(kinds)}
        rotations = {kind: self._rotation(kind, positions, x.dtype) for kind in set(kinds)}
        for number, (layer, kind) in enumerate(zip(self.layers, kinds, strict=True), start=1):
            x = layer(x, rotations[kind], masks[kind])
            if number == len(self.layers):
                x = self.norm(x)
            if receive is not None:
                receive(number, x)
        return x

    def _mask(self, kind: str, valid: Tensor) -> Tensor | None:
        """Returns `[B, 1, T, T]`, true where a token sees another; padding sees itself, lest it become NaN.

        None where nothing but the order of the tokens counts: attention is faster then.
        """
        windowed = kind == _SLIDING and valid.shape[1] > self.config.sliding_window
        if not (windowed or valid.is_meta) and bool(valid.all()):
            return None
        place = torch.arange(valid.shape[1], device=valid.device)
        distance = place[:, None] - place  # [T, T], from the key to the query
        visible = distance >= 0
        if windowed:
            visible &= distance < self.config.sliding_window
        return ((visible & valid[:, None, :]) | (distance == 0))[:, None]

    def _rotation(self, kind: str, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns the cosines and sines `[T, head_dim]` of the angles at `positions` `[T]`."""
        base, factor = self.config.rotary(kind)
        steps = torch.arange(0, self.config.head_dim, 2, dtype=torch.float32, device=positions.device)
        frequencies = 1.0 / (base ** (steps / self.config.head_dim)) / factor
        angles = (positions[:, None].float() * frequencies).repeat(1, 2)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def _leading_padding(valid: Tensor) -> int:
    """Returns how many columns of `[B, T]` at the beginning are padding in every row; on the meta device, none."""
    if valid.is_meta:
        return 0
    some = valid.any(dim=0)
    return int(some.int().argmax()) if bool(some.any()) else 0


_UNUSED = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\.|((model\.)?language_model\.)?lm_head\.")
_PREFIX = re.compile(r"(language_model\.model|model\.language_model|model)\.")


def rename(key: str) -> str | None:
    """Maps a published key to the module's.

    Files with a vision tower have `language_model.model.` or `model.language_model.` in front, those of the text model
    `model.` or nothing. The tower, its projector and the output head have no use here.
    """
    if _UNUSED.match(key) or key.endswith("inv_freq"):
        return None
    return _PREFIX.sub("", key, count=1) if _PREFIX.match(key) else key
