"""Published models of the Long Range Arena: what the numbers of the original implementations do not cover."""

import math

import pytest
import torch
import torch.nn.functional as F
from support import assert_close, error_ratio
from torch import nn

from subquad.compat import from_reference, lra
from subquad.compat.reference import FAMILIES
from subquad.compat.tnn_grid import TwoMapEncoder

TEXT, IMAGE, RETRIEVAL = (f"tnn-lra_model-{case}" for case in ("text-eval", "image-eval", "retrieval-eval"))
DOUBLE = {"dtype": torch.float64}


def changed(config, **changes):
    """A configuration with other entries; "model.norm" is the entry "norm" of "model"."""
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    for path, value in changes.items():
        part, _, key = path.partition("__")
        if key:
            config[part][key] = value
        else:
            config[part] = value
    return config


class TestOperator:
    """Kernels against the formulas, written out."""

    def operator(self, **options):
        torch.manual_seed(0)
        config = {"h": 2, "n": 3, "dim": 2, "rpe_dim": 4, "use_decay": True, "gamma": 0.9, "use_pad": True, **options}
        module = FAMILIES["tnn.lra_tno"]({}, **config).module.double()
        module.tno.decay.data.uniform_(0.7, 0.95)
        for parameter in module.tno.rpe.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        return module

    def expected(self, module, x, inside, outside):
        """Σ_j t[i − j] x[j] where t[k] is `inside(u, |k|)` of the encoder's output within the window."""
        tno = module.tno
        flat = x.transpose(1, 2).flatten(2)
        y = torch.zeros_like(flat)
        for i in range(flat.shape[1]):
            for j in range(i + 1 if tno.causal else flat.shape[1]):
                lag = torch.tensor(i - j, **DOUBLE)
                t = inside(tno, lag) if abs(i - j) < 3 else torch.full_like(flat[0, 0], outside)
                y[:, i] += t * flat[:, j]
        return y.unflatten(-1, (2, 2)).transpose(1, 2)

    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize("par_type", [1, 2, 3])
    def test_window_before_decay_and_activation(self, causal, par_type):
        if par_type == 3 and not causal:
            with pytest.raises(ValueError, match="not defined for negative lags"):
                self.operator(par_type=3)
            return
        module = self.operator(causal=causal, par_type=par_type, act_type="1+elu")

        def inside(tno, lag):
            position = {1: lag, 2: lag / 2, 3: (lag / 2).exp()}[par_type]
            return 1 + F.elu(tno.rpe(position[None])[0] * tno.decay ** lag.abs())

        x = torch.randn(2, 2, 6, 2, **DOUBLE)
        assert_close(module(x), self.expected(module, x, inside, outside=1.0))

    @pytest.mark.parametrize("negative", [True, False])
    def test_exponential(self, negative):
        module = self.operator(use_exp=True, use_neg_exp=negative)

        def inside(tno, lag):
            u = tno.rpe(lag[None])[0]
            return torch.exp((-u.exp() if negative else u) + lag.abs() * tno.decay.log())

        x = torch.randn(2, 2, 6, 2, **DOUBLE)
        assert_close(module(x), self.expected(module, x, inside, outside=math.exp(-60)))

    def test_exponential_is_clamped(self):
        module = self.operator(use_exp=True)
        module.tno.rpe.output_proj.bias.data.fill_(100)
        x = torch.randn(1, 2, 2, 2, **DOUBLE)
        assert_close(module(x), math.exp(30) * x.sum(2, keepdim=True).expand_as(x))

    def test_without_a_window_nothing_is_cut(self):
        wide, none = self.operator(n=6), self.operator(use_pad=False)
        x = torch.randn(2, 2, 6, 2, **DOUBLE)
        assert_close(none(x), wide(x))
        assert error_ratio(self.operator()(x), wide(x)) > 1e-3

    @pytest.mark.parametrize("activation", ["relu", "silu"])
    @pytest.mark.parametrize("residual", [True, False])
    def test_encoder(self, activation, residual):
        """The shortcut adds what is activated, and gradients are those of the formula."""
        encoder = TwoMapEncoder(3, 4, activation, residual, bias=True).double()
        positions = torch.arange(-4.0, 5.0, **DOUBLE)
        act = {"relu": F.relu, "silu": F.silu}[activation]
        z = encoder.input_proj(positions.unsqueeze(-1))
        for layer in encoder.layers:
            z = layer(act(z)) + (act(z) if residual else 0)
        expected = encoder.output_proj(act(encoder.norms[-1](z)))
        weight = torch.randn_like(expected)
        leaves = list(encoder.parameters())
        gradients = torch.autograd.grad((expected * weight).sum(), leaves)
        y = encoder(positions)
        assert_close(y, expected)
        for ours, theirs in zip(torch.autograd.grad((y * weight).sum(), leaves), gradients, strict=True):
            assert_close(ours, theirs)

    def test_encoder_of_type_8_has_norms_and_layers(self):
        encoder = self.operator(rpe_type=8, layers=4).tno.rpe
        assert len(encoder.layers) == 4
        assert [type(norm).__name__ for norm in encoder.norms] == ["SimpleRMSNorm"] * 5


