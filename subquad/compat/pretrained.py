"""Published models as transformers' models: what a run folder holds where no `SubquadConfig` describes the model.

The configuration is the name of the family and the published options, which are plain JSON; the module is what the
family builds of them. Everything else, such as the size of the vocabulary or the kinds of cache layers, is read off
the module. A folder is held against its configuration before memory is allocated for it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import ImageClassifierOutput, SequenceClassifierOutput

from subquad.compat.checkpoints import weight_files
from subquad.compat.fairseq import Published
from subquad.compat.families import ENTRIES
from subquad.compat.recognize import Recognized
from subquad.compat.reference import FAMILIES, check_options, from_reference
from subquad.data import DataError
from subquad.models import SubquadConfig, SubquadForSequenceClassification, SubquadModel
from subquad.models.losses import label_loss
from subquad.registry import unknown_name

MODELS = {entry.family for entry in ENTRIES if entry.task is not None}
"""The families that are whole models."""

# What a configuration may ask for without any tensor that bounds it: every other size is that of some tensor.
LIMITS = ((re.compile(r"(.*_)?(layers|depth)"), 128), (re.compile(r"num_classes|num_labels|d_output"), 100_000))

HEAD = (
    *("pooling", "pooling_norm", "padding", "dropout", "num_labels"),
    *("classifier", "classifier_hidden_size", "classifier_activation", "classifier_dropout"),
)
"""What a classifier of ours on a published model may set, as in `SubquadConfig`."""

FACTS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "layer_types", "causal", "use_cache"),
    *("position_embedding", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id"),
    *("input_features", "image_size", "num_channels", "classifier", "num_labels"),
)
"""What others ask the configuration of a model."""


@strict
class ReferenceConfig(PreTrainedConfig):
    """Configuration of a published model that no `SubquadConfig` describes.

    Args:
        family: Family of the model, see `from_reference`.
        options: The published configuration, complete: the model follows from it without its weights.
        head: Options of `SubquadConfig` for a classifier of ours, which stands on the backbone of the published
            language model in place of its output layers; None: the model is as published.

    Raises:
        ValueError: If the family is no model, the options are not those of one, or it has no backbone for a head.
    """

    model_type = "subquad-reference"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - the name and type transformers asks for

    family: str = ""
    options: dict[str, Any] | None = None
    head: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.options = self.options or {}
        facts = self.facts() if self.family else {}
        # What a file says of them is of no account.
        super().__post_init__(**{name: value for name, value in kwargs.items() if name not in FACTS})
        for name, value in facts.items():
            setattr(self, name, value)

    @classmethod
    def from_options(cls, model: Mapping[str, Any], sizes: Mapping[str, Any]) -> "ReferenceConfig":
        """Build from what a recipe says.

        Args:
            model: `family` and `options`.
            sizes: Published options that follow from the data.

        Raises:
            ValueError: If another entry is there, or an option that follows from the data.
        """
        for key in model:
            if key not in ("family", "options"):
                raise ValueError(unknown_name("entry of a published model", key, ("family", "options")))
        options = model.get("options") or {}
        for key in sizes:
            if key in options:
                raise ValueError(f"model.options.{key} is not set in a recipe: it follows from the data")
        return cls(family=model["family"], options={**options, **sizes})

    def with_classifier(self, options: Mapping[str, Any]) -> "ReferenceConfig":
        """The configuration of a new classifier on this model.

        Args:
            options: Of those in `HEAD`, and the names of the classes, `id2label` and `label2id`.

        Raises:
            ValueError: If another option is there, one is impossible, or the model has no backbone of ours.
        """
        names = {name: options[name] for name in ("id2label", "label2id") if name in options}
        head = {name: value for name, value in options.items() if name not in names}
        if names:
            head["num_labels"] = len(names["id2label"])
        return type(self)(family=self.family, options=self.options, head=head, **names)

    def build(self) -> Any:
        """The module, with initial values.

        Raises:
            ValueError: If the family is no model, or the options are not those of one.
        """
        if self.family not in MODELS:
            raise ValueError(unknown_name("family of models", self.family, MODELS))
        assert self.options is not None
        check_limits([self.options, self.head or {}])
        build = FAMILIES[self.family]
        check_options(self.family, build, self.options)
        try:
            module = build({}, **_copied(self.options)).module
            return module if self.head is None else PublishedForSequenceClassification(module, self.head)
        except ValueError:
            raise
        # Options of the wrong kind fail anywhere in the construction.
        except Exception as error:
            raise ValueError(f"these options make no {self.family} ({type(error).__name__}: {error})") from error

    @property
    def is_of_pairs(self) -> bool:
        """Whether an example of the classifier is a pair of sequences."""
        return getattr(self, "classifier", None) == "pair"

    def facts(self) -> dict[str, Any]:
        """What the module says of itself; takes no memory."""
        with torch.device("meta"):
            module = self.build()
        if not hasattr(module, "class_logits") and not isinstance(module, PreTrainedModel):
            raise ValueError(f"these options of a {self.family} are those of a part of a model")
        facts = getattr(module, "facts", None)
        return {name: getattr(module.config, name) for name in FACTS} if facts is None else facts


def check_limits(options: Any) -> None:
    """Hold that options ask for no number of things that only a hostile file asks for.

    Raises:
        ValueError: If one does.
    """
    for key, value in options.items() if isinstance(options, dict) else enumerate(options):
        if isinstance(value, dict | list):
            check_limits(value)
        for name, largest in LIMITS:
            if name.fullmatch(str(key)) and isinstance(value, int | float) and value > largest:
                raise ValueError(f"`{key}` = {value} is more than any model has: at most {largest}")


def _copied(options: Any) -> Any:
    if isinstance(options, dict):
        return {key: _copied(value) for key, value in options.items()}
    return [_copied(value) for value in options] if isinstance(options, list) else options


class PublishedForSequenceClassification(SubquadForSequenceClassification):
    """A classifier of ours on the backbone of a published language model.

    Args:
        model: The language model; its output layers are left out.
        head: The classifier, see `ReferenceConfig`.

    Raises:
        ValueError: If the model has no backbone of ours, or an option is none of `HEAD` or impossible.
    """

    def __init__(self, model: nn.Module, head: Mapping[str, Any]):
        backbone: Any = getattr(model, "base_model", None)
        if not isinstance(backbone, SubquadModel):
            raise ValueError("this published model has no backbone that a classifier can be put on")
        for name in head:
            if name not in HEAD:
                raise ValueError(unknown_name("option of a classifier on a published model", name, HEAD))
        if head.get("pooling") == "class_token":
            raise ValueError("a published model has no class token: `pooling` must be that of its tokens, as 'mean'")
        fields = backbone.config.to_dict()
        own = {name: fields[name] for name in SubquadConfig.__annotations__ if name in fields}
        config = SubquadConfig.from_options({**own, **head})
        backbone.config = config
        if "dropout" in head:
            parts: list[Any] = [backbone, *backbone.layers]
            for part in parts:
                part.dropout.p = config.dropout
        super().__init__(config, backbone)

    def class_logits(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Logits (batch, num_labels) of `tokens` (batch, length) and their padding mask."""
        return self(tokens, attention_mask=mask).logits


