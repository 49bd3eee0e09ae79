import pytest
import torch
from support import assert_close
from torch import nn

from subquad import SubquadConfig, SubquadForCausalLM
from subquad.training.optimizer import FairseqAdam, build_optimizer, parameter_groups

START = (1.0, -2.0, 0.5, 0.0)
GRADIENTS = ((0.1, -0.2, 1e-6, 0.0), (0.3, 0.1, -1e-6, 1e-3), (-0.2, 0.4, 2e-6, 0.0), (0.05, 0.0, 1e-6, -1e-3))
RATES = (1e-3, 5e-4, 2e-3, 1e-3)
TRAJECTORIES = {
    (1e-8, 0.2): {
        1: (0.998800000707, -1.998600000354, 0.498966040883, 0.0),
        4: (0.996842292020, -1.998351653195, 0.497097627591, -0.001442515543),
    },
    (1e-6, 0.01): {
        1: (0.998990070706, -1.998980035354, 0.499871100657, 0.0),
        4: (0.997696084810, -2.000060545985, 0.499442895205, -0.001432680676),
    },
}


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"foreach": False}], ids=str)
@pytest.mark.parametrize(("eps", "weight_decay"), TRAJECTORIES)
def test_fairseq_adam_follows_the_reference(eps, weight_decay, options):
    theta = nn.Parameter(torch.tensor(START, dtype=torch.float64))
    optimizer = FairseqAdam([theta], lr=1.0, eps=eps, weight_decay=weight_decay, **options)
    for update, (gradient, rate) in enumerate(zip(GRADIENTS, RATES, strict=True), start=1):
        optimizer.param_groups[0]["lr"] = rate
        theta.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        expected = TRAJECTORIES[eps, weight_decay].get(update)
        if expected is not None:
            assert_close(theta, torch.tensor(expected, dtype=torch.float64))
    assert optimizer.param_groups[0]["eps"] == eps


def test_fairseq_adam_computes_the_formula():
    theta = nn.Parameter(torch.randn(50, dtype=torch.float64))
    expected = theta.detach().clone()
    optimizer = FairseqAdam([theta], lr=1e-2, eps=1e-3, weight_decay=0.1)
    m = v = torch.zeros(50, dtype=torch.float64)
    for t in range(1, 6):
        g = torch.randn(50, dtype=torch.float64) * 1e-2
        theta.grad = g.clone()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g * g
        step = 1e-2 * (1 - 0.98**t) ** 0.5 / (1 - 0.9**t) * m / (v.sqrt() + 1e-3)
        expected = expected * (1 - 1e-2 * 0.1) - step
    assert_close(theta, expected)


def test_matrices_decay_and_nothing_else_does():
    config = SubquadConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, norm="layernorm", mixers=[{"type": "hgru"}]
    )
    model = SubquadForCausalLM(config)
    decayed, spared = parameter_groups(model, 0.1, "matrices")
    names = {id(p): name for name, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0.0
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
    for p in decayed["params"]:
        assert names[id(p)].endswith("weight")
        assert p.ndim == 2
    kinds = ("bias", "norm.weight", "phase", "shared.hgru.weight")
    assert all(names[id(p)].endswith(kinds) for p in spared["params"])
    assert all(any(names[id(p)].endswith(kind) for p in spared["params"]) for kind in kinds)


def test_maps_decay_and_tables_do_not():
    config = SubquadConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=2,
        mixers=[{"type": "softmax", "num_heads": 2}],
        position_embedding="learned",
        max_position_embeddings=9,
        tie_word_embeddings=False,
    )
    model = SubquadForCausalLM(config)
    matrices, maps = ({id(p) for p in parameter_groups(model, 0.1, rule)[0]["params"]} for rule in ("matrices", "maps"))
    assert {name for name, p in model.named_parameters() if id(p) in matrices - maps} == {
        "model.embed_tokens.weight",
        "model.positions.weight",
    }
    assert maps < matrices


def test_all_parameters_are_one_group_and_frozen_ones_are_left_out():
    config = SubquadConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, mixers=[{"type": "tno"}])
    model = SubquadForCausalLM(config)
    (group,) = parameter_groups(model, 0.2, "all")
    assert sum(p.numel() for p in group["params"]) == model.num_parameters(only_trainable=True)
    assert model.num_parameters(only_trainable=True) < model.num_parameters()


def test_unknown_names_are_errors():
    options = {"lr": 1.0, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.0, "decay": "all"}
    with pytest.raises(ValueError, match=r"'adamv'.*mean 'adamw'"):
        build_optimizer(nn.Linear(1, 1), "adamv", **options)
    with pytest.raises(ValueError, match=r"'matrix'.*mean 'matrices'"):
        parameter_groups(nn.Linear(1, 1), 0.1, "matrix")  # pyright: ignore[reportArgumentType]
