"""Every law over every registered mixer."""

import laws
import pytest
import torch
from laws import Subject

from subquad.mixers import MIXERS, build_mixer, register_mixer
from subquad.mixers.base import Mixer


def name(config):
    return "-".join([config["type"], *(f"{k}={v}" for k, v in config.items() if k != "type")])


def cases(subjects):
    return [
        pytest.param(*subject, id=f"{name(subject[0])}-{'causal' if subject[1] else 'both'}") for subject in subjects
    ]


def in_turn(subjects):
    """Every set of options in one direction, and every mixer in all of its directions: compiling takes seconds."""
    mixers = {}
    for config, causal in subjects:
        mixers.setdefault(config["type"], {}).setdefault(name(config), []).append((config, causal))
    for sets in mixers.values():
        for index, directions in enumerate(sets.values()):
            yield from directions if len(sets) == 1 else [directions[index % len(directions)]]


SEQUENCE, GRIDS = list(laws.variants()), list(laws.variants(grid=True))
every_causal_mixer = pytest.mark.parametrize("config", [config for config, causal in SEQUENCE if causal], ids=name)
every_mixer = pytest.mark.parametrize(("config", "causal"), cases(SEQUENCE))
every_grid_mixer = pytest.mark.parametrize(("config", "causal"), cases(GRIDS))


class Wrapped(torch.nn.Module):
    """A subject as a module: what `torch.export` takes."""

    def __init__(self, subject):
        super().__init__()
        self.mixer, self.shared, self.subject = subject.mixer, subject.shared_module, subject

    def forward(self, x):
        return self.subject(x)[0]


@every_causal_mixer
@pytest.mark.parametrize("length", [2, 9, 33])
def test_causality(config, length):
    laws.causality(Subject(config, causal=True), length)


@every_causal_mixer
def test_streaming(config):
    laws.streaming(Subject(config, causal=True), 12)


@every_mixer
def test_packing(config, causal):
    laws.packing(Subject(config, causal))


@every_mixer
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(config, causal, side):
    laws.padding(Subject(config, causal), side, 9)


@every_causal_mixer
def test_gradients_through_the_state(config):
    laws.gradients(Subject(config, causal=True), 11)


@every_mixer
def test_every_parameter_has_influence(config, causal):
    laws.influence(Subject(config, causal), 11)


@pytest.mark.parametrize(
    ("config", "causal"), cases(case for case in SEQUENCE if MIXERS[case[0]["type"]].auxiliary_losses)
)
def test_auxiliary_losses(config, causal):
    laws.auxiliary_losses(Subject(config, causal))


@every_mixer
@pytest.mark.parametrize("length", [1, 2, 17])
def test_batch_independence_and_determinism(config, causal, length):
    subject = Subject(config, causal)
    laws.batch_independence(subject, length)
    laws.determinism(subject, length)


@every_mixer
def test_half_precision(config, causal):
    laws.half_precision(config, causal, 40)


@pytest.mark.parametrize("config", [config for config, causal in [*SEQUENCE, *GRIDS] if not causal], ids=name)
def test_bidirectional_mixers_see_the_future(config):
    subject = Subject(config, causal=False)
    x = subject.inputs(1, 12)
    y, state = subject(x)
    assert state is None
    x[:, 1] += 1
    assert (subject(x)[0][:, 0] - y[:, 0]).abs().max() > 1e-6


@pytest.mark.parametrize(("config", "causal"), cases(in_turn(SEQUENCE)))
def test_compiles_in_one_graph(config, causal):
    torch.compiler.reset()
    subject = Subject(config, causal, torch.float32)
    compiled = torch.compile(lambda x: subject(x)[0], fullgraph=True, backend="aot_eager")
    for length in (12, 17):
        x = subject.inputs(2, length)
        # The length alone: with every size a symbol, tracing takes several times as long.
        torch._dynamo.maybe_mark_dynamic(x, 1)
        laws.assert_close(compiled(x), subject(x)[0])


@every_causal_mixer
def test_exports_with_a_dynamic_length(config):
    subject = Subject(config, True, torch.float32)

    length = torch.export.Dim("length", min=3, max=4096)
    program = torch.export.export(Wrapped(subject), (subject.inputs(2, 12),), dynamic_shapes={"x": {1: length}})
    x = subject.inputs(2, 29)
    laws.assert_close(program.module()(x), subject(x)[0])


