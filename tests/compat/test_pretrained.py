"""Published models that no configuration of ours describes: saved, read back, and taken by every command."""

import contextlib
import csv
import json
import math
from argparse import Namespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support import assert_close
from torch.nn.functional import cross_entropy
from transformers import AutoConfig
from typer.testing import CliRunner

from subquad import cli
from subquad.compat import from_reference, recognize, to_pretrained
from subquad.compat.convert import convert
from subquad.compat.pretrained import CLASSES, ReferenceConfig, ReferenceForCausalLM
from subquad.compat.reference import FAMILIES
from subquad.data import DataError
from subquad.data.lra import open_lra
from subquad.evaluation import Run, compare, evaluate_run, training_speed
from subquad.evaluation.lra import lra_cells, lra_table
from subquad.training.train import train

CAUSAL = {
    "tnn-fairseq_lm-v1-decay": "a mixer with a shortcut of its own",
    "tnn-fairseq_lm-v2-gluv2-gtuv3": "self-gated mixers",
    "tnn-fairseq_lm-v2-ada": "an adaptive vocabulary",
    "tnn-fairseq_lm-v2-acttype-exp": "a kernel through an exponential",
    "transformer-fairseq_lm-pre-learnedpos": "a position of padding",
}
WITHOUT_STATE = {
    "fd-fairseq_lm-norpe-untied": "kernels that follow the length",
    "hgrn-fla-mask-shortconv": "short convolutions",
}
MASKED = ["tnn-fairseq_roberta-v1", "ski-fairseq_roberta-ski_inv_time", "transnormer-fairseq_roberta-t2-pads"]
FINETUNED = ["tnn-fairseq_roberta-v2-head", "transnormer-fairseq_roberta-t1-cls-head"]
ARENA = [
    *("tnn-lra_model-text-eval", "tnn-lra_model-image-eval", "tnn-lra_model-retrieval-eval"),
    *("transnormer-lra_classifier-text-t1", "transnormer-lra_classifier-pixels-t2"),
    *("primal-lra_former-base", "primal-lra_former-tied-softmax", "primal-lra_former-dual", "primal-lra_trans-pad"),
]
SERIES = ["primal-ts_former-base", "primal-ts_trans-base"]
IMAGES = [
    *("transnormer-im_vit-t1-ffn", "transnormer-im_vit-t1-glu-conv", "transnormer-im_vit-t2-glu"),
    *("primal-cv_vit-base", "primal-cv_former-base"),
]
ALL = [*CAUSAL, *WITHOUT_STATE, *MASKED, *FINETUNED, *ARENA, *SERIES, *IMAGES]


@pytest.fixture
def pretrained(load):
    """From the name of a fixture to the model that can be saved, the module of `from_reference`, and its arguments."""

    def pretrained(name):
        family, config, state, inputs, _, kwargs = load(name)
        found = recognize(state, config, config, family)
        return to_pretrained(found, state), from_reference(family, config, state), inputs, kwargs

    return pretrained


def tensor_of(outputs):
    return outputs["y"] if isinstance(outputs, dict) and "y" in outputs else getattr(outputs, "logits", outputs)


def call(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


class TestSaving:
    @pytest.mark.parametrize("name", ALL)
    def test_what_is_read_back_is_what_was_published(self, pretrained, tmp_path, name):
        model, published, inputs, kwargs = pretrained(name)
        model.save_pretrained(tmp_path)
        task = next(task for task, (kind, _) in CLASSES.items() if type(model) is kind)
        again, report = CLASSES[task][1].from_pretrained(tmp_path, dtype=torch.float64, output_loading_info=True)
        assert type(again) is type(model)
        assert not any(report[f"{problem}_keys"] for problem in ("missing", "unexpected", "mismatched"))
        actual, expected = again.reference.state_dict(), published.state_dict()
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())
        # Where tensors stand in memory shows in the last digit of a product.
        assert_close(tensor_of(again.reference(*inputs, **kwargs)), tensor_of(published(*inputs, **kwargs)))

    @pytest.mark.parametrize("name", ALL)
    def test_the_cost_of_training_can_be_measured(self, pretrained, name):
        speed = training_speed(pretrained(name)[0], batch_size=2, length=48, steps=1)
        assert 0 < speed.length <= 48 or "image" in name
        assert math.isfinite(speed.tokens_per_second)

    def test_tied_parameters_stay_tied(self, pretrained, tmp_path):
        model, *_ = pretrained("tnn-fairseq_lm-v2-ada")
        model.save_pretrained(tmp_path)
        assert not [name for name in load_file(tmp_path / "model.safetensors") if ".tail_words." in name]
        again = ReferenceForCausalLM.from_pretrained(tmp_path)
        vocabulary, head = again.reference.model.embed_tokens, again.reference.lm_head
        assert head.head_words.embedding.weight is vocabulary.embeddings[0].weight
        assert head.tail_words[1].embedding.weight is vocabulary.embeddings[2].weight
        assert head.tail_proj[0].linear.weight is vocabulary.projections[1].weight
        assert again.num_parameters() == model.num_parameters()

    def test_others_ask_the_configuration(self, pretrained, tmp_path):
        pretrained("transnormer-lra_classifier-retrieval-t1")[0].save_pretrained(tmp_path / "pairs")
        config = AutoConfig.from_pretrained(tmp_path / "pairs")
        assert (config.vocab_size, config.num_labels, config.classifier) == (20, 2, "pair")
        pretrained("primal-cv_vit-base")[0].save_pretrained(tmp_path / "images")
        config = AutoConfig.from_pretrained(tmp_path / "images")
        assert (config.image_size, config.num_channels, config.num_labels) == ([12, 12], 3, 5)
        config = pretrained("tnn-fairseq_lm-v1-decay")[0].config
        assert (config.vocab_size, config.num_hidden_layers, config.layer_types) == (30, 2, ["full_attention"] * 2)

    def test_our_own_configuration_goes_before(self, load):
        _, config, state, *_ = load("tnn-fairseq_lm-v2-pre")
        assert type(to_pretrained(recognize(state, config), state)).__name__ == "SubquadForCausalLM"

    def test_a_part_of_a_model(self, load):
        _, config, state, *_ = load("tnn-Gtu-causal")
        with pytest.raises(ValueError, match=r"a tnn.Gtu is a part of a model"):
            to_pretrained(recognize(state, config), state)

    def test_models_of_the_published_code_point_here(self, pretrained, tmp_path):
        _, published, *_ = pretrained("tnn-fairseq_lm-v1-decay")
        with pytest.raises(ValueError, match=r"shortcut of its own.*to_pretrained"):
            published.save_pretrained(tmp_path)


class TestConfigurationsOfOthers:
    @pytest.fixture
    def folder(self, pretrained, tmp_path):
        pretrained("tnn-fairseq_lm-v1-decay")[0].save_pretrained(tmp_path)
        return tmp_path

    def change(self, folder, **options):
        config = json.loads((folder / "config.json").read_text())
        config["family"] = options.pop("family", config["family"])
        config["options"] |= options
        (folder / "config.json").write_text(json.dumps(config))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"decoder_layers": 10**9}, "`decoder_layers` = 1000000000 is more than any model has"),
            ({"rpe_layers": 10**6}, "`rpe_layers` = 1000000 is more than any model has"),
            ({"decoder_embed_dim": 1 << 40}, "its weights are not those of its configuration|make no tnn.fairseq_lm"),
            ({"vocab_size": 1 << 50}, "its weights are not those of its configuration|make no tnn.fairseq_lm"),
            ({"vocab_size": 31}, "not those of its configuration, a tnn.fairseq_lm .*embed_tokens.weight"),
            ({"decoder_layers": 3}, r"not those of its configuration.*layers\.2"),
            ({"decoder_layers": "os.system"}, "make no tnn.fairseq_lm"),
            ({"expand_ratio": {"__reduce__": "os.system"}}, "make no tnn.fairseq_lm|expand_ratio"),
            ({"family": "os.system"}, "unknown family of models 'os.system'"),
            ({"family": "tnn.Gtu"}, "unknown family of models 'tnn.Gtu'"),
            ({"family": "primal.lra_former"}, "unknown option of primal.lra_former"),
            ({"family": 3}, "family"),
        ],
    )
    def test_are_refused_before_memory_is_allocated(self, folder, options, message):
        self.change(folder, **options)
        with pytest.raises(DataError, match=message):
            Run(folder).load_model("cpu")

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test_options_of_any_kind(self, load, data):
        """A model or one clear error comes of them, without memory, and every other error fails the test."""
        family, config, *_ = load(data.draw(st.sampled_from([*CAUSAL, *MASKED, *ARENA, *SERIES, *IMAGES])))
        values = [None, True, -1, 0, 1 << 40, 0.5, math.inf, "", "gelu", [3], {"a": 1}, [[]]]
        changed = {
            key: data.draw(st.sampled_from(values))
            for key in data.draw(st.lists(st.sampled_from(sorted(config)), max_size=3))
        }
        with contextlib.suppress(ValueError):
            ReferenceConfig(family=family, options={**config, **changed})

    @pytest.mark.parametrize("classes", [10**9, math.inf])
    def test_a_table_of_classes(self, classes):
        options = {"dataset": {"n_tokens": 5, "d_output": classes}, "encoder": "embedding", "decoder": "sequence"}
        options["model"] = {"d_model": 4, "n_layers": 1, "layer": [{"_name_": "hgru1d"}, {"_name_": "glu"}]}
        with pytest.raises(ValueError, match="is more than any model has"):
            ReferenceConfig(family="hgrn.lra", options=options)

    def test_the_options_of_a_backbone(self):
        options = {"d_model": 4, "n_layers": 1, "layer": [{"_name_": "hgru1d"}, {"_name_": "glu"}]}
        with pytest.raises(ValueError, match=r"these options of a hgrn.lra are those of a part of a model"):
            ReferenceConfig(family="hgrn.lra", options=options)

    def test_what_follows_from_the_options_is_not_believed(self, folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "layer_types": ["evil"], "vocab_size": 7}))
        config = Run(folder).load_model("cpu").config
        assert (config.layer_types, config.vocab_size) == (["full_attention"] * 2, 30)

    def test_weights_that_are_cut_off_or_missing(self, folder):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        name = next(iter(tensors))
        save_file({key: tensor for key, tensor in tensors.items() if key != name}, path, {"format": "pt"})
        with pytest.raises(DataError, match="not those of its configuration"):
            Run(folder).load_model("cpu")
        path.write_bytes(path.read_bytes()[:-50])
        with pytest.raises(DataError, match="corrupt or cut off"):
            Run(folder).load_model("cpu")


@pytest.fixture
def text(tmp_path):
    """A vocabulary of 24 words behind the four symbols of fairseq, and text of them."""
    words = [f"word{i}" for i in range(60)]
    (tmp_path / "dict.txt").write_text("".join(f"{word} 1\n" for word in words))
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text((" ".join(words[:7]) + "\n") * 5)
    return tmp_path / "dict.txt"


class TestLanguageModels:
    @pytest.fixture
    def run(self, load, text, tmp_path):
        """From the name of a fixture to a run folder with a dictionary, and the published model."""

        def run(name):
            family, config, state, *_ = load(name)
            rows = config["vocab_size"] - 4 - ("roberta" in family)
            lines = text.read_text().splitlines()[:rows]
            text.write_text("\n".join(lines) + "\n")
            torch.save({"model": state, "args": Namespace(**config)}, tmp_path / "checkpoint.pt")
            convert(tmp_path / "checkpoint.pt", tmp_path / "run", dictionary=text)
            return tmp_path / "run", from_reference(family, config, state)

        return run

    @pytest.fixture
    def data(self, tmp_path):
        return [option for split in ("train", "valid", "test") for option in ("--data", tmp_path / f"{split}.txt")]

    @pytest.mark.parametrize("name", [*CAUSAL, *WITHOUT_STATE])
    def test_commands(self, run, data, tmp_path, name):
        folder, published = run(name)
        result = call("evaluate", folder, *data, "--length", 16, "--json", tmp_path / "figures.json")
        assert result.exit_code == 0, result.output
        line = Run(folder).load_tokenizer().encode("word0 word1 word2 word3 word4 word5 word6\n")
        tokens = torch.tensor([2, *line * 5])
        losses = [
            cross_entropy(published(inputs[None]).logits[0], targets, reduction="sum").item()
            for inputs, targets in zip(tokens[:-1].split(16), tokens[1:].split(16), strict=True)
        ]
        figures = json.loads((tmp_path / "figures.json").read_text())
        assert figures["tokens"] == len(tokens) - 1
        assert figures["loss"] == pytest.approx(sum(losses) / figures["tokens"], rel=1e-5)
        result = call("generate", folder, "--prompt", "word1 word2", "--max-new-tokens", 4, "--temperature", 0)
        assert result.exit_code == 0, result.output
        greedy = Run(folder).load_tokenizer().encode("word1 word2")
        greedy = torch.tensor([[2, *greedy]])
        for _ in range(4):
            greedy = torch.cat([greedy, published(greedy, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
        added = Run(folder).load_tokenizer().decode(greedy[0, -4:].tolist())
        assert result.stdout.rstrip("\n") == f"word1 word2{added}".rstrip("\n")
        result = call("extrapolate", folder, "--lengths", "4,8", *data)
        assert result.exit_code == 0, result.output
        result = call("compare", folder, "--output", tmp_path / "page", "--no-measure")
        assert result.exit_code == 0, result.output

    @pytest.mark.parametrize("name", CAUSAL)
    def test_states_are_kept(self, pretrained, name):
        model, *_ = pretrained(name)
        tokens = torch.randint(4, model.config.vocab_size, (2, 9))
        whole = model(tokens, use_cache=False).logits
        first = model(tokens[:, :4], use_cache=True)
        second = model(tokens[:, 4:], past_key_values=first.past_key_values)
        assert_close(torch.cat([first.logits, second.logits], dim=1), whole)

    @pytest.mark.parametrize("name", WITHOUT_STATE)
    def test_no_cache_where_no_state_is_kept(self, pretrained, name):
        model, *_ = pretrained(name)
        tokens = torch.randint(4, model.config.vocab_size, (1, 4))
        cache = model(tokens, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="keeps no state, so a cache is of no use"):
            model(tokens, past_key_values=cache)

    @pytest.mark.parametrize("name", MASKED)
    def test_masked_models_are_evaluated(self, run, data, name):
        folder, _ = run(name)
        result = call("evaluate", folder, *data, "--length", 12)
        assert result.exit_code == 0, result.output
        assert "masked token" in result.stdout

    @pytest.mark.parametrize("name", CAUSAL)
    def test_gradients_reach_every_parameter(self, pretrained, name):
        model, *_ = pretrained(name)
        tokens = torch.randint(4, model.config.vocab_size, (2, 12))
        tokens[0, :4] = torch.arange(0, model.config.vocab_size, model.config.vocab_size // 4)[:4]
        model.train()(tokens, labels=tokens).loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


class TestClassifiers:
    @pytest.mark.parametrize("name", [name for name in ARENA if "retrieval" not in name and "dual" not in name])
    def test_lengths_are_read_off_the_mask(self, pretrained, name):
        model, published, inputs, _ = pretrained(name)
        x = inputs[0]
        lengths = torch.tensor([x.shape[1] - 3, x.shape[1], 5, 4][: len(x)])
        mask = (torch.arange(x.shape[1]) < lengths.unsqueeze(-1)).long()
        expected = published(x, mask.double())["y"] if name.startswith("primal") else published(x, lengths)
        key = "input_values" if x.is_floating_point() else "input_ids"
        labels = torch.arange(len(x)) % expected.shape[-1]
        outputs = model(**{key: x}, attention_mask=mask, labels=labels)
        assert_close(outputs.logits, expected)
        assert_close(outputs.loss, cross_entropy(expected, labels))
        with pytest.raises(ValueError, match="pass either `input_ids` or `input_values`"):
            model(input_ids=x, input_values=x)

    def test_pairs(self, pretrained):
        model, published, (x, lengths), _ = pretrained("transnormer-lra_classifier-retrieval-t1")
        a, b = x.chunk(2)
        mask = (torch.arange(x.shape[1]) < lengths.unsqueeze(-1)).long()
        pairs = torch.stack(mask.chunk(2), dim=1)
        assert_close(model(torch.stack([a, b], dim=1), attention_mask=pairs).logits, published(x, lengths))
        model, published, (a, mask_a, b, mask_b), _ = pretrained("primal-lra_former-dual")
        both = model(torch.stack([a, b], dim=1), attention_mask=torch.stack([mask_a, mask_b], dim=1))
        assert_close(both.logits, published(a, mask_a, b, mask_b)["y"])

    @pytest.mark.parametrize("name", FINETUNED)
    def test_finetuned_models_name_classes(self, pretrained, name):
        model, published, (tokens,), kwargs = pretrained(name)
        assert_close(model(tokens).logits, published(tokens, **kwargs).logits)
        assert model.config.num_labels == model(tokens).logits.shape[-1] == 3

    def test_series(self, pretrained):
        model, published, (x, mask), _ = pretrained("primal-ts_former-base")
        assert_close(model(input_values=x, attention_mask=mask).logits, published(x, mask)["y"])

    def test_images(self, pretrained):
        model, published, (images,), _ = pretrained("primal-cv_vit-base")
        labels = torch.zeros(len(images), dtype=torch.long)
        outputs = model(images, labels=labels)
        assert_close(outputs.logits, published(images)["y"])
        assert_close(outputs.loss, cross_entropy(outputs.logits, labels))


def state_of(family, options):
    """Weights of a model of this family with initial values, under their published names."""
    torch.manual_seed(0)
    conversion = FAMILIES[family]({}, **options)
    state = {conversion.reference_name(name): tensor for name, tensor in conversion.module.state_dict().items()}
    return state | {name: torch.rand(tensor.shape) for name, tensor in state.items() if tensor.isnan().any()}


def arena(layer, vocabulary):
    return {
        "dataset": {"n_tokens": vocabulary, "d_output": 10, "l_output": 0, "l_max": 2048},
        "encoder": "embedding",
        "model": {"d_model": 8, "n_layers": 2, "prenorm": True, "norm": "batch", "layer": [layer, {"_name_": "glu"}]},
        "decoder": {"_name_": "sequence", "mode": "pool", "use_lengths": True},
    }


def lightning(path, family, options):
    torch.save({"state_dict": state_of(family, options), "hyper_parameters": {**options, "trainer": {"gpus": 1}}}, path)
    return path


class TestEvaluation:
    """From checkpoints to accuracies."""

    @pytest.mark.filterwarnings("ignore:Long Range Arena .* the published data has:UserWarning")
    @pytest.mark.parametrize(
        ("family", "layer"),
        [
            ("hgrn.lra", {"_name_": "hgru1d"}),
            ("tnn.lra_model", {"_name_": "tno", "n_heads": 1, "dpb_embedding": 6, "dpb_type": 1, "dpb_layers": 1}),
        ],
    )
    def test_the_long_range_arena(self, listops, tmp_path, family, layer):
        examples = open_lra("listops", listops, pipeline="s4").test
        options = arena(layer, open_lra("listops", listops, pipeline="s4").vocab_size)
        made = convert(lightning(tmp_path / "last.ckpt", family, options), tmp_path / "run")
        assert (made.family, made.task) == (family, "lra-listops")
        recipe = Run(made.folder).recipe
        assert recipe["task"] == "sequence-classification"
        assert recipe["data"] == {"task": "listops", "pipeline": "s4", "max_length": 2048}
        result = call("evaluate", made.folder, "--data", listops, "--json", tmp_path / "figures.json")
        assert result.exit_code == 0, result.output
        figures = json.loads((tmp_path / "figures.json").read_text())
        published = from_reference(family, options, state_of(family, options))
        right = 0
        for start in range(0, len(examples), 8):
            batch = examples.collate([examples[i] for i in range(start, min(start + 8, len(examples)))])
            answers = published(batch["input_ids"], batch["attention_mask"].sum(1)).argmax(-1)
            right += int((answers == batch["labels"]).sum())
        assert (figures["examples"], figures["correct"]) == (11, right)
        with pytest.raises(DataError, match="its data is not known: give the folder"):
            evaluate_run(made.folder, progress=False)

    @pytest.mark.filterwarnings("ignore:Long Range Arena .* the published data has:UserWarning")
    def test_the_table_has_converted_models_once_they_are_evaluated(self, listops, tmp_path):
        data = open_lra("listops", listops, pipeline="s4")
        options = arena({"_name_": "hgru1d"}, data.vocab_size)
        path = lightning(tmp_path / "last.ckpt", "hgrn.lra", options)
        content = torch.load(path, weights_only=True)
        torch.save({**content, "global_step": 700}, path)
        run = convert(path, tmp_path / "hgrn").folder
        result = call("lra", run, "--output", tmp_path / "table")
        assert result.exit_code == 2
        message = " ".join(result.output.split())
        assert "has no result yet (metrics.json); its status is converted: `subquad evaluate" in message
        evaluate_run(run, listops, split="valid", progress=False)
        assert not (run / "metrics.json").exists()
        recipe = (run / "recipe.yaml").read_text()
        (run / "recipe.yaml").write_text(recipe.replace("  max_length: 2048\n", ""))  # as of images
        evaluate_run(run, listops, split="valid", progress=False)
        assert not (run / "metrics.json").exists()
        accuracy = evaluate_run(run, listops, progress=False).accuracy
        assert Run(run).metrics["data"]["fingerprint"] == data.fingerprint

        (cell,) = lra_cells([run])
        assert (cell.accuracy, cell.examples, cell.longest) == (100 * accuracy, 11, data.longest)
        assert (cell.steps, cell.validation, cell.seeds, cell.num_train) == (700, None, [], None)
        name = "hgrn-lra-listops"
        assert (cell.model, cell.published.model, cell.published.recipe) == ("converted HGRN", "HGRN", name)
        start = f"converted HGRN (s4), ListOps: {100 * accuracy:.2f} % of 11 test examples"
        assert cell.describe() == f"{start}; 700 of the published {cell.published.steps:,} updates"
        result = call("lra", run, "--output", tmp_path / "table")
        assert result.exit_code == 0, result.output
        assert [row[0] for row in lra_table([cell])[1]] == ["converted HGRN", "  published"]

        again = convert(path, tmp_path / "again").folder
        evaluate_run(again, listops, progress=False)
        with pytest.raises(DataError, match="are all converted HGRN on listops, and how they differ is not known"):
            lra_cells([run, again])
        page = compare([run, again], tmp_path / "page", measure=False)
        with page.with_suffix(".csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [float(row["accuracy"]) for row in rows] == [accuracy] * 2

    @pytest.mark.filterwarnings("ignore:Long Range Arena .* the published data has:UserWarning")
    def test_data_with_another_vocabulary(self, listops, tmp_path):
        made = convert(lightning(tmp_path / "x.ckpt", "hgrn.lra", arena({"_name_": "hgru1d"}, 99)), tmp_path / "run")
        with pytest.raises(DataError, match=r"its texts have \d+ tokens, the model of .* 99: other data"):
            evaluate_run(made.folder, listops, progress=False)

    def test_sizes_of_no_task(self, load, tmp_path):
        family, config, state, *_ = load("primal-lra_former-dual")  # pairs, and five classes
        torch.save({"model_state_dict": state}, tmp_path / "x.pt")
        (tmp_path / "options.json").write_text(json.dumps(config))
        made = convert(tmp_path / "x.pt", tmp_path / "run", config=tmp_path / "options.json")
        assert (made.family, made.task) == (family, "sequence-classification")
        with pytest.raises(DataError, match="it is of is not known: convert it with --task lra-NAME"):
            evaluate_run(made.folder, tmp_path, progress=False)

    @pytest.mark.parametrize("name", ["transnormer-im_vit-t1-ffn", "primal-cv_vit-base", "tnn-im_vit-tiny-prenorm"])
    def test_images(self, load, tmp_path, name):
        pytest.importorskip("matplotlib")
        image = pytest.importorskip("PIL.Image")
        family, config, state, *_ = load(name)
        state = {name: tensor.float() for name, tensor in state.items()}
        torch.save({"model": state}, tmp_path / "best.pth")
        (tmp_path / "options.json").write_text(json.dumps(config))
        made = convert(tmp_path / "best.pth", tmp_path / "run", config=tmp_path / "options.json")
        size, classes = Run(made.folder).recipe["data"]["image_size"], config["num_classes"]
        torch.manual_seed(0)
        for split in ("train", "test"):
            for label in range(classes):
                folder = tmp_path / "images" / split / f"n{label}"
                folder.mkdir(parents=True)
                pixels = torch.randint(256, (size, size, 3), dtype=torch.uint8).numpy()
                image.fromarray(pixels).save(folder / "x.png")
        result = call("evaluate", made.folder, "--data", tmp_path / "images", "--json", tmp_path / "figures.json")
        assert result.exit_code == 0, result.output
        figures = json.loads((tmp_path / "figures.json").read_text())
        published, right = from_reference(family, config, state), 0
        for label in range(classes):
            pixels = image.open(tmp_path / "images" / "test" / f"n{label}" / "x.png")
            x = torch.from_numpy(np.array(pixels)).float() / 255
            x = (x - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
            right += int(tensor_of(published(x.permute(2, 0, 1)[None])).argmax() == label)
        assert (figures["examples"], figures["correct"]) == (classes, right)


SHRUNK = (
    *(f"model.options.decoder_{size}_dim=32" for size in ("embed", "input", "output")),
    "model.options.decoder_layers=2",
    "model.options.glu_dim=32",
    *("data.tokenizer=bytes", "data.block_size=16"),
    *("training.steps=3", "training.batch_size=4", "training.device_batch_size=4", "training.eval_steps=3"),
    "training.num_workers=0",
)
BANDS = tuple(f"model.options.adaptive_{side}_cutoff=50,100" for side in ("input", "softmax"))


class TestTraining:
    """Recipes of models that no configuration of ours describes."""

    @pytest.mark.parametrize(
        ("recipe", "more"), [("tnn-alm-wikitext103-gluv2-gtuv3", ()), ("tnn-alm-wikitext103-words", BANDS)]
    )
    def test_a_run_from_nothing(self, tmp_path, recipe, more):
        (tmp_path / "text.txt").write_text("Every part of the way must run.\n" * 60)
        overrides = (*SHRUNK, *more)
        run = Run(train(recipe, data=tmp_path / "text.txt", output=tmp_path / "run", overrides=overrides))
        assert run.config["architectures"] == ["ReferenceForCausalLM"]
        assert run.recipe["model"]["family"] == "tnn.fairseq_lm"
        result = evaluate_run(run.folder, progress=False)
        assert result.loss == pytest.approx(run.metrics["loss"], rel=1e-6)
        result = call("generate", run.folder, "--prompt", "Every", "--max-new-tokens", 3, "--seed", 1)
        assert result.exit_code == 0, result.output
        train(None, resume=run.folder, overrides=["training.steps=4"])
        assert Run(run.folder).metrics["steps"] == 4

    def test_initial_values_of_an_adaptive_vocabulary(self):
        config = ReferenceConfig.from_options(self.adaptive(), {"vocab_size": 2000, "padding_idx": 1})
        torch.manual_seed(0)
        model = ReferenceForCausalLM(config).reference
        vocabulary, head = model.model.embed_tokens, model.lm_head
        for embedding, width in zip(vocabulary.embeddings, (64, 32, 16), strict=True):
            assert embedding.weight.std().item() == pytest.approx(width**-0.5, rel=0.05)
        assert not vocabulary.embeddings[0].weight[1].any()
        # Xavier: uniform up to √(6 / (in + out)).
        for linear, inputs, outputs in ((vocabulary.projections[1], 32, 64), (head.head_classes, 64, 2)):
            assert linear.weight.abs().max().item() == pytest.approx(math.sqrt(6 / (inputs + outputs)), rel=0.1)

    def adaptive(self):
        common = {"model": "tnn_v2_lm", "decoder_embed_dim": 64, "decoder_layers": 1, "decoder_attention_heads": 1}
        bands = {f"adaptive_{side}_cutoff": "1000,1500" for side in ("input", "softmax")}
        factors = {f"adaptive_{side}_factor": 2 for side in ("input", "softmax")}
        ties = {"adaptive_input": True, "tie_adaptive_weights": True, "tie_adaptive_proj": True}
        options = {**common, **bands, **factors, **ties, "decoder_normalize_before": True}
        return {"family": "tnn.fairseq_lm", "options": options}

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("model.options.vocab_size=9", r"model.options.vocab_size is not set in a recipe"),
            ("model.hidden_size=9", "unknown entry of a published model 'hidden_size'"),
            ("model.family=tnn.fairseq_ml", "Did you mean 'tnn.fairseq_lm'"),
            ("model.options.decoder_layers=many", "these options make no tnn.fairseq_lm"),
        ],
    )
    def test_mistakes_are_found_before_the_data(self, tmp_path, override, message):
        with pytest.raises(ValueError, match=message):
            train("tnn-alm-wikitext103-gluv2", data=tmp_path, output=tmp_path / "run", overrides=[override])
