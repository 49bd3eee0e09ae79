"""Generation of text."""

from subquad.generation.generate import TextStream, generate_text

__all__ = ["TextStream", "generate_text"]
