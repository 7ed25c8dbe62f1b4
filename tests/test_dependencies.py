"""pyproject.toml declares every library that the project imports, and none that it does not use.

`make setup`, `uv sync` and `pip install .` all read it, so that they agree.
"""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# {name in an import: distribution} where these differ.
DISTRIBUTIONS = {"yaml": "pyyaml", "xdist": "pytest-xdist"}
LLAMA_CPP = {"conversion", "convert_hf_to_gguf"}  # assets/to_gguf.py runs in a clone of it
TOOLS = {"ruff", "pytest-xdist", "setuptools"}  # commands; nothing imports them


def project():
    """{path: source} of every Python file of the clone."""
    files = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
    skipped = {"data", "out", "build"}
    files = [p for p in files if p.parts[0] not in skipped and p.parts[0][0] != "."]
    return {path.as_posix(): (ROOT / path).read_text(encoding="utf-8") for path in files}


def declared():
    """{group: names of distributions}: "run" is what the scripts need, the rest is optional."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = {"run": table["project"]["dependencies"]} | table["dependency-groups"]
    groups |= table["project"]["optional-dependencies"]
    return {group: {name_of(line) for line in lines} for group, lines in groups.items()}


def name_of(requirement):
    return re.match(r"[\w-]+", requirement)[0].lower().replace("_", "-")


def imported(source):
    """(distribution, may be missing): imports in functions and `try` are of optional libraries."""
    tree = ast.parse(source)
    lazy = ast.FunctionDef | ast.Try
    optional = {id(n) for outer in ast.walk(tree) if isinstance(outer, lazy)
                for n in ast.walk(outer)}  # fmt: skip
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        for name in {name.partition(".")[0] for name in names}:
            yield DISTRIBUTIONS.get(name, name.lower().replace("_", "-")), id(node) in optional


def undeclared(files, groups):
    """Imports that no group declares, or only one that the script's users need not have."""
    modules = {part for path in files for part in Path(path).with_suffix("").parts}
    own = {name.replace("_", "-") for name in modules | LLAMA_CPP | set(sys.stdlib_module_names)}
    anything, breaches = set().union(*groups.values()), []
    for path, source in files.items():
        free = path.startswith(("tests/", "benchmarks/"))
        for name, optional in set(imported(source)):
            if name not in own | (anything if free or optional else groups["run"]):
                breaches.append(f"{path} imports {name}")
    return breaches


def unused(files, groups):
    """Declared distributions that stand in no source, as an import or by name."""
    text = "\n".join(files.values()).lower()
    names = {name for name, _ in (pair for source in files.values() for pair in imported(source))}
    return [
        name for name in set().union(*groups.values()) - names - TOOLS
        if f'"{name.replace("-", "_")}"' not in text
    ]  # fmt: skip


def test_every_import_is_declared():
    assert undeclared(project(), declared()) == []


def test_every_declared_library_is_used():
    assert unused(project(), declared()) == []


def test_versions_are_pinned_once():
    """One version each, wherever it stands; triton's is the one that torch brings."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = [table["project"]["dependencies"], *table["dependency-groups"].values()]
    groups += table["project"]["optional-dependencies"].values()
    lines = {line for group in groups for line in group}
    assert {line for line in lines if not re.fullmatch(r"[\w-]+==[\d.]+", line)} == {
        "triton; sys_platform == 'linux'"
    }
    assert len({name_of(line) for line in lines}) == len(lines)


def test_pip_install_builds_a_package_of_dependencies_alone(tmp_path):
    """No module called `model` or `eval` lands in a user's site-packages."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for folder in ("eval", "nanostories", "data", "out"):  # a flat layout, as the clone's
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "train.py").touch()
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    done = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    [wheel] = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [metadata] = [name for name in names if name.endswith("/METADATA")]
        fields = Parser().parsestr(archive.read(metadata).decode())
    assert [name for name in names if ".dist-info/" not in name] == []
    run = {name_of(x) for x in fields.get_all("Requires-Dist") if "extra ==" not in x}
    assert run == declared()["run"]


GROUPS = {"run": {"torch", "pyyaml"}, "test": {"pytest"}, "logging": {"wandb"}}
SOUND = {
    "model.py": "import os\nimport torch.nn\nimport yaml\nimport eval.loss\n",
    "eval/loss.py": "from model import GPT\ntry:\n    import wandb\nexcept ImportError:\n    0\n",
    "tests/test_model.py": "import pytest\n",
}


@pytest.mark.parametrize(
    "check, path, source",
    [
        (undeclared, "model.py", "import pandas\n"),
        (undeclared, "model.py", "def f():\n    import pandas\n"),
        (undeclared, "model.py", "import wandb\n"),  # optional, yet imported always
        (undeclared, "eval/loss.py", "import pytest\n"),  # the tests', not a script's
        (undeclared, "tests/test_model.py", "from scipy import stats\n"),
        (unused, "model.py", "import torch\n"),
    ],
)
def test_a_breach_is_seen(check, path, source):
    assert check(SOUND, GROUPS) == []
    assert len(check(SOUND | {path: source}, GROUPS)) == 1
