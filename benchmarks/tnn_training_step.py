"""A training step of the TNN language model against the straightforward published formulation, in one process.

The baseline is our own re-statement of the published layer, since the published distributions of `tnn-pytorch` hold no
code: it evaluates the encoder at 0 and at the positive lags, transforms the padded tensors along the strided time axis,
and leaves the gradient to autograd. What stands around the layers is PyTorch as it comes there, logits and
`cross_entropy` and `AdamW`, and in ours what our training uses. Both models hold the same weights; before anything is
timed their gradients are compared.

    python benchmarks/tnn_training_step.py [--batch 4] [--length 512] [--repeats 7] [--json FILE]
"""

import argparse
import copy
from functools import partial
from pathlib import Path

import torch
from published.unit import published_unit
from side_by_side import report, time_side_by_side
from torch import Tensor, nn

from subquad import SubquadConfig, SubquadForCausalLM

PRESET = {
    "vocab_size": 50264,
    "hidden_size": 512,
    "num_hidden_layers": 7,
    "mixers": [{"type": "tno", "rpe_hidden_size": 64, "rpe_layers": 6}],
    "channel_mixer": {"type": "glu", "hidden_size": 512},
    "scale_embedding": True,
    "pad_token_id": 1,
}


class PublishedToeplitz(nn.Module):
    """The Toeplitz operator as published: heads, concatenated coefficients, FFT of length 2n along the time axis."""

    def __init__(self, tno: nn.Module):
        super().__init__()
        self.rpe, self.decay = tno.rpe, tno.decay

    def encode(self, positions: Tensor) -> Tensor:
        z = self.rpe.input_proj(positions)
        for layer in self.rpe.layers:
            z = layer(torch.relu(published_norm(z)))
        return self.rpe.output_proj(torch.relu(published_norm(z)))

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        heads = x.unsqueeze(1)
        n = heads.shape[-2]
        index = torch.arange(1, n, dtype=torch.float32).reshape(-1, 1)
        zero = self.encode(torch.zeros(1, 1)).unsqueeze(0)
        positive = self.encode(index).unsqueeze(0) * self.decay ** index.unsqueeze(0)
        coefficients = torch.cat([zero, positive, zero, torch.zeros_like(positive)], dim=-2)
        spectrum = torch.fft.rfft(heads, n=2 * n, dim=-2) * torch.fft.rfft(coefficients, n=2 * n, dim=-2)
        return torch.fft.irfft(spectrum, n=2 * n, dim=-2)[:, :, :n].squeeze(1), x


def published_norm(x: Tensor) -> Tensor:
    return x / (x.norm(2, dim=-1, keepdim=True) * x.shape[-1] ** -0.5 + 1e-8)


class PublishedNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return published_norm(x)


def published(model: SubquadForCausalLM) -> SubquadForCausalLM:
    """The same weights in the published formulation."""
    model = copy.deepcopy(model)
    for block in model.model.layers:
        block.token_mixer = published_unit(block.token_mixer, PublishedToeplitz)
        block.token_norm = block.channel_norm = PublishedNorm()
        block.channel_mixer.activation = nn.SiLU()
    return model


def step(model: nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor, all_logits: bool) -> float:
    loss = model(ids, labels=ids, use_cache=False, return_logits=all_logits).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--vocab-size", type=int, default=PRESET["vocab_size"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    ours = SubquadForCausalLM(SubquadConfig.from_options({**PRESET, "vocab_size": args.vocab_size})).train()
    models = {"subquad": ours, "published formulation": published(ours)}
    ids = torch.randint(4, args.vocab_size, (args.batch, args.length))

    losses = {name: model(ids, labels=ids).loss for name, model in models.items()}
    gradients = {
        name: torch.autograd.grad(loss, models[name].model.layers[0].token_mixer.input_proj.weight)[0]
        for name, loss in losses.items()
    }
    first, second = gradients.values()
    error = ((first - second).norm() / second.norm()).item()
    if not error < 1e-3:
        raise SystemExit(f"the two formulations disagree: gradient error {error:.1e}; nothing was timed")
    del losses, gradients, first, second

    candidates = {}
    for name, model in models.items():
        plain = model is not ours
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=None if plain else True)
        candidates[name] = partial(step, model, optimizer, ids, plain)
    title = f"training step of the TNN language model, batch {args.batch} × {args.length}, vocabulary {args.vocab_size}"
    times = time_side_by_side(candidates, args.repeats)
    report(title, times, "subquad", args.json, gradient_error=f"{error:.1e}")


if __name__ == "__main__":
    main()
