"""Classifiers of sequences, pairs of sequences and images: the backbone, pooling, and a small network."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput, SequenceClassifierOutput

from subquad.layers import activation as get_activation
from subquad.layers import build_norm
from subquad.models.backbone import BackboneOutput, SubquadModel, SubquadPreTrainedModel
from subquad.models.configuration import SubquadConfig
from subquad.models.losses import add_auxiliary_losses, label_loss


class LinearClassifier(nn.Module):
    """Dropout and a linear map.

    Args:
        dim: Features in.
        num_labels: Number of classes.
        dropout: Probability of dropping features.
    """

    def __init__(self, dim: int, num_labels: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.output_proj = nn.Linear(dim, num_labels)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (batch, num_labels) of `features` (batch, dim)."""
        return self.output_proj(self.dropout(features))


class RobertaClassifier(nn.Module):
    """Dropout, dense, tanh, dropout, and a linear map (RoBERTa, arXiv 1907.11692).

    Args:
        dim: Features in.
        num_labels: Number of classes.
        dropout: Probability of dropping features before both maps.
        hidden_size: Width between the maps; None: `dim`.
    """

    def __init__(self, dim: int, num_labels: int, dropout: float = 0.0, hidden_size: int | None = None):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(dim, hidden_size or dim)
        self.activation: Callable[[Tensor], Tensor] = torch.tanh
        self.output_proj = nn.Linear(hidden_size or dim, num_labels)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (batch, num_labels) of `features` (batch, dim)."""
        hidden = self.activation(self.dense(self.dropout(features)))
        return self.output_proj(self.dropout(hidden))


class MLPClassifier(nn.Module):
    """A network with one hidden layer: W₂ φ(W₁ x + b₁) + b₂.

    Args:
        dim: Features in.
        num_labels: Number of classes.
        hidden_size: Width between the maps.
        activation: φ, by name.
    """

    def __init__(self, dim: int, num_labels: int, hidden_size: int, activation: str = "gelu"):
        super().__init__()
        self.dense = nn.Linear(dim, hidden_size)
        self.activation = get_activation(activation)
        self.output_proj = nn.Linear(hidden_size, num_labels)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (batch, num_labels) of `features` (batch, dim)."""
        return self.output_proj(self.activation(self.dense(features)))


class PairClassifier(MLPClassifier):
    """What two sequences are to each other: a network of [a, b, a − b, a ⊙ b].

    The head of the retrieval task of the Long Range Arena (arXiv 2011.04006), with the features of InferSent
    (arXiv 1705.02364).

    Args:
        dim: Features of each sequence.
        num_labels: Number of classes.
        hidden_size: Width between the maps.
        activation: φ, by name.
    """

    def __init__(self, dim: int, num_labels: int, hidden_size: int, activation: str = "gelu"):
        super().__init__(4 * dim, num_labels, hidden_size, activation)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (batch, num_labels) of `features` (2 · batch, dim), the two of a pair one after the other."""
        a, b = features.unflatten(0, (-1, 2)).unbind(1)
        return super().forward(torch.cat([a, b, a - b, a * b], dim=-1))


class DeepPairClassifier(nn.Module):
    """What two sequences are to each other: a network of [a, b] with two hidden layers, the second of half the width.

    The head of the retrieval task in the original code of the Long Range Arena (arXiv 2011.04006).

    Args:
        dim: Features of each sequence.
        num_labels: Number of classes.
        hidden_size: Width of the first hidden layer, at least 2.
        activation: φ of both, by name.
    """

    def __init__(self, dim: int, num_labels: int, hidden_size: int, activation: str = "gelu"):
        super().__init__()
        if hidden_size < 2:
            raise ValueError(f"two hidden layers need a `classifier_hidden_size` of at least 2, got {hidden_size}")
        self.dense = nn.Linear(2 * dim, hidden_size)
        self.activation = get_activation(activation)
        self.network = MLPClassifier(hidden_size, num_labels, hidden_size // 2, activation)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (batch, num_labels) of `features` (2 · batch, dim), the two of a pair one after the other."""
        return self.network(self.activation(self.dense(features.unflatten(0, (-1, 2)).flatten(1))))


