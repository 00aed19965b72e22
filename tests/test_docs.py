"""The links of the documentation: every file and anchor exists, and every line number points to what it names.

    python tests/test_docs.py     corrects the line numbers
"""
import re

import pytest

from helpers import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]*)(?:#([^)\s]*))?\)")


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for text, target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), (text, target)
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), (text, target, anchor)
        if anchor and file.suffix == ".py":
            line = file.read_text(encoding="utf-8").splitlines()[int(anchor.removeprefix("L")) - 1]
            assert re.match(rf"(def|class) {text.strip('`')}\b", line), (text, target, anchor, line)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 14_000


def refreshed(page):
    """The text of a page with the present line numbers of what its links name."""
    def current(match):
        file = page.parent / match[2]
        if not match[2].endswith(".py") or not re.fullmatch(r"L\d+", match[3] or ""):
            return match[0]
        lines = file.read_text(encoding="utf-8").splitlines()
        found = [n for n, line in enumerate(lines, start=1) if re.match(rf"(def|class) {match[1].strip('`')}\b", line)]
        return f"[{match[1]}]({match[2]}#L{found[0]})" if found else match[0]
    return LINK.sub(current, page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(refreshed(path), encoding="utf-8")
