"""The documentation builds without a warning and without a network, and no link in it is dead."""

import os
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from pplgen.models import collection

import pplgen

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("sphinx", "myst_nb", "furo")), reason="needs pip install 'pplgen[docs]'"
)


class Page(HTMLParser):
    """What a page links to, what it loads, and what can be linked to in it."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loaded, self.targets = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.targets.update(filter(None, (given.get("id"), given.get("name"))))
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag in ("img", "script") and given.get("src"):
            self.loaded.append(given["src"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon"):
            self.loaded.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages, by their paths; code in them is not run."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", ROOT / "docs", folder / "html"]
    environment = {name: value for name, value in os.environ.items() if name != "PPLGEN_DOCS_EXECUTE"}
    done = subprocess.run(
        [*command, "-d", folder / "doctrees"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return {path.resolve(): Page(path) for path in (folder / "html").rglob("*.html")}


def test_links_lead_somewhere(site):
    dead = []
    for path, page in site.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists() or (parts.fragment and unquote(parts.fragment) not in site[target].targets):
                dead.append(f"{path.name}: {link}")
    assert dead == []


def test_nothing_is_loaded_from_elsewhere(site):
    assert {source for page in site.values() for source in page.loaded if urlsplit(source).scheme} == set()


def test_every_story_tutorial_and_public_name_has_its_place(site):
    pages = {path.name for path in site}
    assert {f"{entry.name}.html" for entry in collection()} <= pages
    assert {path.with_suffix(".html").name for path in (ROOT / "tutorials").glob("[0-9]*.py")} <= pages
    targets = set().union(*(page.targets for page in site.values()))
    assert {f"pplgen.{name}" for name in pplgen.__all__} <= targets
    assert {f"pplgen.models.{entry.class_name}" for entry in collection()} <= targets