class TestUnits:
    def test_names_of_tno_do_not_hand_on_the_activation(self, load):
        family, config, state, (x,), y, _ = load("tnn-lra_tno_layer-base")
        assert_close(from_reference(family, {**config, "dpb_act": "silu"}, state)(x), y)
        family, config, state, (x,), y, _ = load("tnn-lra_gtu-base")
        assert error_ratio(from_reference(family, {**config, "rpe_act": "silu"}, state)(x), y) > 1e-3

    @pytest.mark.parametrize("name", ["tnn-lra_gtu-base", "tnn-Gtu2d-rect", "tnn-Tno2d-type2"])
    @pytest.mark.parametrize(("shift", "share"), [(1, 1.0), (2, 0.5)])
    def test_token_shift(self, load, name, shift, share):
        family, config, state, (x,), _, _ = load(name)
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
        expected = from_reference(family, config, state)(share * before + (1 - share) * x)
        assert_close(from_reference(family, {**config, "token_shift_type": shift}, state)(x), expected)

    def test_both_orders_of_the_operators_are_one(self, load):
        family, config, state, (x,), y, _ = load("tnn-Tno2d-type2")
        assert_close(from_reference(family, {**config, "tno_type": 3}, state)(x), y)

    def test_scaled_shortcut(self, load):
        family, config, state, (x,), y, _ = load("tnn-Tno2d-type2")
        state["d"] = torch.randn(8, **DOUBLE)
        module = from_reference(family, {**config, "resi_param": True}, state)
        assert_close(module(x), y + (state["d"] - 1) * x)

    def test_unused_parameters_may_be_there_or_not(self, load):
        family, config, state, (x,), y, _ = load("tnn-lra_gtu-base")
        assert_close(from_reference(family, {**config, "resi_param": True}, {**state, "d": torch.randn(8)})(x), y)
        without = {name: tensor for name, tensor in state.items() if "pre_norm" not in name}
        assert_close(from_reference(family, config, without)(x), y)

    @pytest.mark.parametrize("name", ["tnn-lra_gtu-base", "tnn-Gtu2d-square"])
    @pytest.mark.parametrize("norm", ["layernorm", "simplermsnorm"])
    def test_norm_inside(self, load, name, norm):
        family, config, state, (x,), _, _ = load(name)
        if norm == "layernorm":
            state |= {"norm.weight": torch.rand(16, **DOUBLE), "norm.bias": torch.randn(16, **DOUBLE)}
        plain = from_reference(family, config, {k: v for k, v in state.items() if not k.startswith("norm.")})
        gated = []
        plain.mixer.output_proj.register_forward_pre_hook(lambda _, inputs: gated.append(inputs[0]))
        plain(x)
        (h,) = gated
        if norm == "layernorm":
            h = F.layer_norm(h, (16,), state["norm.weight"], state["norm.bias"])
        else:
            h = h / (h.square().mean(-1, keepdim=True).sqrt() + 1e-8)
        module = from_reference(family, {**config, "use_norm": True, "norm_type": norm}, state)
        assert_close(module(x), F.linear(h, state["o.weight"], state["o.bias"]))

    @pytest.mark.parametrize(
        ("name", "changes", "message"),
        [
            ("tnn-lra_gtu-base", {"rpe_embeding": 6}, "unknown option"),
            ("tnn-lra_gtu-base", {"token_shift_type": 3}, "must be -1, 1 or 2, got 3"),
            ("tnn-lra_gtu-base", {"rpe_type": 2}, "must be 1, or 8"),
            ("tnn-lra_gtu-base", {"use_multi_decay": True}, "exclude each other"),
            ("tnn-lra_gtu-base", {"rpe_act": "gelu"}, "activation of this position encoder 'gelu'"),
            ("tnn-Tno2d-type4", {"tno_type": 5}, "must be 2, 3, 4 or 6, got 5"),
            ("tnn-Tno2d-type4", {"causal": True}, "has no causal form"),
        ],
    )
    def test_errors(self, load, name, changes, message):
        family, config, state, _, _, _ = load(name)
        with pytest.raises(ValueError, match=message):
            from_reference(family, {**config, **changes}, state)

    def test_a_sequence_that_is_no_picture(self, load):
        family, config, state, _, _, _ = load("tnn-Gtu2d-square")
        with pytest.raises(ValueError, match="a sequence of 7 is no picture"):
            from_reference(family, config, state)(torch.randn(1, 7, 8, **DOUBLE))


