"""What the registry's scan flags by text, in what the registry ships."""

import re

import pytest

from harness.find import PACK

FLAGGED = {
    "eval or exec": r"\beval\(|\bexec\(",
    "environment": r"os\.environ|os\.putenv",
    "programs": r"\bsubprocess\b|os\.system|os\.popen|\bpty\.",
    "network": r"import socket|socket\.socket|\burllib\b|import requests|requests\.(get|post)|http\.client",
    "pickle": r"pickle\.loads?\(|\bmarshal\b|\bshelve\b",
    "runtime installation": r"\bpip install\b.*\bsubprocess\b|\bpip\.main\b|ensurepip",
    "hidden code": r"\bbase64\b|__import__\(|codecs\.decode",
}
SHIPPED = [PACK / "__init__.py", *sorted(PACK.glob("gcfg/**/*.py")), *sorted(PACK.glob("nodes/**/*.py"))]


@pytest.mark.parametrize("what", FLAGGED)
def test_nothing_is_flagged(what):
    found = [f"{file.relative_to(PACK)}:{number}: {line.strip()}" for file in SHIPPED
             for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
             if re.search(FLAGGED[what], line)]
    assert not found, "\n".join(found)


def test_the_environment_is_read_in_one_place():
    readers = [file.relative_to(PACK).as_posix() for file in SHIPPED if "getenv" in file.read_text(encoding="utf-8")]
    assert readers == ["gcfg/environment.py"]


def test_there_is_one_place_for_the_repositorys_address():
    placeholder = "https://example.com/address-of-the-repository"
    text = (PACK / "pyproject.toml").read_text(encoding="utf-8")
    assert text.count(placeholder) == 1
    assert placeholder in (PACK / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8")
    for file in (PACK / "README.md", *SHIPPED, *PACK.glob("web/**/*.md")):
        assert "github.com/gcfg" not in file.read_text(encoding="utf-8"), file
