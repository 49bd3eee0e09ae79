"""One configuration for every model: the backbone is a list of token mixers, and the rest is the same for all."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import PreTrainedConfig

from subquad.layers import NORMS, build_patch_embedding
from subquad.mixers import MIXERS
from subquad.registry import unknown_name

NORM_POSITIONS = ("pre", "post", "branch")
POSITION_EMBEDDINGS = ("sinusoidal", "interleaved_sinusoidal", "learned")
PADDINGS = ("masked", "zeroed", "ordinary")
POOLINGS = ("mean", "sum", "first", "last", "padded_mean", "class_token")
CLASSIFIERS = ("linear", "mlp", "roberta", "pair", "deep_pair")
PAIR_CLASSIFIERS = ("pair", "deep_pair")

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
        norm: Norm of the blocks, by name; "batchnorm" leaves padding out of its statistics.
        norm_position: "pre": x + f(norm(x)); "post": norm(x + f(x)); "branch": x + norm(f(x)).
        final_norm: Norm after the last block, by name, or None.
        embedding_size: Width of the token embedding, with a map to `hidden_size` where it differs; None: `hidden_size`.
        output_size: Width before the output layer, with a map where it differs; None: `hidden_size`.
        scale_embedding: Whether embeddings are multiplied by √hidden_size.
        embedding_norm: Norm of the embeddings, by name, or None.
        position_embedding: None, or absolute positions that are added to the embeddings: "sinusoidal" (sines, then
            cosines, as in fairseq), "interleaved_sinusoidal" (as in the Long Range Arena), "learned".
        position_offset: Position of the first token (fairseq's published models count from 2).
        max_position_embeddings: Number of learned positions; for images by default one for each patch (and the
            class token).
        input_features: Numbers at each position of real-valued sequences, which a linear map takes in place of tokens.
        image_size: Height and width of images (one number for both), which a patch embedding takes in place of tokens.
        num_channels: Channels of images.
        patch_embedding: Patch embedding, `{"type": "linear" | "overlap" | "conv", "patch_size": ..., ...}`.
        padding: What the backbone makes of padding in `attention_mask`. "masked": real tokens never see it; "zeroed":
            its embedding is zero, and nothing is hidden after that, as in the published RoBERTa-shaped models;
            "ordinary": it is a token like any other, also in batch norm: the legacy of the published models of the
            Long Range Arena.
        dropout: Probability of dropping entries of the embeddings and of both mixers' outputs.
        embedding_dropout: The same for the embeddings alone, where it differs from `dropout`.
        drop_path: Probability of skipping a mixer for an example in the last layer (stochastic depth, arXiv
            1603.09382); it grows linearly from zero in the first.
        initializer_range: Standard deviation of the initial weights of linear maps and embeddings, biases being zero
            (BERT, arXiv 1810.04805); None: the initial values of each module. Classifiers always have their own.
        embedding_initializer_range: Standard deviation of the initial embeddings; None: that of `initializer_range`,
            or 1/√width.
        auxiliary_loss_weights: Weight in the training loss of each auxiliary loss that the mixers add, by name.
        causal: Whether positions see only themselves and earlier ones.
        use_cache: Whether `forward` returns a cache when not told.
        pad_token_id: Padding token; its embedding is zero and gets no gradient from the input side.
        bos_token_id: Token at the start of a text.
        eos_token_id: Token at the end of a text.
        tie_word_embeddings: Whether the output layer is the token embedding.
        pooling: What a classifier sees of a sequence's real tokens: their "mean" or "sum", the "first" or the "last";
            "padded_mean": the sum divided by the length of the row, padding included; "class_token": what becomes of a
            learned vector, zero at first, that stands before the sequence in a position of its own.
        pooling_norm: Norm of the pooled features, by name, or None.
        classifier: "linear"; "mlp": dense, activation, linear; "roberta": dense, tanh, linear; "pair": "mlp" over two
            sequences' features [a, b, a − b, a ⊙ b]; "deep_pair": over [a, b], with a second hidden layer of half the
            width.
        classifier_hidden_size: Width between the two maps of a classifier; None: that of the features.
        classifier_activation: Activation of "mlp", "pair" and "deep_pair", by name.
        classifier_dropout: Probability of dropping entries before the linear maps of "linear" and "roberta".
        layer_types: Kinds of cache layers; follows from `mixers`.

    The number of classes is `num_labels`, as everywhere in transformers.

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
    input_features: int | None = None
    image_size: int | list[int] | None = None
    num_channels: int = 3
    patch_embedding: dict[str, Any] | None = None
    padding: str = "masked"
    dropout: int | float = 0.0
    embedding_dropout: int | float | None = None
    drop_path: int | float = 0.0
    initializer_range: int | float | None = None
    embedding_initializer_range: int | float | None = None
    auxiliary_loss_weights: dict[str, Any] | None = None
    causal: bool = True
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = True
    pooling: str = "mean"
    pooling_norm: str | None = None
    classifier: str = "linear"
    classifier_hidden_size: int | None = None
    classifier_activation: str = "gelu"
    classifier_dropout: int | float = 0.0
    layer_types: list[str] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self._check_spelling(kwargs)
        self.mixers = self.mixers or [{"type": "tno"}]
        self.channel_mixer = self.channel_mixer or {"type": "glu", "hidden_size": self.hidden_size}
        self._check_numbers()
        self._check_names()
        self._check_inputs()
        if self.num_hidden_layers % len(self.mixers):
            raise ValueError(
                f"`mixers` must have one entry for each of the {self.num_hidden_layers} layers, or a number of entries "
                f"that divides it, got {len(self.mixers)}"
            )
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

    def _check_spelling(self, others: Iterable[str]) -> None:
        # transformers adds entries of its own to a configuration, so only those that look like ours are mistakes.
        own = SubquadConfig.__annotations__
        for name in others:
            if difflib.get_close_matches(name, own, n=1, cutoff=0.85):
                raise ValueError(unknown_name("model option", name, own))

    def _check_numbers(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_channels",
            "input_features",
            "classifier_hidden_size",
        ):
            if (number := getattr(self, name)) is not None and number < 1:
                raise ValueError(f"`{name}` must be positive, got {number}")
        for name in ("initializer_range", "embedding_initializer_range"):
            if (number := getattr(self, name)) is not None and number <= 0:
                raise ValueError(f"`{name}` must be positive, got {number}")
        for name in ("dropout", "embedding_dropout", "drop_path", "classifier_dropout"):
            if (number := getattr(self, name)) is not None and not 0 <= number < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {number}")

    def _check_names(self) -> None:
        for mixer in self.mixers or []:
            if mixer.get("type") not in MIXERS:
                raise ValueError(unknown_name("mixer", mixer.get("type"), MIXERS))
        for kind, names in {
            "norm_position": NORM_POSITIONS,
            "position_embedding": POSITION_EMBEDDINGS,
            "padding": PADDINGS,
            "pooling": POOLINGS,
            "classifier": CLASSIFIERS,
        }.items():
            if (name := getattr(self, kind)) is not None and name not in names:
                raise ValueError(unknown_name(kind.replace("_", " "), name, names))
        for name in (self.norm, self.final_norm, self.embedding_norm, self.pooling_norm):
            if name is not None and name not in NORMS:
                raise ValueError(unknown_name("norm", name, NORMS))

    def _check_inputs(self) -> None:
        if self.image_size is None and self.patch_embedding is not None:
            raise ValueError("`patch_embedding` needs an `image_size`")
        if self.image_size is not None:
            if self.input_features is not None:
                raise ValueError("`image_size` and `input_features` exclude each other: they name different inputs")
            self.patch_embedding = self.patch_embedding or {"type": "linear", "patch_size": 16}
            with torch.device("meta"):
                rows, columns = build_patch_embedding(
                    self.patch_embedding, self.embedding_dim, self.image_size, self.num_channels
                ).grid
            self.max_position_embeddings = self.max_position_embeddings or rows * columns + self.has_class_token
            self.check_grids(rows * columns + self.has_class_token)
        if self.has_class_token and self.causal:
            raise ValueError(
                '`pooling` "class_token" needs `causal` false: the token stands first and must see the others'
            )
        if self.position_embedding == "learned" and not self.max_position_embeddings:
            raise ValueError("learned positions need `max_position_embeddings`")

    def check_grids(self, length: int) -> None:
        """Whether sequences of one length fit the mixers of grids.

        Args:
            length: Positions of every input.

        Raises:
            ValueError: If a mixer's `height` × `width` is another number.
        """
        for options in self.mixers or ():
            height, width = options.get("height"), options.get("width")
            if isinstance(height, int) and isinstance(width, int) and height * width != length:
                raise ValueError(
                    f"`{options['type']}` mixes a grid of {height} × {width} positions, and the inputs have "
                    f"{length:,}: change its `height` and `width`, or the inputs"
                )

    @property
    def layer_mixers(self) -> list[dict[str, Any]]:
        """The token mixer of each layer."""
        assert self.mixers is not None
        return self.mixers * (self.num_hidden_layers // len(self.mixers))

    @property
    def has_class_token(self) -> bool:
        """Whether a learned vector stands before each sequence."""
        return self.pooling == "class_token"

    @property
    def is_of_pairs(self) -> bool:
        """Whether an example of the classifier is a pair of sequences."""
        return self.classifier in PAIR_CLASSIFIERS

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
        known = sorted({field.name for field in fields(cls)} & own | {"id2label", "label2id", "num_labels"})
        for name in options:
            if name not in known:
                raise ValueError(unknown_name("model option", name, known))
        try:
            return cls(**options)
        except StrictDataclassFieldValidationError as error:
            raise ValueError(f"model options: {' '.join(str(error).split())}") from error
