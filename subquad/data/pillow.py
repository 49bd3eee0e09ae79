"""Pillow, which is an extra."""

from typing import Any


def pillow() -> Any:
    """Pillow's module `Image`.

    Raises:
        ImportError: It is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ImportError("images need Pillow; run `pip install subquad[vision]`") from None
    return Image
