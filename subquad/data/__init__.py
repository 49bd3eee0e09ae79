"""Text on disk → token streams → blocks → batches."""

from subquad.data.batching import CompatBatches, batch_by_size, epoch_batches, ordered_indices
from subquad.data.blocks import Blocks, block_slices, collate
from subquad.data.errors import DataError
from subquad.data.masking import MASKINGS, MaskedBlocks, Masking, build_masking
from subquad.data.sources import Source, open_source
from subquad.data.storage import Corpus, TokenStream, prepare
from subquad.data.tokenizers import Tokenizer, Vocabulary, build_tokenizer, check_vocabulary, load_tokenizer

__all__ = [
    "MASKINGS",
    "Blocks",
    "CompatBatches",
    "Corpus",
    "DataError",
    "MaskedBlocks",
    "Masking",
    "Source",
    "TokenStream",
    "Tokenizer",
    "Vocabulary",
    "batch_by_size",
    "block_slices",
    "build_masking",
    "build_tokenizer",
    "check_vocabulary",
    "collate",
    "epoch_batches",
    "load_tokenizer",
    "open_source",
    "ordered_indices",
    "prepare",
]
