"""Tables as LaTeX: booktabs, one file each, and one that takes all of them in."""

from __future__ import annotations

from .document import Document, Table

NEEDS = "% \\usepackage{booktabs}" + "\n"
LONG = NEEDS + "% \\usepackage{longtable}\n"
SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "±": r"$\pm$",
    "∞": r"$\infty$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "√": r"$\sqrt{}$",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"\textbar{}",
    "“": "``",
    "”": "''",
    "−": "$-$",
}
WIDE = 44  # letters from which a column is a paragraph


def latex(table: Table) -> str:
    """A table that stands by itself in a document with booktabs; a long one runs over pages."""
    columns = "".join(
        "r" if place in table.numbers else "p{6cm}" if any(len(row[place]) > WIDE for row in table.rows) else "l"
        for place in range(len(table.columns))
    )
    head = line(table.columns)
    body = "\n".join(line(row) for row in table.rows)
    caption = f"\\caption{{{escaped(table.caption)}}}\\label{{tab:{table.key}}}"
    if table.long:
        return (f"{LONG}\\begin{{longtable}}{{{columns}}}\n{caption}\\\\\n\\toprule\n{head}\n\\midrule\n\\endhead\n"
                f"\\bottomrule\n\\endfoot\n{body}\n\\end{{longtable}}\n")
    return (
        f"{NEEDS}\\begin{{table}}\n\\centering\\small\n{caption}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{head}\n\\midrule\n{body}\n\\bottomrule\n"
        "\\end{tabular}\n\\end{table}\n"
    )


def line(cells: tuple[str, ...]) -> str:
    return " & ".join(map(escaped, cells)) + r" \\"


def escaped(text: str) -> str:
    """Text as LaTeX reads it."""
    said = "".join(SPECIAL.get(letter, letter) for letter in text)
    return f"${said}$" if said[:1] == "-" and said[1:2].isdigit() and _number(said) else said


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def files(document: Document) -> dict[str, str]:
    """Name -> content of every file."""
    made = {f"{table.key}.tex": latex(table) for table in document.tables if table.rows}
    return made | {"all.tex": "".join(f"\\input{{{name.removesuffix('.tex')}}}\n" for name in made)}
