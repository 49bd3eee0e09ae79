"""Damaged files, for the tests of readers."""

from hypothesis import strategies as st


@st.composite
def mutation(draw):
    """A function that damages bytes: some are changed, cut out, put in or repeated."""
    edits = draw(
        st.lists(
            st.tuples(st.floats(0, 1), st.floats(0, 0.2), st.binary(max_size=8), st.integers(1, 3)),
            min_size=1,
            max_size=4,
        )
    )

    def apply(content):
        for place, share, insertion, repeat in edits:
            start = int(place * len(content))
            stop = start + int(share**3 * len(content))
            content = content[:start] + insertion * repeat + content[stop:]
        return content

    return apply
