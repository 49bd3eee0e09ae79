"""Published image classifiers: what the numbers of the original implementations do not cover."""

import pytest
import torch
import torch.nn.functional as F
from support import assert_close
from transformers import AutoModelForImageClassification

from subquad import SubquadForImageClassification
from subquad.compat import from_reference, vit
from subquad.compat.reference import FAMILIES
from subquad.compat.transnormer_grid import WindowAttention
from subquad.mixers import GTU2D

NAMES = ("tnn-im_vit-tiny-prenorm", "tnn-im_vit-tiny-postnorm-pos", "tnn-im_vit-rect", "hgrn-im_vit-bi")


@pytest.mark.parametrize("name", NAMES)
def test_a_published_classifier_is_our_model(load, name, tmp_path):
    family, config, state, (images,), y, _ = load(name)
    model = from_reference(family, config, state)
    assert type(model) is SubquadForImageClassification
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=torch.float64)
    assert_close(again.eval()(pixel_values=images).logits, y)


# Width, depth, GLU width, encoder width, patch size and parameters, fixed decays included.
TNN = {
    "tiny": (192, 192, 48, 16, 6_422_056),
    "small": (384, 384, 48, 16, 23_401_192),
    "small, wide encoder": (384, 384, 64, 16, 23_887_720),
    "large, patches of 14": (512, 512, 48, 14, 40_526_696),
}


