import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from subquad.compat.adaptive import AdaptiveInput, AdaptiveSoftmax
from subquad.models.losses import token_loss

EDGES = [5, 11, 20]


def build(tied: bool) -> AdaptiveSoftmax:
    torch.manual_seed(0)
    words = AdaptiveInput(EDGES, 8, 8, 2, padding_idx=1).double() if tied else None
    return AdaptiveSoftmax(EDGES, 8, 2, 0.0, words, tie_maps=tied).double()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("highest", [20, 5], ids=["all bands", "frequent words alone"])
def test_the_loss_without_all_logits_is_that_of_all(tied, highest):
    head = build(tied)
    hidden = torch.randn(3, 7, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(highest, (3, 7))
    targets[0, :3] = -100
    inputs = [hidden, *head.parameters()]
    whole = F.cross_entropy(head(hidden).flatten(0, 1), targets.flatten())
    ours = token_loss(hidden, head, targets)
    assert_close(ours, whole)
    for a, b in zip(*(torch.autograd.grad(loss, inputs) for loss in (ours, whole)), strict=True):
        assert_close(a, b)


def test_tails_are_scored_for_their_own_words_alone():
    head = build(tied=False)
    seen = []
    for tail in head.tail_words:
        tail.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    head.total_loss(torch.randn(6, 8, dtype=torch.float64), torch.tensor([0, 4, 7, 19, 12, -100]))
    assert seen == [(1, 6), (2, 9)]
