"""Reading the project's documents: their sections, tables, code blocks and links."""

import re
from pathlib import Path

from support.constants import ROOT

README = ROOT / "README.md"
CONTRACT = ROOT / "docs/contract.md"
REDIS = ROOT / "docs/redis.md"
DOCUMENTS = (
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/*.md")),
    ROOT / "clients/conformance/README.md",
    ROOT / "clients/python/README.md",
    ROOT / "clients/typescript/README.md",
    ROOT / "examples/README.md",
)


def fenced(document: Path, language: str) -> list[str]:
    """Return the code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)


def named_blocks(document: Path, language: str) -> dict[str, str]:
    """Return the code blocks in a language whose first line is a comment with the name of a file, by these names."""
    blocks = fenced(document, language)
    return {found[1]: code for code in blocks if (found := re.match(r"(?:#|//) (\S+\.\w+)\n", code))}


def section(document: Path, title: str) -> str:
    match = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", document.read_text(), re.MULTILINE | re.DOTALL)
    assert match is not None, f"{document} has no section {title}"
    return match[1]


def table(document: Path, title: str) -> list[list[str]]:
    """Return the rows of the first table in a section, without its head."""
    lines = re.search(r"^\|.*?(?=^[^|]|\Z)", section(document, title), re.MULTILINE | re.DOTALL)
    assert lines is not None
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[0].strip().splitlines()]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path) -> list[str]:
    """Return the links to files, and to headings in documents, that lead nowhere."""
    broken = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", document.read_text()):
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    return broken