# Length, number of classes, layer, d, layers, ratios, decay, encoder, decoder and parameters of the published models.
# The published counts are with two norms of d numbers that each mixer has and does not use.
PUBLISHED = {
    "listops": (18, 10, "tno", 128, 4, 1, 1, 1.0, 32, "pool", 429_578),
    "text": (135, 2, "tno", 128, 4, 1, 2, 0.9, 32, "pool", 641_154),
    "retrieval": (98, 2, "tno", 64, 2, 1, 1.5, 0.6, 16, "retrieval", 89_602),
    "image": (None, 10, "tno2d", 128, 12, 2, 3, 0.7, 16, "pool", 3_103_754),
    "pathfinder": (None, 2, "tno2d", 64, 6, 3, 2.5, 1.0, 16, "last", 461_954),
}


@pytest.mark.parametrize("task", PUBLISHED)
def test_sizes_of_the_published_models(task):
    vocabulary, classes, layer, dim, layers, expand, ratio, gamma, width, mode, count = PUBLISHED[task]
    mixer = {
        "_name_": layer,
        "n_heads": 1,
        "tno_type": 4,
        "tno_expand_ratio": expand,
        "use_decay": True,
        "gamma": gamma,
        "dpb_embedding": width,
        "tno_max_l": 1024,
    }
    tokens = vocabulary is not None
    pooling = {"_name_": "sequence", "mode": mode, "use_lengths": tokens}
    pairs = {"_name_": "retrieval", "mode": "pool", "use_lengths": True, "nli": True, "activation": "gelu"}
    config = {
        "dataset": {"n_tokens": vocabulary, "d_input": 1, "d_output": classes, "l_output": 0},
        "encoder": ["embedding" if tokens else "linear", {"_name_": "position", "dropout": 0.1}],
        "model": {
            "d_model": dim,
            "n_layers": layers,
            "norm": "synbatch",
            "layer": [mixer, {"_name_": "glu", "act_fun": "swish", "glu_expand_ratio": ratio}],
        },
        "decoder": pairs if mode == "retrieval" else pooling,
    }
    module = FAMILIES["tnn.lra_model"]({}, **config).module
    assert sum(p.numel() for p in module.parameters()) + 2 * dim * layers == count
    windows = {unit.mixer.operator.window for unit in module.modules() if isinstance(unit, lra.SequenceMixer)}
    assert windows == {1024 if layer == "tno" else None}


# Pairs of blocks, ratio, heads of the local layers, and parameters of the published backbones.
TRANSNORMER = {"listops": (4, 4, 8, 794_368), "image": (12, 2, 4, 1_593_088), "pathfinder": (4, 1, 8, 399_616)}


@pytest.mark.parametrize("task", TRANSNORMER)
@pytest.mark.parametrize("softmax", [True, False])
def test_sizes_of_the_published_transnormers(task, softmax):
    """The published counts are with a norm in every local layer, which a softmax has no use for."""
    layers, expand, heads, count = TRANSNORMER[task]
    layer = [
        {"_name_": "localattn", "n_heads": heads, "norm_type": "synbatch", "use_softmax": softmax},
        {"_name_": "linearattn", "n_heads": 8, "norm_type": "synbatch"},
        {"_name_": "ff", "expand": expand},
    ]
    config = {"d_model": 128, "n_layers": layers, "norm": "synbatch", "layer": layer}
    module = FAMILIES["transnormer.lra"]({}, **config).module
    unused = layers // 2 * 2 * 128 if softmax else 0
    assert sum(p.numel() for p in module.parameters()) + unused == count