@every_causal_mixer
def test_clear_errors(config):
    mixer = build_mixer(config, 16)
    x = torch.randn(2, 4, 16)
    with pytest.raises(ValueError, match=r"must be \(batch, length, 16\), got \(2, 4, 15\)"):
        mixer(x[..., :15])
    with pytest.raises(ValueError, match="length 0"):
        mixer(x[:, :0])
    with pytest.raises(ValueError, match=r"`mask` must be \(2, 4\)"):
        mixer(x, mask=torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="flatten the batch first"):
        mixer(x, cu_seqlens=torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="excludes"):
        mixer(x[:1], cu_seqlens=torch.tensor([0, 4]), mask=torch.ones(1, 4, dtype=torch.bool))
    _, state = mixer(x)
    if False in MIXERS[config["type"]].directions:
        with pytest.raises(ValueError, match="has no state"):
            build_mixer(config, 16, causal=False)(x, state)


@every_grid_mixer
def test_grids(config, causal):
    subject = Subject(config, causal)
    laws.batch_independence(subject, 12)
    laws.determinism(subject, 12)
    x = subject.inputs(2, 12)
    y, _ = subject(x, mask=torch.ones(2, 12, dtype=torch.bool))
    packed, _ = subject(x.flatten(0, 1).unsqueeze(0), cu_seqlens=torch.tensor([0, 12, 24]))
    laws.assert_close(packed, y.flatten(0, 1).unsqueeze(0))
    gradients = torch.autograd.grad((y * torch.randn_like(y)).sum(), subject.parameters())
    assert all(gradient.abs().max() > 0 for gradient in gradients), "a parameter has no influence"
    with pytest.raises(ValueError, match="grid of 3 × 4 positions, got 11"):
        subject(x[:, :11])
    with pytest.raises(ValueError, match="no padding"):
        subject(x, mask=torch.arange(12).expand(2, 12) < 11)
    with pytest.raises(ValueError, match="has no causal form"):
        build_mixer(config, 16, causal=True)


@every_grid_mixer
def test_grids_in_half_precision(config, causal):
    laws.half_precision(config, causal, 12)


@every_grid_mixer
def test_grids_compile_and_export(config, causal):
    torch.compiler.reset()
    subject = Subject(config, causal, torch.float32)
    x = subject.inputs(2, 12)
    compiled = torch.compile(lambda x: subject(x)[0], fullgraph=True, backend="aot_eager")
    laws.assert_close(compiled(x), subject(x)[0])
    exported = torch.export.export(Wrapped(subject), (x,)).module()
    laws.assert_close(exported(x), subject(x)[0])


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown mixer 'softmx'\. Did you mean 'softmax'\?"):
        build_mixer({"type": "softmx"}, 16)
    with pytest.raises(ValueError, match=r"option of mixer 'tno' 'expand_ration'\. Did you mean 'expand_ratio'"):
        build_mixer({"type": "tno", "expand_ration": 3}, 16)
    with pytest.raises(ValueError, match="causal"):
        build_mixer({"type": "tno", "causal": False}, 16)
    with pytest.raises(ValueError, match="must divide the 16 features, got 3"):
        build_mixer({"type": "softmax", "num_heads": 3}, 16)
    with pytest.raises(ValueError, match="even head size"):
        build_mixer({"type": "softmax", "num_heads": 16, "rotary": True}, 16)


def test_a_mixer_is_added_by_registering_it():
    @register_mixer("running_mean")
    class RunningMean(Mixer):
        state_type = "recurrent"

        def mix(self, x, state, mask):
            total, count = state or (x.new_zeros(x.shape[0], self.dim), x.new_zeros(x.shape[0], 1))
            weight = torch.ones_like(x[..., :1]) if mask is None else mask[:, -x.shape[1] :, None].to(x.dtype)
            sums = total.unsqueeze(1) + (x * weight).cumsum(1)
            counts = count.unsqueeze(1) + weight.cumsum(1)
            return sums / counts.clamp_min(1), (sums[:, -1], counts[:, -1])

    try:
        subject = Subject({"type": "running_mean"}, causal=True)
        laws.streaming(subject, 6)
        laws.causality(subject, 6)
        laws.packing(subject)
        with pytest.raises(ValueError, match="registered already"):
            register_mixer("running_mean")(RunningMean)
    finally:
        del MIXERS["running_mean"]