@pytest.mark.parametrize("preset", TNN)
@pytest.mark.parametrize("prenorm", [True, False])
def test_sizes_of_the_published_models(preset, prenorm):
    dim, glu, rpe, patch, count = TNN[preset]
    config = {
        "embed_dim": dim,
        "depth": 12,
        "glu_dim": glu,
        "rpe_embdding": rpe,
        "rpe_layers": 1,
        "patch_size": patch,
        "use_decay": True,
        "gamma": 0.9,
        "prenorm": prenorm,
    }
    with torch.device("meta"):
        model = FAMILIES["tnn.im_vit"]({}, **config).module
    assert sum(p.numel() for p in model.parameters()) == count
    assert all(p.requires_grad == (".decay" not in name) for name, p in model.named_parameters())
    grids = {module.grid for module in model.modules() if isinstance(module, GTU2D)}
    assert grids == {(224 // patch, 224 // patch)}


# Patches, options, width and parameters, frozen reflections included.
TRANSNORMER = {
    "tiny": ({}, 192, 5_701_288),
    "tiny, no LRPE": ({"use_lrpe": False}, 192, 5_700_712),
    "tiny, GLU": ({"use_glu": True, "glu_dim": 512}, 192, 5_704_360),
    "tiny, GLU, no positions": ({"use_glu": True, "glu_dim": 512, "use_pos": False}, 192, 5_666_536),
    "tiny, GLU, patches of 7": ({"use_glu": True, "glu_dim": 512, "patch_size": 7}, 192, 5_744_104),
    "tiny, GLU, overlap": ({"use_glu": True, "glu_dim": 512, "patch_type": "overlap"}, 192, 5_722_216),
    "tiny, GLU, heads of one feature": (
        {"use_glu": True, "glu_dim": 512, "use_pos": False, "num_heads_list": [6] * 6 + [192] * 6},
        192,
        5_666_254,
    ),
    "small, GLU": ({"use_glu": True, "glu_dim": 1024}, 384, 22_024_552),
    "small, GLU, conv": ({"use_glu": True, "glu_dim": 1024, "patch_type": "conv", "num_heads": 12}, 384, 22_603_048),
}


@pytest.mark.parametrize("preset", TRANSNORMER)
def test_sizes_of_the_published_transnormers(preset):
    options, dim, count = TRANSNORMER[preset]
    config = {"dim": dim, "depth": 12, "num_heads": 6, "mlp_dim": 4 * dim, "use_lrpe": True, **options}
    with torch.device("meta"):
        model = FAMILIES["transnormer.im_vit"]({}, **config).module
    assert sum(p.numel() for p in model.parameters()) == count
    windows = [isinstance(block.token_mixer, WindowAttention) for block in model.model.layers]
    assert windows == [True] * 6 + [False] * 6


def test_zeros_that_fill_a_window_take_part_in_the_softmax():
    """A grid of 2 × 2 in one window of 3 × 3: five more keys of score 0 and value 0."""
    torch.manual_seed(0)
    mixer = WindowAttention(4, window=3, num_heads=1, kernel="softmax", positions=None).double()
    mixer.grid = (2, 2)
    x = torch.randn(1, 4, 4, dtype=torch.float64)
    q, k, v = mixer.q_proj(x), mixer.k_proj(x), mixer.v_proj(x)
    weights = (q @ k.mT / 2).exp()
    expected = mixer.output_proj((weights / (weights.sum(-1, keepdim=True) + 5)) @ v)
    assert_close(mixer(x)[0], expected)


@pytest.mark.parametrize("softmax", [True, False])
def test_windows_are_squares_of_the_grid(softmax):
    """What is in one window changes nothing in another; grids need not be square."""
    options = {"kernel": "softmax"} if softmax else {"kernel": "relu"}
    mixer = WindowAttention(8, window=2, num_heads=2, **options).double()
    mixer.grid = (3, 4)
    x = torch.randn(1, 12, 8, dtype=torch.float64)
    y = mixer(x)[0].unflatten(1, (3, 4))
    x[:, 4 * 1 + 2] += 1
    changed = (mixer(x)[0].unflatten(1, (3, 4)) - y).abs().amax((0, -1)) > 1e-9
    expected = torch.zeros(3, 4, dtype=torch.bool)
    expected[:2, 2:] = True
    assert torch.equal(changed, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type_list": [1]}, "must be 2 times 1 or 2"),
        ({"num_heads_list": [2]}, "one number for each of the 2 layers"),
        ({"patch_type": "linear"}, "unknown patch embedding 'linear'"),
        ({"num_heads": 5}, "must divide the 12 features"),
        ({"glu_acts": "silu"}, "Did you mean 'glu_act'"),
    ],
)
def test_errors_of_transnormers(load, changes, message):
    family, config, state, _, _, _ = load("transnormer-im_vit-t2-glu")
    with pytest.raises(ValueError, match=message):
        from_reference(family, {**config, **changes}, state)


def test_every_other_norm_of_the_image_code_is_a_layer_norm(load):
    """Those of the blocks, inside the mixers and before the classes."""
    family, config, state, (images,), _, _ = load("transnormer-im_vit-t1-ffn")
    norms = [f"layers.{i}.{name}" for i in range(2) for name in ("token_norm", "feature_norm", "token_mixer.norm")]
    for name in [*norms, "head.0"]:
        state |= {f"{name}.weight": torch.rand(12).double(), f"{name}.bias": torch.rand(12).double()}
    model = from_reference(family, {**config, "norm_type": "rmsnorm"}, state)
    features = model.model(pixel_values=images).last_hidden_state.mean(1)
    head = [state[f"head.{name}"] for name in ("0.weight", "0.bias", "1.weight", "1.bias")]
    expected = F.linear(F.layer_norm(features, (12,), *head[:2]), *head[2:])
    assert_close(model(images).logits, expected)
    assert torch.equal(model.model.layers[0].token_mixer.norm.weight, state["layers.0.token_mixer.norm.weight"])


def test_a_published_transnormer_is_not_saved(load, tmp_path):
    family, config, state, _, _, _ = load("transnormer-im_vit-t2-glu")
    model = from_reference(family, config, state)
    assert isinstance(model, SubquadForImageClassification)
    with pytest.raises(ValueError, match="the sum of row and column as position"):
        model.save_pretrained(tmp_path)


def test_what_the_published_code_ignores_is_ignored(load):
    family, config, state, (images,), y, _ = load("tnn-im_vit-tiny-prenorm")
    ignored = {"drop_rate": 0.5, "drop_path_rate": 0.5, "in_chans": 7, "rpe_act": "silu"}
    assert_close(from_reference(family, {**config, **ignored}, state).train()(images).logits, y)


def test_order_within_a_patch(load):
    """A single bright number meets one column of the map: row, then column, then channel."""
    family, config, state, (images,), _, _ = load("tnn-im_vit-rect")
    model = from_reference(family, config, state)
    height, width, channels = 2, 3, 3
    for row, column, channel in [(0, 0, 0), (1, 0, 2), (0, 2, 1), (1, 2, 2)]:
        picture = torch.zeros_like(images)
        picture[:, channel, 3 * height + row, 2 * width + column] = 1
        embedded = model.model.embed_inputs(picture) - state["to_patch_embedding.1.bias"]
        expected = torch.zeros_like(embedded)
        index = (row * width + column) * channels + channel
        expected[:, 3 * 4 + 2] = state["to_patch_embedding.1.weight"][:, index]
        assert_close(embedded, expected)


def test_which_operator_acts_along_which_axis(load):
    """With the same map of every pixel, a turned picture is that of exchanged operators."""
    family, config, state, (images,), y, _ = load("tnn-im_vit-tiny-prenorm")
    turn = {}
    for name, tensor in state.items():
        other = {"toep1": "toep2", "toep2": "toep1"}
        first = next((part for part in other if part in name), None)
        turn[name.replace(first, other[first]) if first else name] = tensor
    patches = turn["to_patch_embedding.1.weight"].unflatten(1, (4, 4, 3))
    turn["to_patch_embedding.1.weight"] = patches.transpose(1, 2).flatten(1)
    assert_close(from_reference(family, config, turn)(images.mT).logits, y)


@pytest.mark.parametrize("norm_type", ["simplermsnorm", "rmsnorm"])
def test_a_unit_with_a_norm_inside(load, norm_type):
    """The image code has one norm without parameters; every other name is a LayerNorm."""
    family, config, state, (x,), _, kwargs = load("tnn-im_gtu-square")
    config = {**config, "use_norm": True, "norm_type": norm_type}
    if norm_type == "rmsnorm":
        names = {name.rsplit(".", 1)[0] for name in state if ".rpe.layers." in name or ".rpe.out." in name}
        norms = {name[:-1] + "0": 6 for name in names} | {"norm": 18}
        for name, width in norms.items():
            state |= {f"{name}.weight": torch.ones(width).double(), f"{name}.bias": torch.zeros(width).double()}
    unit = from_reference(family, config, state)
    normed = []
    unit.unit.output_proj.register_forward_pre_hook(lambda _, inputs: normed.append(inputs[0]))
    unit(x, **kwargs)
    is_layer_norm = normed[0].mean(-1).abs().max() < 1e-9
    assert is_layer_norm == (norm_type == "rmsnorm")
    if not is_layer_norm:
        assert_close(normed[0].square().mean(-1), torch.ones_like(normed[0][..., 0]), torch.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dims": 8}, "Did you mean 'embed_dim'"),
        ({"patch_size": 5}, "cannot be cut into patches of 5 × 5"),
        ({"use_multi_decay": True}, "exclude each other"),
    ],
)
def test_errors(load, changes, message):
    family, config, state, _, _, _ = load("tnn-im_vit-tiny-prenorm")
    with pytest.raises(ValueError, match=message):
        from_reference(family, {**config, **changes}, state)


def test_unknown_patches():
    with pytest.raises(ValueError, match=r"unknown patch embedding 'linear'. .*Valid: conv, mlp, overlap"):
        vit.patches("linear", 16)
    assert vit.grid(vit.patches("overlap", 16), 224) == (17, 17)
    assert vit.grid(vit.patches("conv", 16), 224) == (14, 14)
    assert vit.grid(vit.patches("mlp", [2, 3]), [8, 12]) == (4, 4)
