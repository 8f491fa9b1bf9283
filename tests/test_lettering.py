"""Text on sheets."""

import pytest
from PIL import Image, ImageDraw

from polytrain.lettering import draw_text, fitted, legible, text_width, wrapped


def test_a_long_name_ends_in_an_ellipsis_within_its_width():
    text = fitted("golden retriever on a skateboard", 13, 100)
    assert text.endswith("…")
    assert text.startswith("golden")
    assert text_width(text, 13) <= 100


def test_a_short_name_stays_as_it_is():
    assert fitted("cat", 13, 100) == "cat"


@pytest.mark.parametrize("name", ["Привет", "ελληνικά", "العربية", "שלום", "ქართული", "naïve café"])
def test_names_in_many_scripts_are_written_as_they_are(name):
    assert legible(name) == name


def test_a_character_that_no_font_has_is_written_as_its_code_point():
    assert legible("a\U0010fffd") == "a\\U0010fffd"
    assert legible("\ue000b") in ("\\ue000b", "\ue000b")  # private use: some fonts have it


def test_line_breaks_become_spaces_and_invisible_marks_go():
    assert legible("one\ntwo\u200b\tthree") == "one two three"


def test_a_reason_is_broken_into_lines_at_spaces():
    lines = wrapped("not an image that is read here (JPEG, PNG, WebP)", 12, 120, 9)
    assert " ".join(lines) == "not an image that is read here (JPEG, PNG, WebP)"
    assert all(text_width(line, 12) <= 120 for line in lines)


def test_what_does_not_fit_the_lines_ends_in_an_ellipsis():
    lines = wrapped("word " * 50, 12, 120, 3)
    assert len(lines) == 3
    assert lines[-1].endswith("…")


def test_a_word_wider_than_the_line_is_broken():
    lines = wrapped("w" * 60, 12, 100, 20)
    assert "".join(lines) == "w" * 60


def test_text_is_drawn_where_it_is_asked_for():
    picture = Image.new("L", (200, 40), 255)
    draw_text(ImageDraw.Draw(picture), (100, 10), "right", 14, fill="black", anchor="ra")
    left, _, right, _ = picture.point(lambda value: 255 - value).getbbox()
    assert left > 50
    assert right <= 101
