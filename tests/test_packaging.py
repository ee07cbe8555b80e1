"""What is installed, and that it is one thing."""

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pplgen
from pplgen import models

ROOT = Path(__file__).parents[1]
_WITHOUT_PATH = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_listed():
    """Explicit lists go stale in silence: a folder of modules that is not listed would be missing from the wheel."""
    folders = {ROOT / "pplgen", *(path.parent for path in (ROOT / "pplgen").rglob("*.py"))}
    named = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    named -= {name for name in named if name.startswith("pplgen.models")}
    shared = {path.parent for path in (ROOT / "models").rglob("*.py")}
    named |= {".".join(("pplgen", *folder.relative_to(ROOT).parts)) for folder in shared}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == named


@pytest.mark.parametrize(("package", "folder"), [("pplgen", ROOT / "pplgen"), ("pplgen.models", ROOT / "models")])
def test_every_file_that_is_no_module_is_packaged(package, folder):
    """A page's template or a table that is not listed would be missing from the wheel."""
    patterns = PROJECT["tool"]["setuptools"]["package-data"][package]
    others = {
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and "__pycache__" not in path.parts
    }
    assert others
    assert {path for path in others if not any(path.match(pattern) for pattern in patterns)} == set()


def test_toolkit_and_collection_come_from_one_checkout():
    assert Path(pplgen.__file__).resolve().parents[1] == Path(models.__file__).resolve().parents[1]


def test_type_checkers_find_the_installation(tmp_path):
    """They read no import hooks, which the default editable installation consists of."""
    script = tmp_path / "script.py"
    script.write_text("import pplgen\nfrom pplgen.models.vae import VAE\n")
    command = [sys.executable, "-m", "mypy", "--follow-imports=skip", str(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_clone_has_its_collection_without_an_editable_installation():
    """``python -m pplgen`` in a clone imports the toolkit from its folder, wherever the installed one is."""
    program = (
        "import sys\n"
        "sys.meta_path = [finder for finder in sys.meta_path if 'ditable' not in repr(finder)]\n"
        "import pplgen.models\n"
        "print(pplgen.models.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert Path(done.stdout.strip()) == ROOT / "models" / "__init__.py", done.stderr


def test_what_users_install_is_no_clone():
    """In the folder above one, Python would take the clone for an empty package."""
    commands = [line for line in (ROOT / "README.md").read_text().splitlines() if ".venv/bin/pip install" in line]
    assert ["-e" in line.split() for line in commands] == [False, True]


def test_nothing_installs_a_top_level_models(tmp_path):
    program = "import importlib.util, sys; sys.exit(importlib.util.find_spec('models') is not None)"
    assert subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=_WITHOUT_PATH, check=False).returncode == 0


def test_version_is_told_once():
    assert PROJECT["project"]["version"] == pplgen.__version__


def test_public_names_exist_and_import_late():
    for name in pplgen.__all__:
        assert getattr(pplgen, name) is not None
    program = "import sys, pplgen; sys.exit(bool({'torch', 'pyro'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    # a submodule of the same name would hide the function once it is imported
    modules = {path.stem for path in (ROOT / "pplgen").glob("*.py")}
    assert not modules & set(pplgen.__all__)


def test_documented_modules_that_moved_are_found_by_their_old_names():
    for old, new in pplgen._MOVED.items():
        sys.modules.pop(f"pplgen.{old}", None)
        with pytest.warns(FutureWarning, match=f"pplgen.{old} is now pplgen.{new}"):
            module = importlib.import_module(f"pplgen.{old}")
        names = importlib.import_module(f"pplgen.{new}").__all__
        assert names
        assert all(getattr(module, name) is getattr(importlib.import_module(f"pplgen.{new}"), name) for name in names)
    assert importlib.import_module("pplgen.plots").plot_pairs
    assert importlib.import_module("pplgen.posterior").to_datatree


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("em", "climb_from", "em_from_starts"),
        ("ppca", "LinearCodes", "FactorParameters"),
        ("switching", "with_axes", ""),
    ],
)
def test_renamed_references_keep_their_former_names(module, old, new):
    home = importlib.import_module(f"pplgen.exact.{module}")
    with pytest.warns(FutureWarning, match=f"{old} is now {new}"):
        assert getattr(home, old) is getattr(home, new or "insert_batch_axes")
    with pytest.raises(AttributeError):
        home.nothing  # noqa: B018
