"""README's table of models claims nothing that docs/MODELS.md, written by a test run, does not say."""

import re

from harness.find import PACK


def rows(path, head):
    """The cells of the table that begins with ``head``."""
    lines = (PACK / path).read_text().split(f"| {head} |")[1].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:lines.index("")]]


def test_every_model_of_the_readme_is_one_of_the_table():
    found = {row[0]: row[1:5] for row in rows("docs/MODELS.md", "family")}
    for names, works, _ in rows("README.md", "models"):
        for name in re.sub(r" \(.*\)", "", names).split(", "):
            families = [cells for family, cells in found.items() if family == name or family.startswith(f"{name} ")]
            assert families and works == "yes", name
            assert all(cell.partition(",")[0] == "yes" for cells in families for cell in cells), name
