"""A line of text as guidances, and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gcfg.guidance import UNCONDITIONAL
from gcfg.guidance.text import Prompt, parse, prompts_of, recipe, to_line


def test_the_example():
    assert parse("a cat AND a wizard :0.7 AND_NOT blurry :0.5 [0.2-0.8]") == (
        Prompt("a cat"), Prompt("a wizard", 0.7), Prompt("blurry", -0.5, 0.2, 0.8))


@pytest.mark.parametrize(("line", "expected"), [
    ("a cat", (Prompt("a cat"),)),
    ("  a cat [0.5-1] :2 ", (Prompt("a cat", 2.0, 0.5, 1.0),)),
    ("AND_NOT blurry", (Prompt("blurry", -1.0),)),
    ("a cat AND_PERP a dog :-0.5", (Prompt("a cat"), Prompt("a dog", -0.5, across=True))),
    ("SAND AND LAND", (Prompt("SAND"), Prompt("LAND"))),
    ("rock and roll", (Prompt("rock and roll"),)),
    ("a clock at 10:30 (big:1.2)", (Prompt("a clock at 10:30 (big:1.2)"),)),
    ('"rock AND roll :3" :0.5', (Prompt("rock AND roll :3", 0.5),)),
    ('a sign "STOP AND GO"', (Prompt('a sign "STOP AND GO"'),)),
    ("a cat\nAND a dog", (Prompt("a cat"), Prompt("a dog"))),
])
def test_lines(line, expected):
    assert parse(line) == expected


@pytest.mark.parametrize(("line", "message"), [
    ("", "There is no prompt"), ("a AND", "no prompt after AND"), ("a AND AND b", "no prompt after AND"),
    ("a AND_NOT :2", "has no prompt"), ("a :0.7x", "no weight such as"), ("a [0.2-]", "no window such as"),
    ("a [0.8-0.2]", "must satisfy"), ("a [0-2]", "must satisfy"), ("a :1 :2", "each given once"),
    ("AND_PERP a", "needs a prompt before it")])
def test_what_cannot_be_read_is_named(line, message):
    with pytest.raises(ValueError, match=message):
        parse(line)


numbers = st.floats(-20, 20).map(lambda x: float(f"{x:.6g}"))
progress = st.floats(0, 1).map(lambda x: float(f"{x:.6g}"))
text = st.one_of(st.text(min_size=1).map(str.strip).filter(bool),
                 st.lists(st.sampled_from(["AND", "AND_NOT", "AND_PERP", ":2", "[0-1]", '"', "\\", "cat"]), min_size=1)
                 .map(" ".join))


@st.composite
def prompt(draw):
    return Prompt(draw(text), draw(numbers), *sorted((draw(progress), draw(progress))))


@given(st.lists(prompt(), min_size=1, max_size=4))
def test_there_and_back(prompts):
    assert parse(to_line(prompts)) == tuple(prompts)


def test_guidances_of_a_line_and_back():
    line = "a cat AND a wizard :0.5 AND_NOT blurry :0.25 [0.2-0.8] AND_PERP fog :-0.5"
    made = recipe(parse(line), 8.0)
    assert [g.scale for g in made.guidances] == [8.0, 4.0, -2.0, -4.0]
    assert {g.reference.conditioning for g in made.guidances} == {UNCONDITIONAL}
    assert made.guidances[3].perpendicular_to == (made.guidances[0].prediction, made.guidances[0].reference)
    assert made.guidances[2].label == "blurry" and (made.guidances[2].start, made.guidances[2].end) == (0.2, 0.8)
    assert to_line(prompts_of(made.guidances, 8.0)) == line
    with pytest.raises(ValueError, match="other than 0"):
        prompts_of(made.guidances, 0.0)