class ReferenceModel(PreTrainedModel):
    """What published models of all tasks share: loading and saving.

    Args:
        config: Configuration of the model.
    """

    config_class = ReferenceConfig
    base_model_prefix = "reference"
    supports_gradient_checkpointing = True
    _is_stateful = True

    def __init__(self, config: ReferenceConfig):
        super().__init__(config)
        self.reference = config.build()
        first: dict[Tensor, str] = {}
        named = self.named_parameters(remove_duplicate=False)
        self._tied_weights_keys = {name: first[p] for name, p in named if first.setdefault(p, name) != name}
        self.post_init()

    @property
    def base_model(self) -> nn.Module:
        """The backbone, where the published model has one of ours."""
        return getattr(self.reference, "base_model", self.reference)

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """The second names of tied parameters, each with the first."""
        return dict(self._tied_weights_keys)

    def _init_weights(self, module: nn.Module) -> None:
        """The modules know their initial values."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a folder, as in transformers, once its weights are those of its configuration.

        Raises:
            ValueError: If weights are missing, unexpected or of another shape.
        """
        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir():
            config = kwargs.get("config") or ReferenceConfig.from_pretrained(folder)
            cls.check_weights(config, folder)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def check_weights(cls, config: Any, folder: Path) -> None:
        """Hold the weights in a folder against a configuration, without reading them.

        Raises:
            DataError: If files are missing or corrupt, or weights are missing, unexpected or of another shape.
        """
        with torch.device("meta"):
            model = cls(config)
        expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
        stored: dict[str, list[int]] = {}
        for path in weight_files(folder):
            try:
                with safe_open(path, framework="pt") as file:
                    stored |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            except (SafetensorError, OSError) as error:
                raise DataError(f"{path}: corrupt or cut off ({error})") from None
        for name in model.all_tied_weights_keys:
            expected.pop(name, None)
        wrong = [name for name in expected.keys() | stored.keys() if expected.get(name) != stored.get(name)]
        if wrong:
            raise DataError(
                f"{folder}: its weights are not those of its configuration, a {config.family} "
                f"({len(wrong)} differ, such as {sorted(wrong)[0]})"
            )


