import numpy as np
import pytest
import torch
from run_folders import write_run, write_text

from subquad import SubquadConfig, SubquadForCausalLM
from subquad.data import build_tokenizer
from subquad.evaluation import Run
from subquad.generation import TextStream, generate_text

TEXT = "naïve 鳥 👩‍🚀 done\nnext line é"


@pytest.fixture
def tokenizer():
    return build_tokenizer("bytes")


@pytest.fixture(params=["hgru", "tno", "softmax"])
def model(request, tokenizer):
    config = SubquadConfig(
        vocab_size=tokenizer.vocabulary.size,
        hidden_size=16,
        num_hidden_layers=2,
        mixers=[{"type": request.param}],
        eos_token_id=tokenizer.vocabulary.eos_id,
    )
    return SubquadForCausalLM(config).eval()


def streamed(ids, decode):
    pieces = []
    stream = TextStream(decode, pieces.append)
    stream.put(torch.tensor([[0, 1, 2]]))
    for i in ids:
        stream.put(torch.tensor([i]))
    stream.end()
    return pieces


def test_characters_are_never_cut(tokenizer):
    pieces = streamed(tokenizer.encode(TEXT), tokenizer.decode)
    assert "".join(pieces) == TEXT
    assert len(pieces) == len(TEXT)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@pytest.mark.parametrize("seed", range(20))
def test_bytes_that_are_no_text_are_passed_on_once(tokenizer, seed):
    ids = np.random.default_rng(seed).integers(4, tokenizer.vocabulary.size, 60).tolist()
    # Decoding starts afresh at line ends, which cannot be part of a character.
    assert "".join(streamed(ids, tokenizer.decode)) == tokenizer.decode(ids)


def test_an_incomplete_character_comes_at_the_end(tokenizer):
    pieces = streamed(tokenizer.encode("a鳥")[:-1], tokenizer.decode)
    assert pieces[0] == "a"
    assert "".join(pieces) == tokenizer.decode(tokenizer.encode("a鳥")[:-1])


def test_a_stream_can_be_used_again(tokenizer):
    pieces = []
    stream = TextStream(tokenizer.decode, pieces.append)
    for _ in range(2):
        stream.put(torch.tensor([[7]]))
        stream.put(torch.tensor(tokenizer.encode("b")))
        stream.end()
    assert pieces == ["b", "b"]


def test_greedy_equals_the_argmax_of_full_passes(model, tokenizer):
    text = generate_text(model, tokenizer, "on", max_new_tokens=12, temperature=0)
    ids = [tokenizer.vocabulary.eos_id, *tokenizer.encode("on")]
    new = []
    for _ in range(12):
        with torch.no_grad():
            new.append(int(model(torch.tensor([ids + new]), use_cache=False).logits[0, -1].argmax()))
        if new[-1] == tokenizer.vocabulary.eos_id:
            new.pop()
            break
    assert text == tokenizer.decode(new)


def test_dropout_is_off_and_the_mode_left_alone(tokenizer):
    config = SubquadConfig(vocab_size=tokenizer.vocabulary.size, hidden_size=16, num_hidden_layers=1, dropout=0.5)
    model = SubquadForCausalLM(config).eval()
    expected = generate_text(model, tokenizer, "a", max_new_tokens=10, temperature=0)
    assert generate_text(model.train(), tokenizer, "a", max_new_tokens=10, temperature=0) == expected
    assert model.training


def test_stream_is_the_result(model, tokenizer):
    pieces = []
    text = generate_text(model, tokenizer, "on", max_new_tokens=30, seed=1, stream=pieces.append)
    assert "".join(pieces) == text


def test_seed_repeats_and_leaves_the_global_state_alone(model, tokenizer):
    state = torch.get_rng_state()
    first = generate_text(model, tokenizer, max_new_tokens=20, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert generate_text(model, tokenizer, max_new_tokens=20, seed=5) == first
    assert generate_text(model, tokenizer, max_new_tokens=20, seed=6) != first


def test_narrow_choices_are_greedy(model, tokenizer):
    greedy = generate_text(model, tokenizer, "a", max_new_tokens=8, temperature=0)
    assert generate_text(model, tokenizer, "a", max_new_tokens=8, top_k=1) == greedy
    assert generate_text(model, tokenizer, "a", max_new_tokens=8, top_p=1e-6) == greedy


class Certain(SubquadForCausalLM):
    """Always predicts the end symbol."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = torch.zeros_like(output.logits)
        output.logits[..., 2] = 100.0
        return output


def test_ends_with_the_document(tokenizer):
    config = SubquadConfig(vocab_size=tokenizer.vocabulary.size, hidden_size=8, num_hidden_layers=1)
    assert generate_text(Certain(config).eval(), tokenizer, "a", max_new_tokens=5) == ""


def test_goes_on_after_lines_where_the_end_symbol_ends_a_line(tmp_path):
    (tmp_path / "train.txt").write_text("one two\n" * 100)
    tokenizer = build_tokenizer("word", tmp_path / "train.txt")
    config = SubquadConfig(
        vocab_size=tokenizer.vocabulary.size,
        hidden_size=8,
        num_hidden_layers=1,
        eos_token_id=tokenizer.vocabulary.eos_id,
    )
    assert generate_text(Certain(config).eval(), tokenizer, "one", max_new_tokens=3) == "\n\n\n"


def test_library_defaults_do_not_truncate(tokenizer):
    """transformers would draw from 50 tokens only if not told otherwise."""

    class Uniform(SubquadForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = torch.zeros_like(output.logits)
            output.logits[..., :4] = -100
            return output

    config = SubquadConfig(vocab_size=tokenizer.vocabulary.size, hidden_size=8, num_hidden_layers=1)
    seen = []
    model = Uniform(config).eval()
    generate_text(model, tokenizer, max_new_tokens=400, seed=0, stream=seen.append)
    letters = {character for character in "".join(seen) if character.isascii()}
    assert len(letters) > 80


def test_run_folder(tmp_path):
    run = Run(write_run(tmp_path / "run", write_text(tmp_path / "text")))
    assert generate_text(run.load_model("cpu"), run.load_tokenizer(), "The", max_new_tokens=5, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be 0 or more"),
        ({"temperature": float("nan")}, "temperature must be 0 or more"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0.0}, "top_p must be in"),
        ({"top_p": 1.5}, "top_p must be in"),
    ],
)
def test_arguments_out_of_range(tokenizer, options, message):
    model = SubquadForCausalLM(SubquadConfig(vocab_size=260, hidden_size=8, num_hidden_layers=1))
    with pytest.raises(ValueError, match=message):
        generate_text(model, tokenizer, "a", **options)


def test_tokenizer_of_another_model(tokenizer):
    model = SubquadForCausalLM(SubquadConfig(vocab_size=100, hidden_size=8, num_hidden_layers=1))
    with pytest.raises(ValueError, match="the tokenizer has 260 symbols"):
        generate_text(model, tokenizer, "a")
