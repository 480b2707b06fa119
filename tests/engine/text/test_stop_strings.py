"""Stop strings cut out of text that comes in any pieces, compared with a search in all of it."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from engine.text.stop_strings import StopStringTrimmer

TEXTS = st.text("abc", max_size=40)
STOPS = st.lists(st.text("abc", min_size=1, max_size=5), max_size=4)


def expected(text: str, stops: list[str]) -> str:
    """The text before the stop string that ends first, the longest if there are several."""
    for end in range(1, len(text) + 1):
        if done := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, done))]
    return text


@given(text=TEXTS, stops=STOPS, places=st.lists(st.integers(0, 40)))
def test_any_pieces_give_the_same_text(text: str, stops: list[str], places: list[int]) -> None:
    edges = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    pieces = [text[start:end] for start, end in pairwise(edges)]
    cut = StopStringTrimmer(stops)
    given_out = [cut.push(piece) for piece in pieces]
    assert "".join(given_out) + cut.flush() == expected(text, stops)
    assert (cut.found is not None) == any(stop in text for stop in stops)
    assert cut.found is None or cut.found in stops


@given(text=TEXTS, stops=STOPS)
def test_nothing_is_held_back_that_no_stop_string_can_begin_in(text: str, stops: list[str]) -> None:
    cut = StopStringTrimmer(stops)
    sure = "".join(cut.push(character) for character in text)
    held = cut.flush()
    assert held == "" or any(stop.startswith(held) for stop in stops)
    assert cut.found is not None or sure + held == text


def test_what_only_looked_like_a_stop_string_comes_later() -> None:
    cut = StopStringTrimmer(["\n\nUser:"])
    pieces = [cut.push(piece) for piece in ("one\n", "\nUs", "age\n\n", "User", ": x")]
    assert pieces == ["one", "", "\n\nUsage", "", ""]
    assert cut.flush() == ""
