"""Test CSV and TSV files: a stray quotation mark never hides rows, and a quoted text of many lines stays one document."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrift.core.errors import UserError
from fedrift.data.tables import read_delimited

TOPICS = ("food", "space", "sport")
WIDTHS = {
    "text, label": lambda n: [f"words of {n}", TOPICS[n % 3]],
    "label, text": lambda n: [TOPICS[n % 3], f"words of {n}"],
    "id, text, label": lambda n: [str(n), f"words of {n}", TOPICS[n % 3]],
    "id, text": lambda n: [str(n), f"words of {n}"],
    "text, number": lambda n: [f"words of {n}", str(n % 3)],
    "text, date": lambda n: [f"words of {n}", f"2020-{1 + n // 28:02d}-{1 + n % 28:02d}"],
    "title, text, label": lambda n: [f"title {n} a", f"words of {n}", TOPICS[n % 3]],
}


def read(text: str, separator: str = ","):
    return read_delimited("t.csv", text, separator, "text")


def table(columns: str, separator: str, quoted: dict[int, str], count: int = 60) -> str:
    """Return a table of plain cells in which the texts of some rows are replaced without quoting."""
    names = columns.split(", ")
    rows = [WIDTHS[columns](n) for n in range(count)]
    for number, text in quoted.items():
        rows[number][names.index("text")] = text
    return "\n".join(separator.join(row) for row in [names, *rows]) + "\n"


@pytest.mark.parametrize("separator", [",", "\t"])
@pytest.mark.parametrize(("first", "last"), [(5, 40), (5, 6), (0, 59), (30, 33)])
@pytest.mark.parametrize("columns", WIDTHS)
def test_two_stray_quotes_never_hide_the_rows_between_them(columns, first, last, separator):
    said = table(columns, separator, {first: '"words begin', last: 'words end"'})
    with pytest.raises(UserError, match=f"line {first + 2}: .* line {last + 2} ") as caught:
        read(said, separator)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('text,label\na,x\n"b,y\nc,x\n', "row that starts in line 3: a quotation mark is opened but never closed"),
        ('text,label\na,x\n"b" and c,y\nc,x\n', "row that starts in line 3: a quoted text continues after its closing quotation mark"),
        ('text,label\na,x\n"b,y\nc "quoted, x",y\n', "row that starts in line 3: a quoted text continues"),
        ("text,label\na\n", "line 2: the row has fewer cells"),
        ("text,label\na,x\nb, c,x\n", "line 3: the row has more cells"),
        ("text\n\na\n\nb,c\n", "line 5: the row has more cells"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(text, words):
    with pytest.raises(UserError, match=words):
        read(text)


LETTER = (
    "Dear John,\nI write, as I said, about food.\nsport, or no sport\n\nYours,\nA. B.",
    "1, 2\n3, 4\nfive",
    "a list:\n- food\n- space\nsport",
    'He said ""no"",\nand left.',
    "price,1\nand more\nrest",
    "In the year of\n1999, we left",
    "roses are red, violets\nsugar is sweet, and\nso are, you",
    "x\n" * 30,
)


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("text", LETTER)
def test_a_quoted_text_of_many_lines_is_one_document(columns, text):
    names, found, _ = read(table(columns, ",", {7: f'"{text}"', 20: f'"{text}"'}))
    assert names == columns.split(", ")
    assert len(found["text"]) == 60
    assert found["text"][7] == found["text"][20] == text.replace('""', '"')


LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\r\0")
CELLS = st.tuples(st.text(LETTERS, max_size=12), st.sampled_from(TOPICS))


@given(st.lists(CELLS, min_size=1, max_size=8), st.sampled_from([",", "\t"]), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_the_output_of_a_csv_writer_is_read_back(rows, separator, quoting):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator, quoting=quoting)
    writer.writerows([("text", "label"), *rows])
    _, found, _ = read(out.getvalue(), separator)
    assert list(zip(found["text"], found["label"], strict=True)) == rows


def test_every_kind_of_line_end_ends_a_row():
    for end in ("\n", "\r\n", "\r"):
        assert read(f"text,label{end}a,x{end}{end}b,y")[1] == {"text": ["a", "b"], "label": ["x", "y"]}


def test_a_single_text_of_many_lines_has_a_note_if_rows_are_ambiguous():
    rows = [f"a thing {word},words of {word}" for word in "abcdefghijklmnopqrstuvwxyzabcdefghijklmnop"]
    long = ['lone,"words', *["of prose"] * 8, 'end"']
    assert "extends from line 44 to line 53" in read("\n".join(["title,text", *rows, *long]))[2][0]
    assert read("\n".join(["title,text", *rows]))[2] == []
