"""The links of the documentation: every file and anchor exists, and every line number points to what it names."""
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
