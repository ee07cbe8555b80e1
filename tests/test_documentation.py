"""The documentation builds without a warning and without a network, no link in it is dead, and its code has names."""

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from pplgen.models import collection
from typer.main import get_command

import pplgen
from pplgen.cli.main import app

ROOT = Path(__file__).parents[1]
WRITTEN = sorted(
    path
    for folder in (ROOT, *(ROOT / "docs" / name for name in (".", "about", "guides", "api")))
    for path in folder.glob("*.md")
)
"""Pages that somebody wrote; those of stories and tutorials are made at build time."""


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
    if any(find_spec(name) is None for name in ("sphinx", "myst_nb", "furo")):
        pytest.skip("needs pip install 'pplgen[docs]'")
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


def fenced(path, languages):
    """Blocks of a page in one of these languages."""
    return re.findall(rf"```(?:{languages})\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_on_pages_names_what_exists(path):
    for block in fenced(path, r"python|\{code-cell\} python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("pplgen"):
                assert all(hasattr(importlib.import_module(node.module), alias.name) for alias in node.names), block
            elif isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "pplgen":
                assert hasattr(pplgen, node.attr), f"pplgen.{node.attr}"
            elif isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "fit":
                assert hasattr(pplgen.Fit, node.attr) or node.attr in {"table", "path", "num_failed"}, node.attr


def parse(words):
    """Parse a command line without running it."""
    command, name, context = get_command(app), "pplgen", None
    while True:
        context = command.make_context(name, list(words), parent=context)
        if not hasattr(command, "resolve_command"):
            return
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_on_pages_have_such_options(path):
    lines = "\n".join(fenced(path, "console|sh")).splitlines()
    for line in lines:
        words = shlex.split(line.removeprefix("$ "), comments=True)
        place = next((index for index, word in enumerate(words) if word.endswith("pplgen")), None)
        if place is not None:
            parse(words[place + 1 :])
