import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.dataset.queries.wikitext import BREAK, plain_text


def words(wikitext: str) -> str:
    """The plain text with BREAK shown as / and runs of white space as one space."""
    return " ".join(plain_text(wikitext).replace(BREAK, " / ").split())


@pytest.mark.parametrize(
    ("wikitext", "plain"),
    [
        ("A '''bold''' and ''slanted'' word", "A bold and slanted word"),
        ("[[dog]]s and [[House cat|cats]]", "dogs and cats"),
        ("[[w:Dog|a dog]], [[:Category:Dogs]], [[2001: A Space Odyssey]]", "a dog, Category:Dogs, 2001: A Space Odyssey"),
        ("x[[Category:Dogs]][[fr:Chien]][[zh-min-nan:Káu]][[simple:Dog]]y", "xy"),
        ("[[File:a.jpg|thumb|200px|left|alt=none|A [[dog]] [sic] barks]] Text", "A dog [sic] barks Text"),
        ("[[Image:a.jpg|100x200px]]Text", "Text"),
        ("a {{b|c={{d}}|[[e]]}} f", "a / f"),
        ("a{{!}}b }} c {{d", "a / b }} c {{d"),
        ("a\n{| class=x\n| cell\n{|\n| inner\n|}\n|}\nb", "a / b"),
        ("a\n| left over cell\n! another\nb", "a b"),
        ("a {| no table |} b", "a {| no table |} b"),
        ('cat<ref name="x" />s sleep<ref>{{cite|a}} note</ref>.', "cats sleep."),
        ("a <ref>never closed", "a never closed"),
        ("a <math>x^2</math> b <source lang='c'>int i;</source> c", "a b c"),
        ("a<!-- no --> b <!-- to the end", "a b"),
        ("one<br/>two <span style='x'>three</span> H<sub>2</sub>O", "one two three H2O"),
        ("[http://a.example the label] http://b.example/x [//c.example]", "the label / "),
        ("caf&eacute; &amp; bar&nbsp;x &lt;ref&gt;", "café & bar x <ref>"),
        ("== History ==\ntext\n=== More === \n__NOTOC__", "text"),
        ("<gallery mode=x>\nFile:a.jpg|A dog\nImage:b.jpg\n</gallery>", "A dog"),
        ("* one\n# two\n; three : four", "* one # two ; three : four"),
    ],
)
def test_what_a_reader_sees_is_kept_and_nothing_else(wikitext: str, plain: str) -> None:
    assert words(wikitext) == plain.strip()


def test_a_mark_in_the_text_itself_parts_nothing() -> None:
    assert BREAK not in plain_text(f"a{BREAK}b")


MARKS = [
    "{{",
    "}}",
    "{|",
    "|}",
    "[[",
    "]]",
    "[",
    "]",
    "|",
    "\n",
    "=",
    "''",
    "<ref>",
    "</ref>",
    "<!--",
    "-->",
    "<ref/>",
    "http://",
    "File:",
    "a",
    "&",
]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(MARKS), max_size=40))
def test_any_jumble_of_marks_is_read_to_its_end(marks: list[str]) -> None:
    whole = "".join(marks)
    told = plain_text(whole)
    assert len(told) <= len(whole) + whole.count("[[") * 2 + whole.count("}") + whole.count("//")
    assert not re.search(r"<ref>.*</ref>|<!--|\{\{[^{}]*\}\}", told)


HOSTILE = [
    "{{",
    "[[",
    "<ref>",
    "</ref>",
    "<!--",
    "[[File:a|",
    "{|\n",
    "<a ",
    "''",
    "&",
    " \n",
    "|",
    "\n|}",
    "[[a|[",
    "[[a|] ",
    ":{|",
    "[//",
    "=",
    "=  ",
]
BEFORE = {"[": "[http://", "thumb=": "[[File:a|", "1x": "[[File:a|", "=\t": "="}


@pytest.mark.parametrize("unit", [*HOSTILE, *BEFORE])
def test_the_time_is_linear_on_hostile_text(unit: str) -> None:
    def seconds(count: int) -> float:
        text = BEFORE.get(unit, "") + unit * count + "]]"[: 2 * (unit in BEFORE)]
        best = []
        for _ in range(2):
            start = time.process_time()
            plain_text(text)
            best.append(time.process_time() - start)
        return min(best)

    assert seconds(40_000) < 8 * seconds(10_000) + 0.05
