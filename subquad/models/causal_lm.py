"""Causal language model: the backbone predicts the next token."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from subquad.models.backbone import SubquadModel, SubquadPreTrainedModel, require_tokens
from subquad.models.configuration import SubquadConfig
from subquad.models.losses import add_auxiliary_losses, token_loss


class SubquadForCausalLM(SubquadPreTrainedModel, GenerationMixin):
    """Causal language model: the backbone and an output layer, tied to the token embedding or not.

    Args:
        config: Configuration of the model; `causal` must be true.

    Example:
        >>> import torch
        >>> from subquad import SubquadConfig, SubquadForCausalLM
        >>> config = SubquadConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, mixers=[{"type": "hgru"}])
        >>> model = SubquadForCausalLM(config).eval()
        >>> model(torch.zeros(1, 5, dtype=torch.long)).logits.shape
        torch.Size([1, 5, 100])
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 - as transformers asks for

    def __init__(self, config: SubquadConfig):
        super().__init__(config)
        if not config.causal:
            raise ValueError("a causal language model needs `causal: true` in its configuration")
        require_tokens(config)
        if "batchnorm" in (config.norm, config.final_norm, config.embedding_norm):
            raise ValueError("batch norm sees later tokens in training: a causal language model needs another norm")
        self.model = SubquadModel(config)
        self.lm_head = nn.Linear(config.output_dim, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_logits: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Predict the next token at every position.

        Args:
            input_ids: (batch, length) int64.
            attention_mask: As in `SubquadModel`.
            position_ids: As in `SubquadModel`.
            past_key_values: As in `SubquadModel`.
            inputs_embeds: As in `SubquadModel`.
            labels: (batch, length) int64, the inputs themselves: shifted here; −100 is not scored.
            shift_labels: (batch, length) int64, the token after each position: not shifted; −100 is not scored.
            cu_seqlens: As in `SubquadModel`.
            use_cache: As in `SubquadModel`.
            output_hidden_states: As in `SubquadModel`.
            logits_to_keep: Compute logits of the last so many positions, or of these indices; 0: of all.
            return_logits: Whether to return logits beside a loss; default: not in training, where they would be the
                largest tensor of all. Without a loss they are always returned.
            num_items_in_batch: What the summed loss is divided by; default: the number of scored tokens.
            **kwargs: Ignored; transformers passes some.

        Returns:
            `loss` (nats per token, in training plus the auxiliary losses), `logits` (batch, kept, vocab_size) or None,
            `past_key_values`, `hidden_states`.

        Raises:
            ValueError: If arguments exclude each other.
        """
        if labels is not None and shift_labels is not None:
            raise ValueError("pass either `labels` or `shift_labels`")
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            cu_seqlens=cu_seqlens,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        hidden = outputs.last_hidden_state
        if labels is not None:
            shift_labels = F.pad(labels[:, 1:], (0, 1), value=-100)
        logits, loss = None, None
        if shift_labels is None or (not self.training if return_logits is None else return_logits):
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden[:, kept])
        if shift_labels is not None:
            loss = token_loss(hidden, self.lm_head, shift_labels, num_items_in_batch, logits)
            loss = add_auxiliary_losses(loss, outputs, self.config, shift_labels, num_items_in_batch)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )
