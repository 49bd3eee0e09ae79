"""Published SKI-TNNs and FD-TNNs: what comes back, what differs from the paper, and options beyond the fixtures."""

import pytest
import torch
from support import assert_close, error_ratio
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from subquad import SubquadForCausalLM, SubquadForMaskedLM
from subquad.compat import from_reference
from subquad.compat.ski import PublishedSKITNO
from subquad.mixers import FDTNO, SKITNO


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_a_plain_causal_preset_is_our_model(load, tmp_path):
    family, config, state, (tokens,), y, _ = load("fd-fairseq_lm-tno_fd-tied")
    model = from_reference(family, config, state)
    assert type(model) is SubquadForCausalLM
    assert isinstance(model.model.layers[0].token_mixer.operator, FDTNO)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert_close(again(tokens).logits, y)


def test_a_plain_masked_preset_is_our_model(load, tmp_path):
    family, config, state, (tokens,), y, _ = load("ski-fairseq_roberta-tno_fd-pad")
    model = from_reference(family, config, state)
    assert type(model) is SubquadForMaskedLM
    model.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert_close(again(tokens, attention_mask=tokens != 1).logits, y)


@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("fd-fairseq_lm-norpe-untied", "the published operator 'tno_fd_norpe'"),
        ("ski-fairseq_roberta-ski_inv_time", "the published operator 'skitno_inv_time'"),
    ],
)
def test_operators_that_the_paper_does_not_have_are_not_saved(load, tmp_path, name, operator):
    family, config, state, _, _, _ = load(name)
    with pytest.raises(ValueError, match=operator):
        from_reference(family, config, state).save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "family"),
    [("tnn-fairseq_lm-v2-pre", "fd.fairseq_lm"), ("tnn-fairseq_roberta-v2-pad", "ski.fairseq_roberta")],
)
@pytest.mark.parametrize("named", [True, False])
def test_baselines_in_the_time_domain(load, name, family, named):
    _, config, state, (tokens,), y, _ = load(name)
    args = {key: value for key, value in config.items() if key != "model"} | ({"tno_type": "tno"} if named else {})
    assert_close(from_reference(family, args, state)(tokens).logits, y)


@pytest.mark.parametrize("name", ["fd-fairseq_lm-tno_fd-tied", "fd-fairseq_lm-norpe-untied"])
def test_generation_is_full_recomputation(load, name):
    """The kernel changes where the length passes a power of two, here 8: nothing is kept from shorter inputs."""
    family, config, state, (tokens,), _, _ = load(name)
    model = from_reference(family, config, state)
    expected = tokens = tokens[:, :5]
    for _ in range(6):
        expected = torch.cat([expected, model(expected).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(model.generate(tokens, max_new_tokens=6, do_sample=False, eos_token_id=None), expected)


def test_the_released_rows():
    rows = [[0, 1, 0, 0, 0], [0, -17 / 49, 66 / 49, 0, 0], [0, 0, -34 / 49, 83 / 49, 0]]
    weights = PublishedSKITNO(3, False, rank=5, num_taps=3, decay=1.0).interpolation(8)
    assert_close(weights[:3], torch.tensor(rows, dtype=torch.float64))


def test_the_released_interpolation_is_not_that_of_the_paper():
    """With an inducing position at every input, the paper's operator is the dense matrix; the released one is not."""
    released = PublishedSKITNO(3, False, rank=16, num_taps=3, decay=0.99).double()
    paper = SKITNO(3, False, rank=16, num_taps=3, decay=0.99, horizon=None).double()
    paper.load_state_dict({name: tensor for name, tensor in released.state_dict().items() if name != "decay"})
    x = randn(2, 16, 3)
    lags = torch.arange(16).unsqueeze(1) - torch.arange(16) + 15
    dense = torch.einsum("ijd,bjd->bid", paper.coefficients(16)[lags], x)
    assert_close(paper(x)[0], dense)
    assert error_ratio(released(x)[0], dense) > 0.1


def ski_weights(dim, num_taps, rank, gamma=0.9):
    return {
        "conv_kernel": randn(dim, num_taps),
        "alphas": randn(1, dim, 1, rank),
        "betas": randn(1, dim, 1, rank),
        "gamma": torch.tensor([gamma], dtype=torch.float64),
    }


@pytest.mark.parametrize(("length", "rank", "nk"), [(2, 2, 1), (3, 9, 33), (40, 6, 0)])
def test_sizes_against_the_formula(length, rank, nk):
    """The released operator, written out row by row."""
    num_taps = nk if nk % 2 else nk + 1
    state = ski_weights(2, num_taps, rank, gamma=0.97)
    operator = from_reference("ski.SKITnoInvTime", {"h": 1, "dim": 2, "r": rank, "nk": nk, "gamma": 0.97}, state)
    h = (length - 1) / (rank - 1)
    weights = torch.zeros(length, rank, dtype=torch.float64)
    for i in range(length):
        t = i * length / (length - 1)
        u = min(sum(k * h < t - 1e-9 for k in range(rank)), rank - 2)
        a = (t - u * h) / h
        weights[i, u], weights[i, u + 1] = a * 0.97 ** (t * length), (1 - a) * 0.97 ** (t * length)

    def rho(lag):
        table = torch.cat(
            [torch.zeros(2, 1), state["alphas"][0, :, 0] if lag >= 0 else state["betas"][0, :, 0].flip(1)], 1
        )
        u = rank * 0.97 ** abs(lag)
        j = min(int(u), rank - 1)
        return (1 - u + j) * table[:, j] + (u - j) * table[:, j + 1]

    matrix = torch.stack([torch.stack([rho((k - j) * h) for j in range(rank)]) for k in range(rank)])
    x = randn(2, length, 2)
    expected = torch.einsum("ik,kld,jl,bjd->bid", weights, matrix, weights, x)
    q = num_taps // 2
    padded = torch.nn.functional.pad(x, (0, 0, q, q))
    for k in range(num_taps):
        expected = expected + state["conv_kernel"][:, k] * padded[:, k : k + length]
    assert_close(operator(x), expected)


def test_a_short_causal_sequence_takes_the_first_taps():
    state = ski_weights(2, 4, 3)
    del state["betas"]
    config = {"h": 1, "dim": 2, "r": 3, "nk": 7, "causal": True, "gamma": 0.9}
    operator = from_reference("ski.SKITnoInvTime", config, state)
    x = randn(1, 1, 2)
    assert_close(operator(x), x * (state["conv_kernel"][:, 0] + state["alphas"][0, :, 0, -1]))


def test_another_picture():
    """A layer over pictures that are no squares: rows along the second axis, twice the product."""
    state = {"pre_norm.weight": torch.ones(4), "pre_norm.bias": torch.zeros(4), "d": torch.ones(4)}
    for name in ("u_proj", "v_proj", "o"):
        state |= {f"{name}.weight": torch.eye(4, dtype=torch.float64), f"{name}.bias": torch.zeros(4)}
    for i in (1, 2):
        state |= {f"toep{i}.{name}": tensor for name, tensor in ski_weights(4, 3, 3).items()}
    layer = from_reference(
        "ski.Skitno2d", {"d_model": 4, "n_heads": 1, "tno_expand_ratio": 1, "gamma": 0.9, "rank": 3, "nk": 2}, state
    )
    operators = [
        from_reference(
            "ski.SKITnoInvTime",
            {"h": 1, "dim": 4, "r": 3, "nk": 3, "gamma": 0.9},
            {name.partition(".")[2]: tensor for name, tensor in state.items() if name.startswith(f"toep{i}.")},
        )
        for i in (1, 2)
    ]
    x = randn(2, 12, 4)
    u = torch.nn.functional.silu(x)
    rows = operators[0](u.unflatten(1, (3, 4)).flatten(0, 1)).view(2, 3, 4, 4).transpose(1, 2)
    both = operators[1](rows.flatten(0, 1)).view(2, 4, 3, 4).transpose(1, 2).flatten(1, 2)
    assert_close(layer(x), u * 2 * both)


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("ski.Gtu", {"embed_dim": 8, "num_heads": 1, "args": {"tno_type": "skitno"}}, "needs `rank` and `nk`"),
        (
            "ski.Gtu",
            {"embed_dim": 8, "num_heads": 1, "normalize": True, "args": {"tno_type": "skitno", "rank": 4, "nk": 3}},
            "`normalize` cannot be true",
        ),
        ("ski.Gtu", {"embed_dim": 8, "num_heads": 1, "expand_ration": 2}, "Did you mean 'expand_ratio'"),
        ("ski.Skitno1d", {"d_model": 8, "n_heads": 1, "token_shift_type": 3}, "must be -1, 1 or 2, got 3"),
        ("fd.TnoFD1d", {"d_model": 8, "n_heads": 1, "norm_tipe": "x"}, "Did you mean 'norm_type'"),
        ("fd.TnoFD2d", {"d_model": 8, "n_heads": 1, "tno_type": 2}, "must be 4 or 6, got 2"),
        ("fd.fairseq_lm", {"tno_type": "tno_fd"}, "must have decoder_embed_dim, decoder_attention_heads"),
    ],
)
def test_errors(family, config, message):
    with pytest.raises(ValueError, match=message):
        from_reference(family, config, {})


def test_weights_that_do_not_fit_are_named_as_published():
    state = ski_weights(4, 3, 5)
    del state["gamma"]
    with pytest.raises(ValueError, match=r"Missing: gamma \(1,\); of another shape: conv_kernel") as error:
        from_reference("ski.SKITnoInvTime", {"h": 1, "dim": 4, "r": 5, "nk": 5}, state)
    assert "unexpected" not in str(error.value)


def shifted_exp(x):
    return (x - x.amax(-1, keepdim=True)).exp()


@pytest.mark.parametrize(("name", "function"), [("sine", torch.sin), ("exp", shifted_exp)])
def test_activations_of_operators_are_fairseqs(load, name, function):
    """One token: the kernel is the mean of the response at 0 and π."""
    family, config, state, (x,), _, _ = load("fd-TnoFD-causal-n1")
    z = (
        torch.tensor([[0.0], [torch.pi]], dtype=torch.float64) @ state["rpe.pos_proj.weight"].T
        + state["rpe.pos_proj.bias"]
    )
    features = function(z / (z.square().mean(-1, keepdim=True).sqrt() + 1e-8))
    response = features @ state["rpe.out.2.weight"].T + state["rpe.out.2.bias"]
    assert_close(from_reference(family, {**config, "act": name}, state)(x), x * response.mean(0))


@pytest.mark.parametrize("case", ["tno", "tno_fd", "tno_fd_norpe"])
def test_activations_of_units_are_fairseqs(load, case):
    family, config, state, (x,), _, _ = load(f"ski-Gtu-{case}-causal")
    unit = from_reference(family, {**config, "act_fun": "exp"}, state).module
    u, v = (shifted_exp(x @ state[f"{p}_proj.weight"].T + state[f"{p}_proj.bias"]) for p in "uv")
    assert_close(unit(x)[0], (u * unit.operator(v)[0]) @ state["o.weight"].T + state["o.bias"])


def test_activations_of_language_models_are_fairseqs(load, tmp_path):
    family, config, state, _, _, _ = load("fd-fairseq_lm-tno_fd-tied")
    model = from_reference(family, {**config, "act_fun": "exp"}, state)
    z = randn(2, 5, 8)
    assert_close(model.model.layers[0].token_mixer.activation(z), shifted_exp(z))
    with pytest.raises(ValueError, match="has `act_fun` 'exp', which no `SubquadConfig` describes"):
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "ignored"),
    [
        ("ski-SKITnoInvTime-noncausal-n8", {"use_decay": True, "rpe_dim": 8, "act_type": "silu"}),
        ("ski-SKITno-noncausal-n8", {"use_decay": True, "use_multi_decay": True}),
        ("ski-Skitno1d-n11", {"dpb_embedding": 8, "dpb_layers": 3, "use_multi_decay": True}),
        ("ski-Skitno2d-4x4", {"tno_type": 4, "tno_H": 32, "tno_W": 32}),
    ],
)
def test_arguments_without_effect(load, name, ignored):
    family, config, state, (x,), y, _ = load(name)
    assert_close(from_reference(family, {**config, **ignored}, state)(x), y)
    with pytest.raises(ValueError, match="'rankk'"):
        from_reference(family, {**config, "rankk": 3}, state)


def test_one_free_coefficient():
    """A response that is constant but at frequency 0 has two kinds of taps: N = 8 points for four inputs."""
    dc, rest = 3.0, 1.0
    state = {"coeffs": torch.tensor([[rest]]).double(), "dc": torch.tensor([[dc]]).double()}
    operator = from_reference("fd.TnoFDNoRPE", {"h": 1, "dim": 1, "causal": True, "num_freqs": 1}, state)
    impulse = torch.tensor([1.0, 0.0, 0.0, 0.0]).double().view(1, 1, 4, 1)
    assert_close(operator(impulse).flatten(), torch.tensor([rest + (dc - rest) / 8, *[(dc - rest) / 4] * 3]).double())