def test_half_of_the_pairs_rounded_down_are_local(load):
    family, config, state, _, _, _ = load("transnormer-lra-t2-synbatch-eval")
    module = from_reference(family, config, state)
    kinds = [type(block.layer.mixer).__name__ for block in module.layers if isinstance(block.layer, lra.SequenceMixer)]
    assert kinds == ["LeakyDiagAttention", "NormAttention", "NormAttention"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": [{"_name_": "localattn"}, {"_name_": "ff"}]}, "must be localattn, linearattn and a channel mixer"),
        ({"norms": "layer"}, "Did you mean 'norm'"),
    ],
)
def test_errors_of_transnormers(load, changes, message):
    family, config, state, _, _, _ = load("transnormer-lra-t2-layer")
    with pytest.raises(ValueError, match=message):
        from_reference(family, {**config, **changes}, state)


def test_squared_relu_of_linear_attention(load):
    family, config, state, (x,), _, _ = load("transnormer-lra_linear-1pelu-layer")
    config |= {"use_lrpe": False, "act_fun": "relu2"}
    q, k, v = (F.linear(x, state[f"{n}_proj.weight"], state[f"{n}_proj.bias"]) for n in "qkv")
    q, k, v = (part.unflatten(-1, (3, -1)).transpose(1, 2) for part in (q.relu() ** 2, k.relu() ** 2, v))
    o = (q @ (k.mT @ v)).transpose(1, 2).flatten(2)
    o = F.layer_norm(o, (12,), state["layer_norm.norm.weight"], state["layer_norm.norm.bias"])
    expected = F.linear(o, state["out_proj.weight"], state["out_proj.bias"])
    assert_close(from_reference(family, config, state)(x), expected)


def test_norms_inside_mixers_that_were_never_published(load):
    family, config, state, _, _, _ = load("transnormer-lra_local-t1-synbatch-eval")
    with pytest.raises(ValueError, match="unknown norm inside a mixer 'instance'"):
        from_reference(family, {**config, "norm_type": "instance"}, state)


