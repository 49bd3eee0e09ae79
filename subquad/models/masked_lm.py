"""Masked language model: the backbone predicts tokens that are hidden from it."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import MaskedLMOutput

from subquad.models.backbone import SubquadModel, SubquadPreTrainedModel, require_tokens
from subquad.models.configuration import SubquadConfig
from subquad.models.losses import add_auxiliary_losses, token_loss


class MaskedLMHead(nn.Module):
    """Logits V norm(gelu(Wx + b)) + c, with V the token embedding if tied (BERT, arXiv 1810.04805).

    Args:
        dim: Features in.
        vocab_size: Number of tokens.
    """

    def __init__(self, dim: int, vocab_size: int):
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.activation: Callable[[Tensor], Tensor] = F.gelu
        self.norm = nn.LayerNorm(dim)
        self.decoder = nn.Linear(dim, vocab_size)

    def transform(self, x: Tensor) -> Tensor:
        """The input of the output layer (..., dim) for `x` (..., dim)."""
        return self.norm(self.activation(self.dense(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (..., vocab_size) of `x` (..., dim)."""
        return self.decoder(self.transform(x))


class SubquadForMaskedLM(SubquadPreTrainedModel):
    """Masked language model: the backbone and a head, tied to the token embedding or not.

    Args:
        config: Configuration of the model; `causal` must be false.

    Example:
        >>> import torch
        >>> from subquad import SubquadConfig, SubquadForMaskedLM
        >>> config = SubquadConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, causal=False)
        >>> model = SubquadForMaskedLM(config).eval()
        >>> model(torch.zeros(1, 5, dtype=torch.long)).logits.shape
        torch.Size([1, 5, 100])
    """

    _tied_weights_keys = {"lm_head.decoder.weight": "model.embed_tokens.weight"}  # noqa: RUF012 - as transformers asks

    def __init__(self, config: SubquadConfig):
        super().__init__(config)
        if config.causal:
            raise ValueError("a masked language model needs `causal: false` in its configuration")
        require_tokens(config)
        self.model = SubquadModel(config)
        self.lm_head = MaskedLMHead(config.output_dim, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """The output layer."""
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the output layer."""
        self.lm_head.decoder = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_logits: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """Predict the token at every position, or in training at those alone that are scored.

        Args:
            input_ids: (batch, length) int64.
            attention_mask: As in `SubquadModel`.
            position_ids: As in `SubquadModel`.
            inputs_embeds: As in `SubquadModel`.
            labels: (batch, length) int64, the token that was at each position; −100 is not scored.
            cu_seqlens: As in `SubquadModel`.
            output_hidden_states: As in `SubquadModel`.
            return_logits: Whether to return logits beside a loss; default: not in training, where only the scored
                positions are mapped to the vocabulary. Without a loss they are always returned.
            num_items_in_batch: What the summed loss is divided by; default: the number of scored tokens.
            **kwargs: Ignored; transformers passes some.

        Returns:
            `loss` (nats per scored token, in training plus the auxiliary losses), `logits` (batch, length, vocab_size)
            or None, `hidden_states`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            cu_seqlens=cu_seqlens,
            output_hidden_states=output_hidden_states,
        )
        hidden = outputs.last_hidden_state
        logits, loss = None, None
        if labels is None or (not self.training if return_logits is None else return_logits):
            logits = self.lm_head(hidden)
        if labels is not None:
            scored = labels != -100
            features = self.lm_head.transform(hidden[scored])
            loss = token_loss(features[None], self.lm_head.decoder, labels[scored][None], num_items_in_batch)
            loss = add_auxiliary_losses(loss, outputs, self.config, labels, num_items_in_batch)
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)
