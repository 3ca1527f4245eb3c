"""What both pages share: a stranger's text on one line."""

from clipkit.report.pages import environment, one_line, write_page


def test_a_text_stands_on_one_line_without_what_does_not_print():
    assert one_line("a\n b\u202ec\x00 d", 300) == "a b c d"
    assert one_line("x" * 5000, 300) == "x" * 299 + "…"
    assert one_line("x" * 300, 300) == "x" * 300


def test_what_is_filled_in_is_escaped():
    assert environment().from_string("{{ text }}").render(text="<b>") == "&lt;b&gt;"


def test_a_page_replaces_the_one_before_whole_and_leaves_nothing_else(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("old")
    write_page(page, "<p>ö</p>")
    assert page.read_bytes() == "<p>ö</p>".encode()
    assert list(tmp_path.iterdir()) == [page]
