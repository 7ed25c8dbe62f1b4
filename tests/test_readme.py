"""Every command of the README names a script that is there and settings that it takes."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from configs import load

ROOT = Path(__file__).resolve().parents[1]
# Not of this repository, or with arguments of their own.
OTHERS = ("nltk.downloader", "ts_cpu.to_gguf", "benchmarks.prepare", "benchmarks.checkpoint_save",
          "benchmarks.memorization_index")  # fmt: skip


def readme_commands():
    """(module, arguments) of each python and torchrun command, indented or between backticks."""
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)
    lines = re.findall(r"^    (.*\b(?:python|torchrun) .*)$", text, flags=re.M)
    lines += [" ".join(x.split()) for x in re.findall(r"`((?:python|torchrun) [^`]*)`", text)]
    for line in lines:
        for command in re.split(r"&&|;|\| |> ", re.sub(r"\s#.*", "", line).replace("$k", "0")):
            words = shlex.split(command)
            if "python" in words:
                words = words[words.index("python") + 1 :]
                words = words[1:] if words[0] == "-m" else words
            elif "torchrun" in words:
                words = words[next(i for i, word in enumerate(words) if word.endswith(".py")) :]
            else:
                continue
            yield words[0].removesuffix(".py").replace("/", "."), words[1:]


COMMANDS = [x for x in readme_commands() if x[0] not in OTHERS and "X" not in x[1]]


def test_they_are_read():
    modules = [module for module, _ in COMMANDS]
    assert len(COMMANDS) > 80 and len(set(modules)) > 20
    assert ("train", ["configs/ts_33m.py"]) in COMMANDS


@pytest.mark.parametrize("module, arguments", COMMANDS, ids=lambda x: x if type(x) is str else "")
def test_a_readme_command_is_understood(module, arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    script = importlib.import_module(module)
    # What its own call of `load` says that bare words set: a name, a tuple of names, or nothing.
    source = Path(script.__file__).read_text(encoding="utf-8")
    positional = re.search(r"load\(Settings.*positional=([^)]*\)?)\)", source)
    load(script.Settings, arguments, positional and ast.literal_eval(positional[1]))


def test_its_files_are_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    paths = re.findall(r"`([\w/]+/[\w.]+\.(?:py|txt))`", text)
    paths += [
        link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith(("http", "#"))
    ]
    assert len(paths) > 60
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_its_anchors_are_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.*)$", text, flags=re.M)
    anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
    anchors |= set(re.findall(r'<a id="([^"]+)">', text))
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors
