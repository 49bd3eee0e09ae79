import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from run_folders import TRAINING_LENGTH, write_run, write_text
from support import shared
from transformers import LlamaConfig, LlamaForCausalLM

from subquad import SubquadConfig, SubquadForCausalLM
from subquad.data import Blocks, DataError, TokenStream, Vocabulary, build_tokenizer
from subquad.evaluation import PerplexityResult, evaluate_perplexity, evaluate_run
from subquad.evaluation import perplexity as module

EOS = 2


def stream_of(tokens, vocab_size=40, **counts):
    ids = np.asarray(tokens, dtype=np.uint16)
    return TokenStream(ids, np.array([0, len(ids)]), Vocabulary("test", vocab_size, "", EOS, 1), **counts)


def random_stream(length=101, **counts):
    return stream_of(np.random.default_rng(0).integers(4, 40, length), **counts)


@pytest.fixture(params=["hgru", "tno", "softmax"])
def model(request):
    config = SubquadConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, mixers=[{"type": request.param}])
    return SubquadForCausalLM(config).double()


def direct_nll(model, tokens, length, context_window):
    """One forward pass for each block, written from the definition: targets, and the inputs one to the left."""
    model.eval()
    tokens = torch.tensor(tokens.astype(np.int64))
    inputs = torch.cat([torch.tensor([EOS]), tokens[:-1]])
    new = length - context_window
    total = 0.0
    for start in range(0, len(tokens), new):
        stop = min(start + new, len(tokens))
        first = max(0, start - context_window)
        with torch.no_grad():
            logits = model(inputs[None, first:stop]).logits[0, start - first :]
        total -= F.log_softmax(logits, -1).gather(1, tokens[start:stop, None]).sum().item()
    return total


@pytest.mark.parametrize(("length", "context_window"), [(8, 0), (16, 5), (16, 15), (101, 0), (200, 50), (1, 0)])
def test_equals_the_definition(model, length, context_window):
    stream = random_stream()
    result = evaluate_perplexity(model, stream, length=length, context_window=context_window, progress=False)
    assert result.tokens == 101
    assert result.nll == pytest.approx(direct_nll(model, stream.tokens, length, context_window), rel=1e-11)


def test_models_of_transformers():
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, pad_token_id=1
    )
    model = LlamaForCausalLM(config).double()
    stream = random_stream()
    result = evaluate_perplexity(model, stream, length=16, context_window=5, progress=False)
    assert result.nll == pytest.approx(direct_nll(model, stream.tokens, 16, 5), rel=1e-11)


def test_does_not_depend_on_batches_or_pieces(model, monkeypatch):
    stream = random_stream()
    expected = evaluate_perplexity(model, stream, length=8, progress=False).nll
    assert evaluate_perplexity(model, stream, length=8, batch_size=1, progress=False).nll == pytest.approx(
        expected, rel=1e-12
    )
    monkeypatch.setattr(module, "LOSS_POSITIONS", 3)
    assert evaluate_perplexity(model, stream, length=8, batch_size=5, progress=False).nll == pytest.approx(
        expected, rel=1e-12
    )


def test_leaves_the_mode_alone(model):
    model.train()
    evaluate_perplexity(model, random_stream(), length=8, progress=False)
    assert model.training


class Recorder(torch.nn.Module):
    """A model that notes what it was asked, and finds all tokens equally likely."""

    def __init__(self, vocab_size):
        super().__init__()
        self.config = type("Config", (), {"vocab_size": vocab_size})()
        self.device = torch.device("cpu")
        self.seen = []

    def forward(self, input_ids, use_cache, logits_to_keep):
        self.seen += [(row.tolist(), logits_to_keep) for row in input_ids]
        return type("Output", (), {"logits": torch.zeros(len(input_ids), logits_to_keep, self.config.vocab_size)})()


def test_context_windows_are_fairseqs():
    expected = json.loads(shared("golden", "fairseq-data-bin", "expected.json").read_text())
    tokens = [token for item in expected["word"]["splits"]["train"]["tokens"] for token in item]
    for case in expected["context_window"]:
        window = case["context_window"]
        size = case["tokens_per_sample_after_subtraction"]
        model = Recorder(80)
        result = evaluate_perplexity(
            model, stream_of(tokens, vocab_size=80), length=size + window, context_window=window, progress=False
        )
        assert result.tokens == len(tokens)
        rows = [
            ([token for token in source if token != 1], sum(token != 1 for token in target))
            for batch in case["batches"]
            for source, target in zip(batch["src_tokens"], batch["target"], strict=True)
        ]
        # A literal <pad> in the text looks like padding in the fixture.
        literal = [i for i, (row, _) in enumerate(model.seen[: len(rows)]) if 1 in row]
        for i, (row, scored) in enumerate(rows):
            if i not in literal:
                assert model.seen[i] == (row, scored)
        assert len(literal) < len(rows)


@pytest.mark.parametrize(
    ("num_tokens", "length", "blocks", "last"),
    [
        (282_211, 512, 552, 99),
        (282_211, 1024, 276, 611),
        (282_211, 2048, 138, 1635),
        (282_211, 4096, 69, 3683),
        (282_211, 8192, 35, 3683),
        (282_211, 14_336, 20, 9827),
        (246_403, 512, 482, 131),
    ],
)
def test_block_counts_of_wikitext(num_tokens, length, blocks, last):
    lengths = Blocks(stream_of(np.zeros(num_tokens)), length).lengths
    assert (len(lengths), lengths[-1], lengths.sum()) == (blocks, last, num_tokens)


def result_of(perplexity, tokens, words, bytes):
    return PerplexityResult(math.log(perplexity) * tokens, tokens, words, bytes, 512, 0, "gpt2-bpe")


def test_published_conversions():
    test = result_of(24.67, 282_211, 245_569, 1_290_590)
    assert test.word_perplexity == pytest.approx(39.80, abs=0.005)
    assert test.bits_per_byte == pytest.approx(1.011, abs=0.0005)
    valid = result_of(23.98, 246_403, 217_646, 1_146_846)
    assert valid.word_perplexity == pytest.approx(36.49, abs=0.005)
    assert result_of(12_383.4, 10, None, None).bits_per_token == pytest.approx(13.596, abs=0.0005)


def test_figures_without_a_text_are_none():
    result = result_of(20, 10, None, None)
    assert result.word_perplexity is None
    assert result.bits_per_byte is None


def test_what_is_too_large_for_json_is_none():
    figures = PerplexityResult(1000.0, 1, 1, 1, 8, 0, "test").to_dict()
    assert figures["perplexity"] is None
    json.dumps(figures, allow_nan=False)


def test_counts_come_from_the_stream():
    stream = random_stream(num_words=20, num_lines=3, num_bytes=150)
    model = Recorder(40)
    result = evaluate_perplexity(model, stream, length=8, progress=False)
    assert result.loss == pytest.approx(math.log(40), rel=1e-6)
    assert result.perplexity == pytest.approx(40, rel=1e-5)
    assert result.word_perplexity == pytest.approx(math.exp(101 * math.log(40) / 23), rel=1e-5)
    assert result.bits_per_byte == pytest.approx(101 * math.log2(40) / 150, rel=1e-6)
    assert result.to_dict()["vocabulary"] == "test"


def test_refuses_what_it_cannot_score(model):
    with pytest.raises(ValueError, match="empty"):
        evaluate_perplexity(model, stream_of([]), length=8, progress=False)
    with pytest.raises(ValueError, match="41 symbols"):
        evaluate_perplexity(model, stream_of([5, 6], vocab_size=41), length=8, progress=False)
    with pytest.raises(ValueError, match="context_window"):
        evaluate_perplexity(model, random_stream(), length=8, context_window=8, progress=False)
    with torch.no_grad():
        model.lm_head.weight[0].fill_(math.nan)
    with pytest.raises(ValueError, match="loss is nan within tokens 0"):
        evaluate_perplexity(model, random_stream(), length=8, progress=False)


def test_learned_positions_end():
    config = SubquadConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        mixers=[{"type": "softmax"}],
        position_embedding="learned",
        max_position_embeddings=8,
    )
    with pytest.raises(ValueError, match="8 learned positions"):
        evaluate_perplexity(SubquadForCausalLM(config), random_stream(), length=9, progress=False)


def test_run_folder(tmp_path):
    data = write_text(tmp_path / "text")
    run = write_run(tmp_path / "run", data)
    result = evaluate_run(run, progress=False)
    assert result.length == TRAINING_LENGTH
    size = (data / "test.txt").stat().st_size
    assert result.bytes == size
    assert result.tokens == size + 1
    assert result.words == len((data / "test.txt").read_text(encoding="utf-8").split()) + 7
    assert evaluate_run(run, data, split="valid", length=32, progress=False).length == 32
    with pytest.raises(DataError, match="nothing"):
        evaluate_run(run, tmp_path / "nothing", progress=False)
    (run / "recipe.yaml").unlink()
    with pytest.raises(DataError, match="give a length"):
        evaluate_run(run, data, progress=False)


def test_databin_folder(tmp_path):
    """What users of fairseq have: a data-bin folder and a model of its dictionary."""
    folder = shared("golden", "fairseq-data-bin", "word", "data-bin")
    expected = json.loads(shared("golden", "fairseq-data-bin", "expected.json").read_text())["word"]
    run = write_run(tmp_path / "run", folder, tokenizer=build_tokenizer("word", str(folder)))
    for split in ("test", "valid"):
        result = evaluate_run(run, split=split, context_window=4, progress=False)
        assert result.tokens == expected["splits"][split]["n_tokens"]
        assert (result.vocabulary, result.bytes) == ("word", None)
    other = write_run(tmp_path / "other", folder)
    with pytest.raises(DataError, match="byte"):
        evaluate_run(other, progress=False)