class ReferenceForCausalLM(ReferenceModel, GenerationMixin):
    """A published causal language model.

    Args:
        config: Configuration of the model.
    """

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Predict the next token at every position, as `SubquadForCausalLM` does.

        Raises:
            ValueError: If there is a cache and a part of the model keeps no state.
        """
        if past_key_values is not None and not self.config.use_cache:
            raise ValueError(
                f"a part of this {self.config.family} keeps no state, so a cache is of no use: pass whole texts, and "
                "use_cache=False"
            )
        return self.reference(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )


class ReferenceForMaskedLM(ReferenceModel):
    """A published masked language model.

    Args:
        config: Configuration of the model.
    """

    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """Predict the token at every position, as `SubquadForMaskedLM` does."""
        return self.reference(input_ids=input_ids, attention_mask=attention_mask, **kwargs)


class ReferenceForSequenceClassification(ReferenceModel):
    """A published classifier of sequences or of pairs of them.

    Args:
        config: Configuration of the model.
    """

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Classify, as `SubquadForSequenceClassification` does; the loss is that of the classes alone.

        Raises:
            ValueError: If inputs are not what this model takes.
        """
        if (input_ids is None) == (input_values is None):
            raise ValueError("pass either `input_ids` or `input_values`")
        inputs = input_values.to(self.dtype) if input_values is not None else input_ids
        logits = self.reference.class_logits(inputs, attention_mask)
        loss = None if labels is None else label_loss(logits, labels, num_items_in_batch)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class ReferenceForImageClassification(ReferenceModel):
    """A published classifier of images.

    Args:
        config: Configuration of the model.
    """

    main_input_name = "pixel_values"

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput:
        """Classify, as `SubquadForImageClassification` does; the loss is that of the classes alone."""
        logits = self.reference.class_logits(pixel_values.to(self.dtype), None)
        loss = None if labels is None else label_loss(logits, labels, num_items_in_batch)
        return ImageClassifierOutput(loss=loss, logits=logits)


CLASSES: dict[str, tuple[type[ReferenceModel], Any]] = {
    "causal-lm": (ReferenceForCausalLM, AutoModelForCausalLM),
    "masked-lm": (ReferenceForMaskedLM, AutoModelForMaskedLM),
    "sequence-classification": (ReferenceForSequenceClassification, AutoModelForSequenceClassification),
    "image-classification": (ReferenceForImageClassification, AutoModelForImageClassification),
}
AutoConfig.register(ReferenceConfig.model_type, ReferenceConfig, exist_ok=True)
for model_class, auto in CLASSES.values():
    auto.register(ReferenceConfig, model_class, exist_ok=True)


def to_pretrained(found: Recognized, state_dict: Mapping[str, Tensor]) -> PreTrainedModel:
    """A published model that can be saved: one of ours where a `SubquadConfig` describes it.

    Args:
        found: What `recognize` found.
        state_dict: Its parameters and buffers under their published names.

    Raises:
        ValueError: See `from_reference`; or this is a part of a model, or something in it follows from the weights
            alone.
    """
    if found.task is None:
        raise ValueError(f"a {found.family} is a part of a model, which cannot be saved alone")
    module = from_reference(found.family, found.config, state_dict)
    if isinstance(module, PreTrainedModel) and not isinstance(module, Published):
        return module
    with torch.device("meta"):
        model = CLASSES[found.task][0](ReferenceConfig(family=found.family, options=found.config))
    built, loaded = ({name: t.shape for name, t in m.state_dict().items()} for m in (model.reference, module))
    if built != loaded:
        names = sorted(name for name in built.keys() | loaded.keys() if built.get(name) != loaded.get(name))
        raise ValueError(f"the options of this {found.family} do not tell what only its weights do: {', '.join(names)}")
    model.reference = module
    return model.eval()
