"""States of mixers in transformers' own caches: what `generate`, beam search and users pass around."""

from typing import Any

from torch import Tensor
from transformers import Cache

from subquad.mixers import State


def read_state(cache: Cache, layer: int, state_type: str) -> State | None:
    """The state of one layer's mixer, None before the first token."""
    slot: Any = cache.layers[layer]
    if state_type == "growing":
        return (slot.keys, slot.values) if slot.get_seq_length() else None
    states = tuple(state for j, state in slot.recurrent_states.items() if slot.has_previous_state[j])
    return states or None


def write_state(cache: Cache, layer: int, state_type: str, state: State, length: int) -> None:
    """Keep the state of one layer's mixer after `length` tokens."""
    slot: Any = cache.layers[layer]
    if state_type == "growing":
        slot.keys, slot.values = state
    else:
        slot.number_of_states = len(state)
        for j, tensor in enumerate(state):
            slot.recurrent_states[j] = tensor
            slot.is_recurrent_states_initialized[j] = slot.has_previous_state[j] = True
            # Beam search asks this of every state, and the layer was made for one.
            slot.is_conv_states_initialized.setdefault(j, False)
        # The layer's length is read off its keys: one number, seen once for each token.
        slot.keys = slot.values = _one_for_each(state[0], length)
    slot.device, slot.dtype, slot.is_initialized = state[0].device, state[0].dtype, True


def _one_for_each(state: Tensor, length: int) -> Tensor:
    return state.new_zeros(1, 1, 1, 1).expand(state.shape[0], 1, length, 1)