class TestModel:
    def test_only_the_pooling_reads_the_lengths(self, load):
        """Padding is an ordinary input: what it holds changes the logits, but it is not pooled."""
        family, config, state, (x, lengths), y, _ = load(TEXT)
        assert (lengths < x.shape[1]).any()
        model = from_reference(family, config, state)
        padding = torch.arange(x.shape[1]) >= lengths.unsqueeze(-1)
        assert error_ratio(model(x.where(~padding, (x + 1) % 11), lengths), y) > 1e-6
        hidden = model.model(model.encoder(x)).where(~padding.unsqueeze(-1), 0.0)
        assert_close(model.decoder.output_transform(hidden.sum(1) / lengths.unsqueeze(-1)), y)

    def test_pooling(self):
        x = torch.randn(3, 5, 4, **DOUBLE)
        lengths = torch.tensor([5, 1, 3])
        expected = {
            "pool": [row[:n].mean(0) for row, n in zip(x, lengths, strict=True)],
            "sum": [row[:n].sum(0) for row, n in zip(x, lengths, strict=True)],
            "last": [row[n - 1] for row, n in zip(x, lengths, strict=True)],
            "first": [row[0] for row in x],
        }
        for mode, rows in expected.items():
            assert_close(lra.Pooling(mode, use_lengths=True)(x, lengths), torch.stack(rows), name=mode)
            whole = lra.Pooling(mode, use_lengths=True)(x, torch.full((3,), 5))
            assert_close(lra.Pooling(mode)(x, lengths), whole, name=f"{mode} without lengths")
        for wrong in (None, torch.tensor([5, 0, 1]), torch.tensor([6, 1, 1]), torch.tensor([5, 5])):
            with pytest.raises(ValueError, match=r"needs `lengths` \(3,\), each from 1 to 5"):
                lra.Pooling("pool", use_lengths=True)(x, wrong)

    def test_pairs_without_differences(self, load):
        family, config, state, inputs, _, _ = load(RETRIEVAL)
        decoder = {"_name_": "retrieval", "mode": "first", "nli": False, "activation": "relu", "d_model": 8}
        state = {name: tensor for name, tensor in state.items() if not name.startswith("decoder.")}
        shapes = {"0": (8, 12), "2": (4, 8), "4": (2, 4)}
        for index, shape in shapes.items():
            state[f"decoder.retrieval.classifier.{index}.weight"] = torch.randn(shape, **DOUBLE)
            state[f"decoder.retrieval.classifier.{index}.bias"] = torch.randn(shape[0], **DOUBLE)
        model = from_reference(family, {**config, "decoder": decoder}, state)
        tokens = inputs[0]
        hidden = model.model(model.encoder(tokens))[:, 0]
        z = torch.cat([hidden[: len(hidden) // 2], hidden[len(hidden) // 2 :]], dim=-1)
        for index in shapes:
            weight, bias = (state[f"decoder.retrieval.classifier.{index}.{kind}"] for kind in ("weight", "bias"))
            z = F.linear(z if index == "0" else z.relu(), weight, bias)
        assert_close(model(tokens), z)
        with pytest.raises(ValueError, match="retrieval needs pairs"):
            model(tokens[:3])

    def test_positions(self, load):
        """A table that is stored is the one that is added; otherwise sines and cosines alternate."""
        family, config, state, (x,), y, _ = load(IMAGE)
        model = from_reference(family, config, state)
        p, i = torch.tensor(1000.0, **DOUBLE), torch.arange(4.0, **DOUBLE)
        angles = p / 10000 ** (2 * i / 8)
        assert_close(model.encoder[1].pe[1000], torch.stack([angles.sin(), angles.cos()], dim=-1).flatten())
        assert model.encoder[1].pe.shape == (16384, 8)
        short = changed(config, encoder=["linear", {"_name_": "position", "max_len": 16}])
        table = model.encoder[1].pe[:16]
        assert_close(from_reference(family, short, {**state, "encoder.1.pe": table})(x), y)
        other = from_reference(family, short, {**state, "encoder.1.pe": table + 1})
        assert error_ratio(other(x), y) > 1e-6
        with pytest.raises(ValueError, match="16 positions: a sequence of 25 is too long"):
            other(torch.randn(1, 25, 1, **DOUBLE))

    @pytest.mark.parametrize("encoder", ["linear", ["linear"], ["linear", "id"]])
    def test_without_positions(self, load, encoder):
        family, config, state, (x,), y, _ = load(IMAGE)
        zero = from_reference(family, config, {**state, "encoder.1.pe": torch.zeros(16384, 8, **DOUBLE)})
        if encoder != ["linear", "id"]:
            state = {name.replace("encoder.0.", "encoder."): tensor for name, tensor in state.items()}
        model = from_reference(family, changed(config, encoder=encoder), state)
        assert_close(model(x), zero(x))
        assert error_ratio(model(x), y) > 1e-6

    @pytest.mark.parametrize("prenorm", [True, False])
    @pytest.mark.parametrize("norm", ["layer", "batch", "instance", "none"])
    def test_blocks(self, norm, prenorm):
        """Two blocks of linear maps against the formula; training, so that batch norm is that of the batch."""
        torch.manual_seed(0)
        glu = {"_name_": "glu", "act_fun": "relu2", "glu_expand_ratio": 1.5}
        mixer = nn.Linear(4, 4)
        config = {"d_model": 4, "n_layers": 1, "layer": [{}, glu], "norm": norm, "prenorm": prenorm}
        model = lra.Backbone([mixer], **config).double().train()
        channel = model.layers[1].layer
        assert channel.gate_proj.out_features == 6

        def norm_of(x):
            axes = {"layer": (-1,), "batch": (0, 1), "instance": (1,)}
            if norm == "none":
                return x
            mean, square = x.mean(axes[norm], keepdim=True), x.var(axes[norm], correction=0, keepdim=True)
            return (x - mean) / (square + 1e-5).sqrt()

        def glu_of(x):
            return channel.down_proj(F.relu(channel.gate_proj(x)).square() * channel.up_proj(x))

        x = expected = torch.randn(3, 5, 4, **DOUBLE)
        for f in (mixer, glu_of):
            expected = expected + f(norm_of(expected)) if prenorm else norm_of(expected + f(expected))
        assert_close(model(x), norm_of(expected) if prenorm else expected)

    def test_dropout_is_the_models_unless_a_layer_has_its_own(self):
        model = {"d_model": 4, "dropout": 0.3}
        ffn = lra.channel_mixer({"_name_": "ff", "expand": 2, "dropout": None}, model)
        assert [part.p for part in ffn.modules() if isinstance(part, nn.Dropout)] == [0.0, 0.3]
        glu = lra.channel_mixer({"_name_": "glu", "dropout": 0.1}, model)
        assert glu.dropout.p == 0.1

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model__norm": "rms"}, "unknown norm of a Long Range Arena model 'rms'"),
            ({"model__residual": "A"}, "must be 'R'"),
            ({"model__n_layer": 3}, "Did you mean 'n_layers'"),
            ({"model__layer": [{"_name_": "s4"}, {"_name_": "glu"}]}, "unknown layer of a TNN 's4'"),
            ({"encoder": ["linear"]}, "needs `d_input` in `dataset`"),
            ({"encoder": ["conv"]}, "unknown encoder"),
            ({"encoder": [{"_name_": "position", "drop": 0.1}]}, "Did you mean 'dropout'"),
            ({"encoder": [{"_name_": "embedding", "n_tokens": 3}]}, "has no options"),
            ({"decoder": {"_name_": "token"}}, "unknown head"),
            ({"decoder": {"_name_": "sequence", "mode": "mean"}}, "unknown pooling 'mean'"),
            ({"decoder": {"_name_": "sequence", "nli": True}}, "unknown option of head 'sequence'"),
            ({"decoder": {"_name_": "retrieval", "activation": "tanh"}}, "activation of a retrieval head"),
            ({"dataset__l_output": 5}, "one output for each sequence"),
            ({"dataset": {"n_tokens": 11}}, "must have `d_output`"),
            ({"decoder": {"mode": "pool"}}, "described by"),
            ({"model__n_layers": 0}, "`n_layers` must be positive, got 0"),
            ({"model__layer": [{"_name_": "tno"}, {"_name_": "glu"}]}, "layer 'tno' must have n_heads"),
        ],
    )
    def test_errors(self, load, changes, message):
        family, config, state, _, _, _ = load(TEXT)
        with pytest.raises(ValueError, match=message):
            from_reference(family, changed(config, **changes), state)

    def test_channel_mixers_that_were_never_published(self):
        model = {"d_model": 4}
        with pytest.raises(ValueError, match="unknown channel mixer"):
            lra.channel_mixer({"_name_": "gru"}, model)
        with pytest.raises(ValueError, match="must be whole"):
            lra.channel_mixer({"_name_": "ff", "expand": 2.5}, model)

    @pytest.mark.parametrize("name", ["hgrn-lra-2d-bi-batchnorm-train", "transnormer-lra-t1-batch-train"])
    def test_running_statistics(self, golden, load, name):
        family, config, state, (x,), _, _ = load(name)
        conversion = FAMILIES[family](dict(state), **config)
        module = from_reference(family, config, state).train()
        module(x)
        _, tensors = golden.load(golden.HERE / f"{name}.safetensors")
        expected = golden.part(tensors, "output.buffer.")
        actual = {conversion.reference_name(name): buffer for name, buffer in module.named_buffers()}
        for key, statistics in expected.items():
            assert_close(actual[key].double(), statistics.double(), torch.float64, name=key)


def test_simple_root_mean_square_norm(load):
    assert_close(lra.build_norm("simplerms", 4)(torch.tensor([3.0, 4.0, 0.0, 0.0])), torch.tensor([3, 4, 0, 0]) / 2.51)
    family, config, state, inputs, y, _ = load(TEXT)
    plain = {name: tensor for name, tensor in state.items() if ".norm.norm." not in name}
    model = from_reference(family, changed(config, model__norm="simplerms"), plain)
    assert isinstance(model.model.norm, lra.WideRMSNorm)
    assert model(*inputs).shape == y.shape


@pytest.mark.parametrize(
    ("name", "function"), [("swish", F.silu), ("relu2", lambda t: t.relu() ** 2), ("cos", torch.cos)]
)
def test_activations_of_kernels(load, name, function):
    family, config, state, _, _, _ = load("tnn-lra_tno-noncausal")
    kernel = from_reference(family, config, state).tno.kernel(5)
    assert_close(from_reference(family, {**config, "act_type": name}, state).tno.kernel(5), function(kernel))
