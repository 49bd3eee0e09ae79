"""The backbone: embedding + N × block(token mixer, channel mixer)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from subquad.layers import (
    SinusoidalPositions,
    apply_norm,
    build_channel_mixer,
    build_norm,
    build_patch_embedding,
)
from subquad.mixers import MIXERS, State, build_mixer
from subquad.models.cache import read_state, write_state
from subquad.models.configuration import SubquadConfig


class Block(GradientCheckpointingLayer):
    """A token mixer and a channel mixer, each with a norm and a residual connection.

    Args:
        config: Configuration of the model.
        index: Which layer this is.
    """

    def __init__(self, config: SubquadConfig, index: int):
        super().__init__()
        self.norm_position = config.norm_position
        self.token_norm = build_norm(config.norm, config.hidden_size)
        self.token_mixer = build_mixer(config.layer_mixers[index], config.hidden_size, config.causal)
        self.channel_norm = build_norm(config.norm, config.hidden_size)
        assert config.channel_mixer is not None
        self.channel_mixer = build_channel_mixer(config.channel_mixer, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.drop_path = config.drop_path * index / max(config.num_hidden_layers - 1, 1)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        shared: dict[str, Tensor] | None = None,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, State | None, dict[str, Tensor]]:
        """Run the block.

        Args:
            x: (batch, length, dim).
            state: The token mixer's state.
            shared: The token mixer's part of its shared module.
            mask: (batch, length) bool or longer, True for real tokens, as in `Mixer`.
            cu_seqlens: (num_sequences + 1,) int, as in `Mixer`.

        Returns:
            y (batch, length, dim), the token mixer's state, and the auxiliary losses that it added.
        """
        mixed = self._before(self.token_norm, x, mask)
        mixed, state = self.token_mixer(mixed, state, mask=mask, cu_seqlens=cu_seqlens, **(shared or {}))
        x = self._after(self.token_norm, x, self.dropout(mixed), mask)
        mixed = self.channel_mixer(self._before(self.channel_norm, x, mask))
        y = self._after(self.channel_norm, x, self.dropout(mixed), mask)
        return y, state, self.token_mixer.take_auxiliary_losses()

    def _before(self, norm: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
        return apply_norm(norm, x, mask) if self.norm_position == "pre" else x

    def _after(self, norm: nn.Module, x: Tensor, branch: Tensor, mask: Tensor | None) -> Tensor:
        if self.norm_position == "branch":
            branch = apply_norm(norm, branch, mask)
        y = x + self._skip(branch)
        return apply_norm(norm, y, mask) if self.norm_position == "post" else y

    def _skip(self, branch: Tensor) -> Tensor:
        """Stochastic depth: a branch (batch, length, dim) is left out for some examples, and larger for the others."""
        if not self.training or not self.drop_path:
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_path
        return branch * (kept / (1 - self.drop_path)).to(branch.dtype)


class SubquadPreTrainedModel(PreTrainedModel):
    """What all subquad models share with transformers: loading, saving, initial values."""

    config_class = SubquadConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012 - the name and type transformers asks for
    _supports_sdpa = True
    _is_stateful = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        parameters = list(module.parameters())
        if parameters and all(getattr(p, "_is_hf_initialized", False) for p in parameters):
            return
        std = self.initializer_range
        if isinstance(module, nn.Embedding):
            std = self.config.embedding_initializer_range or std or module.embedding_dim**-0.5
            nn.init.normal_(module.weight, std=std)
            if module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()
        elif isinstance(module, nn.Linear) and module is self.get_output_embeddings():
            _init_linear(module, std or module.in_features**-0.5)
        elif callable(reset := getattr(module, "reset_parameters", None)):
            # Every module knows its initial values; a mixer sets those of the maps inside it too.
            reset()
            for part in module.modules():
                if std is not None and isinstance(part, nn.Linear):
                    _init_linear(part, std)

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # transformers leaves out modules of other packages whose own parameters are all loaded, and those that have
        # none of their own: mixers, which set the initial values of the maps inside them.
        super()._initialize_weights(module)

    @property
    def initializer_range(self) -> float | None:
        """Standard deviation of the initial weights of linear maps; None: what the modules choose."""
        return self.config.initializer_range


def _init_linear(linear: nn.Linear, std: float) -> None:
    nn.init.normal_(linear.weight, std=std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def require_tokens(config: SubquadConfig) -> None:
    """Hold that a model reads tokens and nothing else, as one that predicts tokens must.

    Raises:
        ValueError: If it reads images or numbers, or has a class token.
    """
    if config.has_class_token:
        raise ValueError('a language model has no class token: choose another `pooling` than "class_token"')
    for name in ("image_size", "input_features"):
        if getattr(config, name) is not None:
            raise ValueError(f"a language model reads tokens: leave `{name}` out of its configuration")


class ClassToken(nn.Module):
    """A learned vector before each sequence, zero at first (BERT, arXiv 1810.04805; as in the Long Range Arena).

    Args:
        dim: Features.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))

    def reset_parameters(self) -> None:
        """Zero."""
        nn.init.zeros_(self.weight)

    def forward(
        self, x: Tensor, mask: Tensor | None, position_ids: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Put it before `x` (batch, length, dim), into its mask (batch, length) and into its positions."""
        x = torch.cat([self.weight.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        mask = None if mask is None else F.pad(mask, (1, 0), value=1)
        return x, mask, None if position_ids is None else F.pad(position_ids + 1, (1, 0))


@dataclass
class BackboneOutput(BaseModelOutputWithPast):
    """What the backbone returns, see `SubquadModel.forward`."""

    auxiliary_losses: dict[str, Tensor] | None = None


class SubquadModel(SubquadPreTrainedModel):
    """The backbone: embedding of tokens, numbers or patches of images, then blocks and a final norm.

    Args:
        config: Configuration of the model.
    """

    def __init__(self, config: SubquadConfig):
        super().__init__(config)
        dim = config.hidden_size
        if config.image_size is not None:
            assert config.patch_embedding is not None
            self.main_input_name = "pixel_values"
            self.embed_inputs = build_patch_embedding(
                config.patch_embedding, config.embedding_dim, config.image_size, config.num_channels
            )
        elif config.input_features is not None:
            self.main_input_name = "input_values"
            self.embed_inputs = nn.Linear(config.input_features, config.embedding_dim)
        else:
            self.main_input_name = "input_ids"
            self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_dim, padding_idx=config.pad_token_id)
        self.class_token = ClassToken(config.embedding_dim) if config.has_class_token else None
        self.project_in = nn.Linear(config.embedding_dim, dim, bias=False) if config.embedding_dim != dim else None
        self.positions: nn.Module | None = None
        if config.position_embedding == "learned":
            assert config.max_position_embeddings is not None
            self.positions = nn.Embedding(config.max_position_embeddings + config.position_offset, dim)
        elif config.position_embedding is not None:
            self.positions = SinusoidalPositions(dim, interleaved=config.position_embedding != "sinusoidal")
        self.embedding_norm = build_norm(config.embedding_norm, dim)
        dropout = config.dropout if config.embedding_dropout is None else config.embedding_dropout
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Block(config, index) for index in range(config.num_hidden_layers))
        self.shared = nn.ModuleDict(self._shared_modules())
        self.final_norm = build_norm(config.final_norm, dim)
        self.project_out = nn.Linear(dim, config.output_dim, bias=False) if config.output_dim != dim else None
        self.gradient_checkpointing = False
        self.post_init()

    def _shared_modules(self) -> dict[str, nn.Module]:
        kinds: dict[str, list[dict[str, Any]]] = {}
        for mixer in self.config.layer_mixers:
            kinds.setdefault(mixer["type"], []).append(mixer)
        modules = {kind: MIXERS[kind].shared_module(mixers, self.config.hidden_size) for kind, mixers in kinds.items()}
        return {kind: module for kind, module in modules.items() if module is not None}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        input_values: Tensor | None = None,
        pixel_values: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BackboneOutput:
        """Run the backbone.

        Args:
            input_ids: (batch, length) int64.
            attention_mask: (batch, length), or (batch, stored + length) with a cache; 0 for padding, see `padding` in
                the configuration.
            position_ids: (batch, length) int64, counted from 0; default: what the mask and the cache say.
            past_key_values: Cache to continue after, updated in place.
            inputs_embeds: (batch, length, embedding_size), in place of the other inputs.
            input_values: (batch, length, input_features), of a model with `input_features`.
            pixel_values: (batch, channels, height, width), of a model with `image_size`.
            cu_seqlens: (num_sequences + 1,) int, boundaries of sequences packed into one row (batch 1).
            use_cache: Whether to return a cache; default: the configuration's, and never in training.
            output_hidden_states: Whether to return the input of every block and the final output.
            **kwargs: Ignored; transformers passes some.

        Returns:
            `last_hidden_state` (batch, length, output_size), where there is a class token (batch, 1 + length, …),
            `past_key_values`, `hidden_states`, and in training mode
            `auxiliary_losses`, the mean over the layers that add one, by name.

        Raises:
            ValueError: If arguments exclude each other, or are not what this model takes.
        """
        embeddings = self._embeddings(
            input_ids=input_ids, inputs_embeds=inputs_embeds, input_values=input_values, pixel_values=pixel_values
        )
        if self.class_token is not None:
            if cu_seqlens is not None or past_key_values is not None:
                raise ValueError("a class token stands before whole sequences: leave `cu_seqlens` and the cache out")
            use_cache = False
            embeddings, attention_mask, position_ids = self.class_token(embeddings, attention_mask, position_ids)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        use_cache = use_cache and self.config.causal and cu_seqlens is None
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        length = embeddings.shape[1]
        stored = past_key_values.get_seq_length() if past_key_values is not None else 0
        mask = None
        if attention_mask is not None and self.config.padding != "ordinary":
            mask = attention_mask.bool() if torch.compiler.is_compiling() or not attention_mask.all() else None
        x = self._embed(embeddings, _positions(position_ids, mask, cu_seqlens, stored, embeddings), mask)
        if self.config.padding == "zeroed" and mask is not None:
            x, mask = x * mask[:, -length:].unsqueeze(-1), None

        shared = {kind: iter(module()) for kind, module in self.shared.items()}
        hidden_states = (x,) if output_hidden_states else None
        auxiliary: dict[str, list[Tensor]] = {}
        for index, (block, mixer) in enumerate(zip(self.layers, self.config.layer_mixers, strict=True)):
            state_type = MIXERS[mixer["type"]].state_type
            state = None if past_key_values is None else read_state(past_key_values, index, state_type)
            own = next(shared[mixer["type"]]) if mixer["type"] in shared else None
            x, state, added = block(x, state, own, mask=mask, cu_seqlens=cu_seqlens)
            for loss_name, loss in added.items():
                auxiliary.setdefault(loss_name, []).append(loss)
            if use_cache:
                assert past_key_values is not None
                assert state is not None
                write_state(past_key_values, index, state_type, state, stored + length)
            if hidden_states is not None:
                hidden_states = (*hidden_states, x)
        x = apply_norm(self.final_norm, x, mask)
        if self.project_out is not None:
            x = self.project_out(x)
        return BackboneOutput(
            last_hidden_state=x,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=hidden_states,
            auxiliary_losses={name: torch.stack(losses).mean() for name, losses in auxiliary.items()} or None,
        )

    def _embeddings(self, **inputs: Tensor | None) -> Tensor:
        """Embeddings (batch, length, embedding_size) of the one input that is given."""
        given = {name: tensor for name, tensor in inputs.items() if tensor is not None}
        if list(given) not in ([self.main_input_name], ["inputs_embeds"]):
            raise ValueError(f"pass either `{self.main_input_name}` or `inputs_embeds`")
        ((name, tensor),) = given.items()
        if name == "inputs_embeds":
            return tensor
        return self.embed_tokens(tensor) if name == "input_ids" else self.embed_inputs(tensor)

    def _embed(self, embeddings: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Embeddings (batch, length, embedding_size) to the first block's input; `positions` are −1 for padding."""
        x = embeddings
        if self.config.scale_embedding:
            x = x * math.sqrt(self.config.hidden_size)
        if self.project_in is not None:
            x = self.project_in(x)
        if self.positions is not None:
            shifted = positions + self.config.position_offset
            if isinstance(self.positions, nn.Embedding):
                if not torch.compiler.is_compiling() and int(shifted.max()) >= self.positions.num_embeddings:
                    raise ValueError(
                        f"position {int(positions.max())} is beyond the {self.config.max_position_embeddings} learned "
                        "positions of this model: use a shorter sequence"
                    )
                vectors = self.positions(shifted.clamp_min(0)) * (positions >= 0).unsqueeze(-1)
            else:
                vectors = self.positions(shifted.where(positions >= 0, -1), x.dtype)
            x = x + vectors.to(x.dtype)
        return self.dropout(apply_norm(self.embedding_norm, x, mask))


def _positions(
    position_ids: Tensor | None, mask: Tensor | None, cu_seqlens: Tensor | None, stored: int, embeddings: Tensor
) -> Tensor:
    """Position of each token in its own sequence (batch or 1, length), −1 for padding."""
    length = embeddings.shape[1]
    if mask is not None:
        counted = mask.long().cumsum(-1) - 1 if position_ids is None else position_ids
        return counted[:, -length:].where(mask[:, -length:], -1)
    if position_ids is not None:
        return position_ids
    steps = torch.arange(stored, stored + length, device=embeddings.device)
    if cu_seqlens is not None:
        starts = torch.repeat_interleave(cu_seqlens[:-1], cu_seqlens.diff(), output_size=length)
        steps = steps - starts.to(steps.device)
    return steps.unsqueeze(0)
