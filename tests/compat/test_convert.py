"""Published checkpoints become run folders: recognised from names and shapes, and taken by every other command."""

import argparse
import contextlib
import csv
import hashlib
import json
import math
import re

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support import assert_close, shared
from transformers import AutoModelForImageClassification, AutoModelForMaskedLM
from typer.testing import CliRunner

from subquad import cli
from subquad.compat import from_reference
from subquad.compat.convert import convert
from subquad.compat.families import ENTRIES
from subquad.compat.recognize import recognize
from subquad.compat.reference import FAMILIES
from subquad.data import DataError, build_tokenizer
from subquad.evaluation import Run, evaluate_run

NOT_STORED = ("vocab_size", "padding_idx")


def hgrn(vocabulary=80, dim=8, layers=2):
    """Weights of a small published HGRN language model, and the arguments that go with it."""
    torch.manual_seed(0)
    shapes = {"decoder.embed_tokens.weight": (vocabulary, dim), "decoder.lower_bounds": (layers, dim)}
    for i in range(layers):
        unit, glu = f"decoder.layers.{i}.self_attn.hgru", f"decoder.layers.{i}.glu"
        maps = {
            f"{unit}.input_proj": (2 * dim, dim),
            f"{unit}.lambda_proj": (dim, dim),
            f"{unit}.gate": (2 * dim, dim),
            f"{unit}.out_proj": (dim, 2 * dim),
            f"{glu}.l1": (2 * dim, dim),
            f"{glu}.l2": (2 * dim, dim),
            f"{glu}.l3": (dim, 2 * dim),
        }
        for name, shape in maps.items():
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        norms = {f"{unit}.norm": 2 * dim}
        norms |= {f"decoder.layers.{i}.{norm}": dim for norm in ("self_attn_layer_norm", "final_layer_norm")}
        for name, size in norms.items():
            shapes |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
        shapes[f"{unit}.theta"] = (1, 1, dim)
    shapes |= {"decoder.layer_norm.weight": (dim,), "decoder.layer_norm.bias": (dim,)}
    weights = {name: torch.randn(shape) / math.sqrt(dim) for name, shape in shapes.items()}
    weights["decoder.output_projection.weight"] = weights["decoder.embed_tokens.weight"]
    arguments = {
        "arch": "hgrn_lm_base",
        "decoder_embed_dim": dim,
        "decoder_layers": layers,
        "multiple": 2,
        "share_decoder_input_output_embed": True,
        "decoder_normalize_before": True,
        "tokens_per_sample": 16,
    }
    return weights, arguments


def save_fairseq(path, weights, arguments, style="evo"):
    """A checkpoint as a version of fairseq writes it."""
    namespace = argparse.Namespace(**arguments)
    said = {
        "evo": {"args": None, "cfg": {"model": namespace, "task": {"data": "data-bin"}}},
        "old": {"args": namespace},
        "plain": {"args": None, "cfg": {"model": dict(arguments)}},
        "nothing": {},
    }
    history = [{"num_updates": 50000, "lr_scheduler_state": {"best": 3.25}}]
    content = {**said[style], "model": weights, "optimizer_history": history, "extra_state": {"val_loss": 3.25}}
    torch.save(content, path)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    weights, arguments = hgrn()
    return save_fairseq(tmp_path / "checkpoint_best.pt", weights, arguments)


@pytest.fixture
def call():
    runner = CliRunner()
    return lambda *arguments: runner.invoke(cli.app, [str(argument) for argument in arguments])


def holds_the_same(model, expected):
    model = getattr(model, "reference", model)
    actual, expected = model.state_dict(), expected.state_dict()
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


LANGUAGE_MODELS = [
    "tnn-fairseq_lm-v2-pre",
    "tnn-fairseq_lm-v2-post",
    "tnn-fairseq_lm-v2-n1",
    "tnn-fairseq_lm-v2-usenorm-untied",
    "hgrn-fairseq_lm-base-tied",
    "hgrn-fairseq_lm-untied-silu",
    "hgrn-fairseq_lm-project",
    "transformer-fairseq_lm-base-tied",
    "transformer-fairseq_lm-project",
    "transnormer-fairseq_lm-t1",
    "transnormer-fairseq_lm-t2",
    "transnormer-fairseq_lm-t2-untied-w8",
    "primal-fairseq_lm-base-tied",
    "primal-fairseq_lm-pre-tied",
    "fd-fairseq_lm-tno_fd-tied",
]


TOLD_BY_TENSORS = {
    *(
        "vocab_size",
        "decoder_layers",
        "decoder_embed_dim",
        "decoder_input_dim",
        "decoder_output_dim",
        "multiple",
        "bias",
    ),
    *("share_decoder_input_output_embed", "layernorm_embedding", "expand_ratio", "use_decay", "rpe_embedding"),
    *("rpe_layers", "attn_type", "norm_type", "local_norm_type", "final_layernorm", "rank", "bias", "use_glu"),
    *("decoder_use_urpe", "decoder_core_matrix", "decoder_p_matrix", "decoder_theta_learned"),
}


class TestFairseq:
    @pytest.mark.parametrize("style", ["evo", "old", "plain"])
    @pytest.mark.parametrize("name", LANGUAGE_MODELS)
    def test_the_run_folder_holds_the_model(self, load, tmp_path, name, style):
        family, config, state, (tokens, *_), *_ = load(name)
        stored = {key: value for key, value in config.items() if key not in NOT_STORED}
        expected = from_reference(family, config, state)
        path = save_fairseq(tmp_path / "checkpoint_best.pt", state, stored, style)
        made = convert(path, tmp_path / "run")
        assert made.family == family
        assert made.vocabulary == config["vocab_size"]
        model = Run(made.folder).load_model("cpu")
        holds_the_same(model, expected)
        # Fairseq's own table of positions is float32 in a model of any precision, ours is not.
        dtype = torch.float32 if family in ("transformer.fairseq_lm", "primal.fairseq_lm") else torch.float64
        assert_close(model(tokens).logits, expected(tokens).logits, dtype)

    @pytest.mark.parametrize("name", LANGUAGE_MODELS)
    def test_tensors_tell_sizes_and_parts(self, load, name):
        family, config, state, (tokens, *_), *_ = load(name)
        published = next(entry.published for entry in ENTRIES if entry.family == family)
        given = published | {key: value for key, value in config.items() if key not in TOLD_BY_TENSORS}
        found = recognize(state, {}, given, family)
        assert found.family == family
        for key in TOLD_BY_TENSORS & set(config) & set(found.config):
            assert found.config[key] == config[key], key
        expected = from_reference(family, config, state)
        assert_close(from_reference(family, found.config, state)(tokens).logits, expected(tokens).logits)

    def test_what_tensors_do_not_tell_is_asked_for(self, call, load, tmp_path):
        family, config, state, *_ = load("tnn-fairseq_lm-v2-pre")
        path = save_fairseq(tmp_path / "checkpoint_best.pt", state, {}, "nothing")
        result = call("convert", path, "--output", tmp_path / "run")
        assert result.exit_code == 2
        assert "its weights do not tell model, decoder_attention_heads, act_fun" in result.stderr
        options = result.stderr.split("published values: ")[1].split()
        assert options[:4] == ["--set", "model=tnn_v2_lm", "--set", "decoder_attention_heads=1"]
        result = call("convert", path, "--output", tmp_path / "run", *options)
        assert result.exit_code == 0, result.output
        holds_the_same(Run(tmp_path / "run").load_model("cpu"), from_reference(family, config, state))

    def test_what_is_written(self, checkpoint, tmp_path):
        made = convert(checkpoint, tmp_path / "deep" / "run")
        assert (made.family, made.preset, made.vocabulary, made.unit) == ("hgrn.fairseq_lm", "hgrn_lm_base", 80, None)
        folder = tmp_path / "deep" / "run"
        assert {path.name for path in folder.iterdir()} == {
            *("config.json", "generation_config.json", "model.safetensors", "recipe.yaml", "run.json"),
        }
        with pytest.raises(DataError, match="run: is a run folder already"):
            convert(folder, tmp_path / "again")
        info = json.loads((folder / "run.json").read_text())
        source = info["source"]
        assert info["status"] == "converted"
        assert source["name"] == "checkpoint_best.pt"
        assert source["sha256"] == {"checkpoint_best.pt": hashlib.sha256(checkpoint.read_bytes()).hexdigest()}
        assert (source["family"], source["preset"]) == ("hgrn.fairseq_lm", "hgrn_lm_base")
        assert (source["updates"], source["valid_loss"]) == (50000, 3.25)
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
        assert recipe["task"] == "causal-lm"
        assert recipe["data"] == {"block_size": 16}
        assert recipe["model"]["hidden_size"] == 8
        assert recipe["model"]["mixers"][0]["type"] == "hgru"
        assert not list((tmp_path / "deep").glob(".*"))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_the_precision_stays(self, tmp_path, dtype):
        weights, arguments = hgrn()
        weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
        made = convert(save_fairseq(tmp_path / "x.pt", weights, arguments), tmp_path / "run")
        assert Run(made.folder).load_model("cpu").dtype == dtype

    def test_wrapped_in_another_module(self, tmp_path):
        weights, arguments = hgrn()
        wrapped = {f"module.{name}": tensor for name, tensor in weights.items()}
        made = convert(save_fairseq(tmp_path / "x.pt", wrapped, arguments), tmp_path / "run")
        expected = from_reference("hgrn.fairseq_lm", {**arguments, "vocab_size": 80}, weights)
        holds_the_same(Run(made.folder).load_model("cpu"), expected)

    def test_parts_that_no_configuration_describes(self, load, tmp_path):
        family, config, state, *_ = load("tnn-fairseq_lm-v1-decay")
        stored = {key: value for key, value in config.items() if key not in NOT_STORED}
        convert(save_fairseq(tmp_path / "checkpoint_best.pt", state, stored), tmp_path / "run")
        run = Run(tmp_path / "run")
        assert run.config["model_type"] == "subquad-reference"
        assert run.recipe["model"]["family"] == family
        assert run.recipe["model"]["options"] == run.config["options"]
        assert run.config["options"].items() >= stored.items()

    def test_checkpoints_without_a_final_norm(self, load, tmp_path):
        """Those of the first two versions of fairseq have its weights, and their model does not use them."""
        _, config, state, (tokens, *_), *_ = load("tnn-fairseq_lm-v1-decay")
        state["decoder.version"] = torch.tensor([2])
        expected = from_reference("tnn.fairseq_lm", config, dict(state))
        convert(save_fairseq(tmp_path / "checkpoint_best.pt", state, config), tmp_path / "run")
        model = Run(tmp_path / "run").load_model("cpu")
        assert model.reference.model.final_norm is None or not list(model.reference.model.final_norm.parameters())
        assert_close(model(tokens).logits, expected(tokens).logits)

    @pytest.mark.parametrize(
        ("arch", "model"),
        [("tnn_v2_decay_99_pre", "tnn_v2_lm"), ("tnn_decay_99", "tnn_lm"), ("tnn_no_decay", "tnn_lm")],
    )
    def test_the_version_follows_from_the_preset(self, load, arch, model):
        _, config, state, *_ = load("tnn-fairseq_lm-v2-pre")
        stored = {key: value for key, value in config.items() if key not in (*NOT_STORED, "model")}
        assert recognize(state, {**stored, "arch": arch}).config["model"] == model

    def test_names_of_old_versions(self, load, tmp_path):
        family, config, state, *_ = load("transformer-fairseq_lm-base-tied")
        config["share_decoder_input_output_embed"] = False
        expected = from_reference(family, config, state)
        old = {"decoder.embed_out": state.pop("decoder.output_projection.weight")}
        for name, tensor in state.items():
            if match := re.fullmatch(r"(.*self_attn\.)q_proj\.(weight|bias)", name):
                parts = [state[f"{match[1]}{kind}_proj.{match[2]}"] for kind in "qkv"]
                old[f"{match[1]}in_proj_{match[2]}"] = torch.cat(parts)
            elif not re.search(r"\.[kv]_proj\.", name):
                name = name.replace(".self_attn_layer_norm.", ".layer_norms.0.")
                old[name.replace(".final_layer_norm.", ".layer_norms.2.")] = tensor
        stored = {key: value for key, value in config.items() if key not in NOT_STORED}
        made = convert(save_fairseq(tmp_path / "x.pt", old, stored, "old"), tmp_path / "run")
        holds_the_same(Run(made.folder).load_model("cpu"), expected)


class TestOtherFormats:
    def test_a_folder_of_flash_linear_attention(self, load, tmp_path):
        family, config, state, (tokens, *_), *_ = load("hgrn-fla-base")
        folder = tmp_path / "fla"
        folder.mkdir()
        save_file(state, folder / "model.safetensors")
        other = {"model_type": "hgrn", "architectures": ["HGRNForCausalLM"], "fuse_norm": True, "attn_mode": "chunk"}
        (folder / "config.json").write_text(json.dumps({**config, **other}))
        made = convert(folder, tmp_path / "run")
        expected = from_reference(family, config, state)
        model = Run(made.folder).load_model("cpu")
        holds_the_same(model, expected)
        assert_close(model(tokens).logits, expected(tokens).logits)
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
        with pytest.raises(DataError, match="num_hidden_layers is 5, by the weights 3"):
            convert(folder, tmp_path / "other")

    @pytest.mark.parametrize("name", ["tnn-Gtu-causal", "tnn-TnnLayer-prenorm", "hgrn-Hgru1d-causal", "tnn-Tno-causal"])
    def test_a_layer_is_no_model(self, load, tmp_path, name):
        family, _, state, *_ = load(name)
        torch.save(state, tmp_path / "layer.pt")
        with pytest.raises(DataError, match=f"recognised as {family}, a part of a model: take the module"):
            convert(tmp_path / "layer.pt", tmp_path / "run")

    @pytest.mark.parametrize(
        "name",
        [
            *("tnn-lra_model-text-eval", "tnn-lra_model-image-eval", "tnn-lra_model-retrieval-eval"),
            *("transnormer-lra_classifier-text-t1", "transnormer-lra_classifier-pixels-t2"),
        ],
    )
    def test_lightning(self, load, tmp_path, name):
        family, config, state, *_ = load(name)
        program = {**config, "trainer": {"gpus": 2}, "optimizer": {"lr": 0.1}}
        found = recognize(state, program)
        assert (found.family, found.task) == (family, "sequence-classification")
        assert found.config == config
        torch.save({"state_dict": state, "hyper_parameters": program}, tmp_path / "last.ckpt")
        with pytest.raises(DataError, match=r"contradicts the weights of this .*model.n_layers is 7, by the weights 2"):
            convert(tmp_path / "last.ckpt", tmp_path / "run", overrides=["model.n_layers=7"])
        with pytest.raises(DataError, match=r"do not tell encoder, decoder, model\.layer"):
            recognize(state, {})

    @pytest.mark.parametrize(
        "name",
        [
            *("tnn-im_vit-tiny-prenorm", "tnn-im_vit-tiny-postnorm-pos", "tnn-im_vit-rect"),
            *("hgrn-im_vit-bi", "hgrn-im_vit-shared-postnorm"),
            *("transnormer-im_vit-t1-ffn", "transnormer-im_vit-t2-glu", "transnormer-im_vit-t1-glu-conv"),
        ],
    )
    def test_images(self, load, tmp_path, name):
        family, config, state, (images,), *_ = load(name)
        found = recognize(state, {}, config)
        assert (found.family, found.task) == (family, "image-classification")
        assert {key: found.config[key] for key in config} == config
        with pytest.raises(DataError, match=r"depth is 7, by the weights \d"):
            recognize(state, {}, {**config, "depth": 7})
        expected = from_reference(family, config, state)
        torch.save({"model": state, "epoch": 300}, tmp_path / "best.pth")
        (tmp_path / "options.json").write_text(json.dumps(config))
        convert(tmp_path / "best.pth", tmp_path / "run", config=tmp_path / "options.json")
        model = AutoModelForImageClassification.from_pretrained(tmp_path / "run", dtype=torch.float64)
        holds_the_same(model, expected)
        assert_close(model(images).logits, expected(images).logits)

    @pytest.mark.parametrize(
        "name", ["primal-lra_former-base", "primal-lra_former-tied-softmax", "primal-lra_trans-pad"]
    )
    def test_the_byte_pipeline(self, load, name):
        family, config, state, *_ = load(name)
        told = {"vocab_size", "num_classes", "low_rank", "num_layers", "transformer_hidden_dim", "tied_weights"}
        found = recognize(state, {}, {key: value for key, value in config.items() if key not in told})
        assert found.family == family
        assert all(found.config[key] == config[key] for key in told & set(found.config))

    def test_an_image_program_stores_the_name_of_its_preset(self, load):
        _, config, state, *_ = load("tnn-im_vit-tiny-prenorm")
        program = {"model": "tno_vit_e3g1_small_rpe_l1_90_prenorm", "input_size": 16, "nb_classes": 5, "lr": 5e-4}
        found = recognize(state, program).config
        assert {key: found[key] for key in config if key in found} == {
            key: config[key] for key in config if key in found
        }
        assert found["prenorm"] is True


class TestVocabulary:
    @pytest.fixture
    def dictionary(self):
        return shared("golden", "fairseq-data-bin", "word", "data-bin", "dict.txt")

    def test_from_a_checkpoint_to_text(self, call, checkpoint, dictionary, tmp_path):
        run = tmp_path / "run"
        result = call("convert", checkpoint, "--output", run, "--dictionary", dictionary)
        assert result.exit_code == 0, result.output
        lines = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
        assert ["family", "hgrn.fairseq_lm"] in lines
        assert ["a", "token is  word"] in lines
        assert result.stdout.splitlines()[-1] == str(run)
        assert (run / "dict.txt").read_bytes() == dictionary.read_bytes()

        result = call("evaluate", run, "--data", dictionary.parent, "--json", tmp_path / "ids.json")
        assert result.exit_code == 0, result.output
        text = dictionary.parent.parent / "text"
        result = call("evaluate", run, "--data", text, "--json", tmp_path / "words.json")
        assert result.exit_code == 0, result.output
        ids, words = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("ids", "words"))
        assert ids["loss"] == words["loss"]
        assert ids["tokens"] == words["tokens"] == 14
        assert words["word_perplexity"] is not None

        options = ("--prompt", "The lamp", "--max-new-tokens", "8", "--temperature", "0")
        result = call("generate", run, *options)
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith("The lamp")
        result = call("extrapolate", run, "--lengths", "4,8", "--data", text)
        assert result.exit_code == 0, result.output
        result = call("compare", run, "--output", tmp_path / "page", "--no-measure")
        assert result.exit_code == 0, result.output
        assert "checkpoint_best.pt" in (tmp_path / "page" / "comparison.html").read_text()
        with (tmp_path / "page" / "comparison.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        assert float(row["perplexity"]) == words["perplexity"]
        assert int(row["parameters"]) == Run(run).load_model("cpu").num_parameters()

    def test_figures_are_those_of_the_usual_evaluation(self, checkpoint, dictionary, tmp_path):
        run, data = convert(checkpoint, tmp_path / "run", dictionary=dictionary).folder, dictionary.parent
        assert Run(run).training_length == 16
        for unusual in ({"length": 4}, {"split": "valid"}, {"context_window": 2}):
            evaluate_run(run, data, progress=False, **unusual)
            assert not (run / "metrics.json").exists(), unusual
        usual = evaluate_run(run, data, length=16, progress=False)
        metrics = Run(run).metrics
        assert (metrics["perplexity"], metrics["split"]) == (usual.perplexity, "test")
        assert metrics["data"]["fingerprint"] == Run(run).open_corpus(data, progress=False).fingerprint
        assert Run(run).data_fingerprint is None  # what it was trained on is not known

    def test_the_loss_is_that_of_the_published_model(self, checkpoint, dictionary, tmp_path):
        convert(checkpoint, tmp_path / "run", dictionary=dictionary)
        weights, arguments = hgrn()
        model = from_reference("hgrn.fairseq_lm", {**arguments, "vocab_size": 80}, weights)
        tokens = torch.tensor([10, 15, 68, 49, 8, 2, 2, 76, 3, 77, 7, 3, 8, 2])
        inputs = torch.cat([torch.tensor([2]), tokens[:-1]])
        expected = torch.nn.functional.cross_entropy(model(inputs[None]).logits[0].double(), tokens).item()
        result = evaluate_run(tmp_path / "run", str(dictionary.parent), length=16, progress=False)
        assert result.loss == pytest.approx(expected, rel=1e-6)

    def test_without_a_dictionary_a_data_bin_folder_brings_its_own(self, call, checkpoint, dictionary, tmp_path):
        convert(checkpoint, tmp_path / "bare")
        convert(checkpoint, tmp_path / "run", dictionary=dictionary)
        bare = evaluate_run(tmp_path / "bare", dictionary.parent, progress=False)
        assert bare.loss == evaluate_run(tmp_path / "run", dictionary.parent, progress=False).loss
        assert bare.vocabulary == "symbol of data-bin/dict.txt"
        result = call("evaluate", tmp_path / "bare", "--data", dictionary.parent.parent / "text")
        assert result.exit_code == 2
        assert "no tokenizer in it" in result.stderr
        limited = dictionary.parent.parent.parent / "word-limited" / "data-bin"
        with pytest.raises(DataError, match=r"its dict.txt has \d+ symbols, the model of .* 80"):
            evaluate_run(tmp_path / "bare", limited, progress=False)

    def test_the_dictionary_must_have_the_rows_of_the_embedding(self, checkpoint, dictionary, tmp_path):
        limited = dictionary.parent.parent.parent / "word-limited" / "data-bin" / "dict.txt"
        with pytest.raises(DataError, match=r"dict.txt: \d+ symbols, the model has 80 rows"):
            convert(checkpoint, tmp_path / "run", dictionary=limited)
        assert not (tmp_path / "run").exists()

    @pytest.fixture
    def gpt2(self, tmp_path):
        """A byte-level BPE with two merges, and a dictionary that puts its ids in another order."""
        folder = tmp_path / "gpt2"
        folder.mkdir()
        (folder / "vocab.bpe").write_text("#version: 0.2\nt h\nth e\n")
        order = [(i * 101) % 259 for i in range(259)]
        dictionary = tmp_path / "dict.txt"
        dictionary.write_text("".join(f"{i} 1\n" for i in order) + "madeupword0000 0\n")
        return folder, dictionary

    def test_gpt2_ids_are_lines_of_the_dictionary(self, call, gpt2, tmp_path):
        folder, dictionary = gpt2
        weights, arguments = hgrn(vocabulary=264)
        path = save_fairseq(tmp_path / "checkpoint_best.pt", weights, arguments)
        run = tmp_path / "run"
        result = call("convert", path, "--output", run, "--dictionary", dictionary)
        assert result.exit_code == 2
        assert "its symbols are numbers, as of GPT-2's BPE" in result.stderr
        options = ("--dictionary", dictionary, "--tokenizer", f"gpt2-bpe:{folder}")
        assert call("convert", path, "--output", run, *options).exit_code == 0
        tokenizer = Run(run).load_tokenizer()
        # GPT-2 counts bytes, printable ones first, then merges: "the" is 257, "!" is 0.
        lines = [line.split()[0] for line in dictionary.read_text().splitlines()]
        assert tokenizer.encode("the!") == [4 + lines.index("257"), 4 + lines.index("0")]
        assert tokenizer.decode(tokenizer.encode("the lamp")) == "the lamp"
        result = call("generate", run, "--prompt", "the", "--max-new-tokens", "5", "--seed", "1")
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith("the")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"tokenizer": "word"}, "needs the dict.txt that was used in training"),
            ({"tokenizer": "gpt2-bpe:nowhere"}, "no such folder"),
            ({"dictionary": "nowhere.txt"}, "cannot be read"),
            ({"dictionary": "dict", "tokenizer": "bytes"}, "--dictionary belongs to the tokenizers word and gpt2-bpe"),
            ({"tokenizer": "bytes"}, "260 symbols, the model has 80 rows"),
        ],
    )
    def test_vocabularies_that_cannot_be(self, checkpoint, dictionary, tmp_path, options, message):
        if options.get("dictionary") == "dict":
            options = options | {"dictionary": dictionary}
        with pytest.raises(DataError, match=message):
            convert(checkpoint, tmp_path / "run", **options)

    def test_any_tokenizer_of_a_large_enough_embedding(self, tmp_path):
        weights, arguments = hgrn(vocabulary=264)
        path = save_fairseq(tmp_path / "x.pt", weights, arguments)
        assert convert(path, tmp_path / "run", tokenizer="bytes").unit == "byte"
        assert Run(tmp_path / "run").load_tokenizer().vocabulary == build_tokenizer("bytes").vocabulary


class TestWhatIsRefused:
    def test_an_output_that_holds_something(self, call, checkpoint, tmp_path):
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "thesis.tex").touch()
        (tmp_path / "empty").mkdir()
        for name in ("full", "checkpoint_best.pt"):
            result = call("convert", checkpoint, "--output", tmp_path / name)
            assert result.exit_code == 2
            assert "exists, and is not an empty folder" in result.stderr
        assert call("convert", checkpoint, "--output", tmp_path / "empty").exit_code == 0

    def test_all_weights_that_do_not_fit_are_listed(self, tmp_path):
        weights, arguments = hgrn()
        del weights["decoder.lower_bounds"]
        weights["decoder.layers.1.glu.l3.bias"] = torch.full((8,), math.nan)
        weights["decoder.layers.1.glu.l1.weight"] = torch.ones(3, 3)
        weights["decoder.layers.1.surprise"] = torch.ones(1)
        with pytest.raises(ValueError, match="do not fit") as error:
            convert(save_fairseq(tmp_path / "x.pt", weights, arguments), tmp_path / "run")
        for part in (
            "Missing: decoder.lower_bounds (2, 8)",
            "unexpected: decoder.layers.1.surprise",
            "of another shape: decoder.layers.1.glu.l1.weight (3, 3), expected (16, 8)",
            "not finite: decoder.layers.1.glu.l3.bias",
        ):
            assert part in str(error.value)
        assert not (tmp_path / "run").exists()

    def test_arguments_that_contradict_the_shapes(self, tmp_path):
        weights, arguments = hgrn()
        wrong = {**arguments, "decoder_layers": 6, "multiple": 3, "vocab_size": 100}
        with pytest.raises(
            DataError,
            match="decoder_layers is 6, by the weights 2; vocab_size is 100, by the weights 80; "
            r"multiple is 3, by the weights 2\.0",
        ):
            convert(save_fairseq(tmp_path / "x.pt", weights, wrong), tmp_path / "run")

    def test_unknown_names(self, call, checkpoint, tmp_path):
        result = call("convert", checkpoint, "--output", tmp_path / "run", "--family", "hgrn.fairseq")
        assert "unknown family 'hgrn.fairseq'. Did you mean 'hgrn.fairseq_lm'?" in result.stderr
        result = call("convert", checkpoint, "--output", tmp_path / "run", "--family", "tnn.fairseq_lm")
        assert result.exit_code == 2
        assert "the checkpoint lacks decoder.layers.0.self_attn.gtu.u_proj.weight" in result.stderr
        torch.save({"resnet.conv1.weight": torch.ones(3)}, tmp_path / "resnet.pt")
        result = call("convert", tmp_path / "resnet.pt", "--output", tmp_path / "run")
        assert "not a published model that is known" in result.stderr
        assert "resnet.conv1.weight" in result.stderr

    def test_names_that_fit_two_families(self, load):
        _, config, state, *_ = load("tnn-fairseq_lm-v2-pre")
        state = {name: tensor for name, tensor in state.items() if not name.endswith(".gamma")}
        with pytest.raises(DataError, match=r"tnn.fairseq_lm or fd.fairseq_lm: say which, --family"):
            recognize(state, {})
        assert recognize(state, config).family == "tnn.fairseq_lm"
        assert recognize(state, {**config, "tno_type": "tno_fd"}).family == "fd.fairseq_lm"

    def test_recognised_but_not_there(self, load, tmp_path, monkeypatch):
        _, arguments, weights, *_ = load("hgrn-fairseq_lm-base-tied")
        monkeypatch.delitem(FAMILIES, "hgrn.fairseq_lm")
        stored = {key: value for key, value in arguments.items() if key not in NOT_STORED}
        with pytest.raises(DataError, match=r"recognised as hgrn.fairseq_lm, which this version cannot convert"):
            convert(save_fairseq(tmp_path / "x.pt", weights, stored), tmp_path / "run")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"overrides": ["act_fun"]}, "the form key=value"),
            ({"overrides": ["act_fun=[1"]}, "the form key=value"),
            ({"config": "missing.json"}, "missing.json: not a JSON file"),
        ],
    )
    def test_options_that_cannot_be_read(self, checkpoint, tmp_path, options, message):
        with pytest.raises(DataError, match=message):
            convert(checkpoint, tmp_path / "run", **options)

    def test_options_given_go_before_those_stored(self, call, checkpoint, tmp_path):
        (tmp_path / "options.json").write_text('{"glu_act": "relu", "dropout": 0.25}')
        options = ("--config", tmp_path / "options.json", "--set", "glu_act=silu")
        assert call("convert", checkpoint, "--output", tmp_path / "run", *options).exit_code == 0
        config = Run(tmp_path / "run").config
        assert config["channel_mixer"]["activation"] == "silu"
        assert config["dropout"] == 0.25

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test_arguments_of_any_kind(self, load, tmp_path_factory, data):
        """A file may say anything: a model or one clear error comes of it, and every other error fails the test."""
        _, config, state, *_ = load(data.draw(st.sampled_from(LANGUAGE_MODELS + MASKED_LANGUAGE_MODELS)))
        changed = {
            key: data.draw(st.sampled_from([None, True, -1, 0, 1 << 60, 0.5, math.inf, "", "gelu", [3], {"a": 1}]))
            for key in data.draw(st.lists(st.sampled_from(sorted(config)), max_size=3))
        }
        path = save_fairseq(tmp_path_factory.mktemp("any") / "x.pt", state, {**config, **changed})
        with contextlib.suppress(ValueError):
            convert(path, path.parent / "run")


MASKED_LANGUAGE_MODELS = [
    "tnn-fairseq_roberta-v2",
    "tnn-fairseq_roberta-v2-prenorm-untied",
    "transnormer-fairseq_roberta-t1",
    "transnormer-fairseq_roberta-t2",
    "ski-fairseq_roberta-tno_fd-pad",
    "ski-fairseq_roberta-ski_inv_time",
]


class TestMaskedLanguageModels:
    @pytest.mark.parametrize("name", MASKED_LANGUAGE_MODELS)
    def test_tensors_tell_sizes_and_parts(self, load, name):
        family, config, state, (tokens, *_), *_ = load(name)
        told = {key.replace("decoder", "encoder") for key in TOLD_BY_TENSORS}
        told |= {"max_positions", "no_token_positional_embeddings", "untie_weights_roberta", "nk"}
        given = {key: value for key, value in config.items() if key not in told}
        published = next(entry.published for entry in ENTRIES if entry.family == family)
        found = recognize(state, {}, published | given, family)
        expected = from_reference(family, config, state)
        assert_close(from_reference(family, found.config, state)(tokens).logits, expected(tokens).logits)

    @pytest.mark.parametrize("name", MASKED_LANGUAGE_MODELS)
    def test_the_run_folder_holds_the_model(self, load, tmp_path, name):
        family, config, state, *_ = load(name)
        stored = {key: value for key, value in config.items() if key not in NOT_STORED}
        expected = from_reference(family, config, state)
        path = save_fairseq(tmp_path / "checkpoint_best.pt", state, stored)
        made = convert(path, tmp_path / "run")
        assert made.family == family
        assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["task"] == "masked-lm"
        holds_the_same(AutoModelForMaskedLM.from_pretrained(tmp_path / "run", dtype=torch.float64), expected)

    def test_names_of_old_versions(self, load, tmp_path):
        family, config, state, *_ = load("tnn-fairseq_roberta-v2")
        old = {
            re.sub("^encoder", "decoder", name).replace(".layernorm_embedding.", ".emb_layer_norm."): tensor
            for name, tensor in state.items()
        }
        stored = {key: value for key, value in config.items() if key not in NOT_STORED}
        made = convert(save_fairseq(tmp_path / "x.pt", old, stored, "old"), tmp_path / "run")
        assert made.family == family
        holds_the_same(Run(made.folder).load_model("cpu"), from_reference(family, config, state))

    def test_the_mask_is_behind_the_dictionary(self, call, load, tmp_path):
        _, config, state, *_ = load("tnn-fairseq_roberta-v2")
        rows = config["vocab_size"]
        words = [f"word{i}" for i in range(rows - 5)]
        (tmp_path / "dict.txt").write_text("".join(f"{word} 1\n" for word in words))
        for split in ("train", "valid", "test"):
            (tmp_path / f"{split}.txt").write_text((" ".join(words[:10]) + "\n") * 9)
        stored = {key: value for key, value in config.items() if key not in NOT_STORED}
        stored |= {"tokens_per_sample": 16, "sample_break_mode": "complete"}
        path = save_fairseq(tmp_path / "checkpoint_best.pt", state, stored)
        run = tmp_path / "run"
        convert(path, run, dictionary=tmp_path / "dict.txt")
        tokenizer = Run(run).load_tokenizer()
        assert (tokenizer.mask_id, tokenizer.num_ids) == (rows - 1, rows)
        texts = [option for split in ("train", "valid", "test") for option in ("--data", tmp_path / f"{split}.txt")]
        result = call("evaluate", run, *texts)
        assert result.exit_code == 0, result.output
        result = call("generate", run, "--prompt", "word1")
        assert result.exit_code == 2
        assert "generation needs a model of the task causal-lm, this one is of masked-lm" in result.stderr


def test_no_fixture_is_taken_for_another_family(golden):
    families, seen = {entry.family for entry in ENTRIES}, set()
    for path in sorted(shared("golden").glob("*.safetensors")):
        meta, tensors = golden.load(path)
        if meta["family"] in families:
            names = "\n".join({**golden.part(tensors, "param."), **golden.part(tensors, "buffer.")})
            fitting = [entry for entry in ENTRIES if entry.fits(names)]
            if len(fitting) > 1:
                fitting = [entry for entry in fitting if entry.tells(meta["config"])]
            assert [entry.family for entry in fitting] == [meta["family"]], path.name
            seen.add(meta["family"])
    assert len(seen) > 20