NETWORKS = {"mlp": MLPClassifier, "pair": PairClassifier, "deep_pair": DeepPairClassifier}


def build_classifier(config: SubquadConfig) -> nn.Module:
    """The network behind the pooled features that a configuration names."""
    dim, labels = config.output_dim, config.num_labels
    assert labels is not None
    if config.classifier == "linear":
        return LinearClassifier(dim, labels, config.classifier_dropout)
    width = config.classifier_hidden_size or dim
    if config.classifier == "roberta":
        return RobertaClassifier(dim, labels, config.classifier_dropout, width)
    return NETWORKS[config.classifier](dim, labels, width, config.classifier_activation)


def pool(x: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """One vector for each sequence, of its real tokens alone.

    Args:
        x: (batch, length, dim).
        mask: (batch, length), 0 for padding, or None.
        pooling: "mean", "sum", "first", "last", "padded_mean", the sum divided by the length with all padding, or
            "class_token", the first position, which is no token.

    Returns:
        (batch, dim); zero for a sequence without a real token.
    """
    if pooling == "class_token":
        return x[:, 0]
    real = torch.ones(x.shape[:2], dtype=torch.long, device=x.device) if mask is None else mask.long()
    if pooling in ("first", "last"):
        rank = real.cumsum(1) if pooling == "first" else real.flip(1).cumsum(1).flip(1)
        real = real * (rank == 1)
    wide = x if x.dtype == torch.float64 else x.float()
    pooled = (wide * real.unsqueeze(-1)).sum(1)
    if pooling == "mean":
        pooled = pooled / real.sum(1, keepdim=True).clamp_min(1)
    elif pooling == "padded_mean":
        pooled = pooled / x.shape[1]
    return pooled.to(x.dtype)


class SubquadClassifier(SubquadPreTrainedModel):
    """What all classifiers share.

    Args:
        config: Configuration of the model.
        backbone: A backbone that is there already; default: a new one.
    """

    def __init__(self, config: SubquadConfig, backbone: SubquadModel | None = None):
        super().__init__(config)
        self.model = SubquadModel(config) if backbone is None else backbone
        self.norm = build_norm(config.pooling_norm, config.output_dim)
        self.classifier = build_classifier(config)
        self.post_init()

    @property
    def initializer_range(self) -> None:
        """A classifier is put on a model that is there already, with initial values of its own."""
        return None

    def classify(
        self,
        outputs: BackboneOutput,
        mask: Tensor | None,
        labels: Tensor | None,
        num_items_in_batch: int | Tensor | None,
    ) -> dict[str, Any]:
        """The fields of an output, from what the backbone returned."""
        assert outputs.last_hidden_state is not None
        logits = self.classifier(self.norm(pool(outputs.last_hidden_state, mask, self.config.pooling)))
        loss = None
        if labels is not None:
            loss = label_loss(logits, labels, num_items_in_batch)
            scored = labels.argmax(-1) if labels.ndim > 1 else labels
            loss = add_auxiliary_losses(loss, outputs, self.config, scored, num_items_in_batch)
        return {"loss": loss, "logits": logits, "hidden_states": outputs.hidden_states}


class SubquadForSequenceClassification(SubquadClassifier):
    """Classifier of sequences, or of pairs of sequences where the configuration's `classifier` is one of pairs.

    Args:
        config: Configuration of the model.
        backbone: A backbone that is there already; default: a new one.

    Example:
        >>> import torch
        >>> from subquad import SubquadConfig, SubquadForSequenceClassification
        >>> config = SubquadConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, causal=False, num_labels=3)
        >>> model = SubquadForSequenceClassification(config).eval()
        >>> model(torch.zeros(4, 9, dtype=torch.long)).logits.shape
        torch.Size([4, 3])
    """

    def __init__(self, config: SubquadConfig, backbone: SubquadModel | None = None):
        if config.image_size is not None:
            raise ValueError("`image_size` is for images: use `SubquadForImageClassification`")
        super().__init__(config, backbone)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        input_values: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Classify.

        Args:
            input_ids: (batch, length) int64; of pairs (batch, 2, length), as all that follows.
            attention_mask: (batch, length), 0 for padding, which is never pooled. See `padding` in the configuration.
            position_ids: As in `SubquadModel`.
            inputs_embeds: (batch, length, embedding_size).
            input_values: (batch, length, input_features), of a model with `input_features`.
            labels: (batch,) int64, −100 is not scored; or (batch, num_labels) probabilities. With `num_labels` 1:
                (batch,) numbers, and the loss is the squared error.
            output_hidden_states: As in `SubquadModel`.
            num_items_in_batch: What the summed loss is divided by; default: the number of scored examples.
            **kwargs: Ignored; transformers passes some.

        Returns:
            `loss` (nats per example, in training plus the auxiliary losses), `logits` (batch, num_labels),
            `hidden_states`.

        Raises:
            ValueError: If inputs are not what this model takes, or pairs are no pairs.
        """
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "input_values": input_values,
        }
        if self.config.is_of_pairs:
            inputs = {name: None if x is None else _both(name, x) for name, x in inputs.items()}
        outputs = self.model(**inputs, output_hidden_states=output_hidden_states, use_cache=False)
        return SequenceClassifierOutput(**self.classify(outputs, inputs["attention_mask"], labels, num_items_in_batch))


def _both(name: str, x: Tensor) -> Tensor:
    """Pairs (batch, 2, ...) as a batch of sequences (2 · batch, ...)."""
    if x.ndim < 3 or x.shape[1] != 2:
        raise ValueError(f"a classifier of pairs needs `{name}` of shape (batch, 2, length, ...), got {tuple(x.shape)}")
    return x.flatten(0, 1)


class SubquadForImageClassification(SubquadClassifier):
    """Classifier of images.

    Args:
        config: Configuration of the model, with an `image_size`.

    Example:
        >>> import torch
        >>> from subquad import SubquadConfig, SubquadForImageClassification
        >>> config = SubquadConfig(
        ...     image_size=32, patch_embedding={"type": "linear", "patch_size": 8}, pooling_norm="simple_rmsnorm",
        ...     mixers=[{"type": "tno_2d", "height": 4, "width": 4, "combine": "sum"}], final_norm=None,
        ...     hidden_size=48, num_hidden_layers=2, causal=False, num_labels=10,
        ... )
        >>> model = SubquadForImageClassification(config).eval()
        >>> model(torch.zeros(1, 3, 32, 32)).logits.shape
        torch.Size([1, 10])
    """

    main_input_name = "pixel_values"

    def __init__(self, config: SubquadConfig):
        if config.image_size is None:
            raise ValueError("an image classifier needs an `image_size` in its configuration")
        if config.is_of_pairs:
            raise ValueError(f'`classifier` "{config.classifier}" is for sequences: use "linear" or "roberta"')
        super().__init__(config)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput:
        """Classify.

        Args:
            pixel_values: (batch, channels, height, width).
            inputs_embeds: (batch, patches, embedding_size), in place of `pixel_values`.
            labels: (batch,) int64, −100 is not scored; or (batch, num_labels) probabilities, as mixing images gives.
            output_hidden_states: As in `SubquadModel`.
            num_items_in_batch: What the summed loss is divided by; default: the number of scored images.
            **kwargs: Ignored; transformers passes some.

        Returns:
            `loss` (nats per image, in training plus the auxiliary losses), `logits` (batch, num_labels),
            `hidden_states`.

        Raises:
            ValueError: If images have another shape than the configuration says.
        """
        outputs = self.model(
            pixel_values=pixel_values,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
            use_cache=False,
        )
        return ImageClassifierOutput(**self.classify(outputs, None, labels, num_items_in_batch))
