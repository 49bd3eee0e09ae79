"""One configuration for every model: the backbone is a list of token mixers, and the rest is the same for all."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import PreTrainedConfig

from subquad.layers import NORMS
from subquad.mixers import MIXERS
from subquad.registry import unknown_name

NORM_POSITIONS = ("pre", "post", "branch")
POSITION_EMBEDDINGS = (None, "sinusoidal", "learned")

# transformers knows the length of what a cache holds only from layers that keep something for each token. A recurrent
# state keeps nothing, so its layer is the kind that has room for both.
CACHE_LAYERS = {"recurrent": "hybrid", "growing": "full_attention"}


@strict
class SubquadConfig(PreTrainedConfig):
    """Configuration of all subquad models; every field is plain JSON.

    Args:
        vocab_size: Number of tokens.
        hidden_size: Features of the residual stream.
        num_hidden_layers: Number of blocks, each a token mixer and a channel mixer.
        mixers: Token mixers, `{"type": name, option: value, ...}`: one for each layer, or a pattern that is repeated.
        channel_mixer: Channel mixer of every layer, `{"type": "glu" | "ffn", "hidden_size": ..., ...}`.
        norm: Norm of the blocks, by name.
        norm_position: "pre": x + f(norm(x)); "post": norm(x + f(x)); "branch": x + norm(f(x)).
        final_norm: Norm after the last block, by name, or None.
        embedding_size: Width of the token embedding, with a map to `hidden_size` where it differs; None: `hidden_size`.
        output_size: Width before the output layer, with a map where it differs; None: `hidden_size`.
        scale_embedding: Whether embeddings are multiplied by √hidden_size.
        embedding_norm: Norm of the embeddings, by name, or None.
        position_embedding: None, "sinusoidal" or "learned" absolute positions, added to the embeddings.
        position_offset: Position of the first token (fairseq's published models count from 2).
        max_position_embeddings: Number of learned positions.
        dropout: Probability of dropping entries of the embeddings and of both mixers' outputs.
        auxiliary_loss_weights: Weight in the training loss of each auxiliary loss that the mixers add, by name.
        causal: Whether positions see only themselves and earlier ones.
        use_cache: Whether `forward` returns a cache when not told.
        pad_token_id: Padding token; its embedding is zero and gets no gradient from the input side.
        bos_token_id: Token at the start of a text.
        eos_token_id: Token at the end of a text.
        tie_word_embeddings: Whether the output layer is the token embedding.
        layer_types: Kinds of cache layers; follows from `mixers`.

    Raises:
        ValueError: If a value is impossible or a name unknown (the message names the nearest valid one).
    """

    model_type = "subquad"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - the name and type transformers asks for

    vocab_size: int = 32000
    hidden_size: int = 512
    num_hidden_layers: int = 6
    mixers: list[dict[str, Any]] | None = None
    channel_mixer: dict[str, Any] | None = None
    norm: str = "simple_rmsnorm"
    norm_position: str = "pre"
    final_norm: str | None = "layernorm"
    embedding_size: int | None = None
    output_size: int | None = None
    scale_embedding: bool = False
    embedding_norm: str | None = None
    position_embedding: str | None = None
    position_offset: int = 0
    max_position_embeddings: int | None = None
    dropout: int | float = 0.0
    auxiliary_loss_weights: dict[str, Any] | None = None
    causal: bool = True
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = True
    layer_types: list[str] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.mixers = self.mixers or [{"type": "tno"}]
        self.channel_mixer = self.channel_mixer or {"type": "glu", "hidden_size": self.hidden_size}
        for name in ("vocab_size", "hidden_size", "num_hidden_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}")
        if self.num_hidden_layers % len(self.mixers):
            raise ValueError(
                f"`mixers` must have one entry for each of the {self.num_hidden_layers} layers, or a number of entries "
                f"that divides it, got {len(self.mixers)}"
            )
        for mixer in self.mixers:
            if mixer.get("type") not in MIXERS:
                raise ValueError(unknown_name("mixer", mixer.get("type"), MIXERS))
        if self.norm_position not in NORM_POSITIONS:
            raise ValueError(unknown_name("norm position", self.norm_position, NORM_POSITIONS))
        if self.position_embedding not in POSITION_EMBEDDINGS:
            raise ValueError(unknown_name("position embedding", self.position_embedding, ("sinusoidal", "learned")))
        if self.position_embedding == "learned" and not self.max_position_embeddings:
            raise ValueError("learned positions need `max_position_embeddings`")
        for name in (self.norm, self.final_norm, self.embedding_norm):
            if name is not None and name not in NORMS:
                raise ValueError(unknown_name("norm", name, NORMS))
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {self.dropout}")
        offered = {name for mixer in self.mixers for name in MIXERS[mixer["type"]].auxiliary_losses}
        for name in self.auxiliary_loss_weights or {}:
            if name not in offered:
                raise ValueError(f"{unknown_name('auxiliary loss', name, offered)} (what the mixers of this model add)")
        self.layer_types = [CACHE_LAYERS[MIXERS[mixer["type"]].state_type] for mixer in self.layer_mixers]
        super().__post_init__(**kwargs)
        if self.tie_word_embeddings and self.embedding_dim != self.output_dim:
            raise ValueError(
                f"tied embeddings need equal widths, got embedding {self.embedding_dim} and output {self.output_dim}: "
                "set `tie_word_embeddings` to false, or the widths equal"
            )

    @property
    def layer_mixers(self) -> list[dict[str, Any]]:
        """The token mixer of each layer."""
        assert self.mixers is not None
        return self.mixers * (self.num_hidden_layers // len(self.mixers))

    @property
    def embedding_dim(self) -> int:
        """Width of the token embedding."""
        return self.embedding_size or self.hidden_size

    @property
    def output_dim(self) -> int:
        """Width before the output layer."""
        return self.output_size or self.hidden_size

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "SubquadConfig":
        """Build from options a person wrote: unlike the constructor, which transformers calls with fields of its own.

        Raises:
            ValueError: If an option is unknown (the message names the nearest valid one) or impossible.
        """
        own = set(cls.__annotations__)
        known = sorted({field.name for field in fields(cls)} & own)
        for name in options:
            if name not in known:
                raise ValueError(unknown_name("model option", name, known))
        try:
            return cls(**options)
        except StrictDataclassFieldValidationError as error:
            raise ValueError(f"model options: {' '.join(str(error).split())}") from error
