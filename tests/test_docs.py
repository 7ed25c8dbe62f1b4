"""Every command of README.md and docs/ names a script that exists and settings that it takes.

A command stands in a block ```bash, or between backticks in a sentence. Each check is a function of
a page's path and text that returns its breaches; the tests give it the project's pages, and a page
with one planted breach. Commands are read and checked, not run: tests/test_docs_offline.py runs
those of blocks ```bash offline.
"""

import ast
import functools
import importlib
import importlib.util
import io
import re
import shlex
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from configs import UserError, check_ranges, declared, known_names, load
from model import GPTConfig
from nanostories.training.run_config import SHAPE

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "pretrained" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
USER_FOLDERS = {"data", "out", "stories", ".venv"}  # a reader's own, in the clone
CHECKOUTS = {"nanoGPT", "llama2.c", "llama.cpp"}  # a page clones them first
HUB_SETTINGS = ("--init_from", "--model", "--judge", "--embedder", "--baselines")  # owner/name
# Programs beside python, torchrun, pytest, make and git: their arguments are not checked.
OTHERS = {"cat", "cd", "curl", "echo", "export", "head", "ls", "mkdir", "ollama", "pip", "sbatch",
          "sha256sum", "source", "ssh", "tensorboard", "transformers", "uv", "vllm", "wandb",
          "llama-server", "llama-completion"}  # fmt: skip
# Names with two dashes that are settings of other programs.
OTHER_SETTINGS = {"help", "debug", "nproc_per_node", "nnodes", "rdzv_id", "rdzv_backend", "outtype",
                  "rdzv_endpoint", "standalone", "group"}  # fmt: skip
OTHER_FILES = {"to_gguf.py", "convert_hf_to_gguf.py"}  # in the exported folder, in llama.cpp

BLOCK = re.compile(r"^ *```([^\n`]*)\n(.*?)^ *```", re.M | re.S)


# ---- reading a page ----------------------------------------------------------------------------


def bash_blocks(text):
    """[(the words after ```, the commands, one a line)] of every fenced block in bash."""
    blocks = []
    for words, body in BLOCK.findall(text):
        lines = re.sub(r"\\\n\s*", "", body).splitlines()
        lines = [re.sub(r"(^|\s)#(\s.*|$)", "", line).strip() for line in lines]
        if words.split()[:1] == ["bash"]:
            blocks.append((words, [line for line in lines if line]))
    return blocks


def simple_commands(line):
    """The words of each command of a line of bash: `a x && b > y` is [a, x], [b, >, y]."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();|&<>")
    lexer.whitespace_split, lexer.commenters = True, ""
    commands, variables = [[]], {}
    for word in lexer:
        if set(word) <= set("();|&"):
            commands.append([])
            continue
        word = re.sub(r"\$\{?(\w+)\}?", lambda m: variables.get(m[1], m[0]), word)
        if not commands[-1] and (word in ("do", "done") or re.match(r"[A-Z_]+=", word)):
            continue  # a loop's words; VARIABLE=value before a command
        commands[-1].append(word)
        if len(commands[-1]) == 4 and commands[-1][0] == "for":  # for k in 0 ...: tried with 0
            variables[commands[-1][1]] = word
    return [words for words in commands if words and words[0] != "for"]


def commands(text):
    """The words of every command of a page, those of blocks first."""
    lines = [line for _, lines in bash_blocks(text) for line in lines]
    text = BLOCK.sub("", text)
    inline = re.findall(r"`((?:[A-Z_]+=\S+ )?(?:python|torchrun|pytest|make) [^`]*)`", text)
    for command in inline:  # `python -m eval.loss out/<run>`, `python prepare.py X`
        command = re.sub(r"<(\w+)>", r"\1", " ".join(command.split())).replace(" ...", "")
        lines.append(re.sub(r" X\b", " configs/ts_cpu.py", command))
    return [words for line in lines for words in simple_commands(line)]


def script_and_arguments(words):
    """("eval/loss.py" or a library's module, its arguments), or None of another program."""
    if words[0] == "torchrun":
        i = next(i for i, word in enumerate(words) if word.endswith(".py"))
        return words[i], words[i + 1 :]
    if words[0] != "python" or len(words) < 2 or words[1] == "-c":
        return None
    if words[1] != "-m":
        return words[1], words[2:]
    path = f"{words[2].replace('.', '/')}.py"
    return path if (ROOT / path).is_file() else words[2], words[3:]


# ---- the checks of commands --------------------------------------------------------------------


def settings_error(script, arguments):
    """What a script of the project would say of its arguments; None where it takes them."""
    arguments = [a for a in arguments if a not in ("--help", "-h", "--debug")]
    arguments = arguments[: arguments.index(">")] if ">" in arguments else arguments
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    if not hasattr(module, "Settings"):
        return "it takes no settings" if arguments else None
    # What its own call of `load` says that bare words set: a name, a tuple of names, or nothing.
    source = Path(module.__file__).read_text(encoding="utf-8")
    positional = re.search(r"load\(Settings.*positional=([^)]*\)?)\)", source)
    try:
        settings, _ = load(
            module.Settings, arguments, positional and ast.literal_eval(positional[1])
        )
        check_ranges(settings)
        if script == "train.py":
            GPTConfig(**{name: getattr(settings, name) for name in SHAPE})
    except (UserError, ValueError) as error:
        return str(error)


def wrong_command(words):
    """What is wrong with a command, by its program; None where nothing is."""
    if words[0] == "torchrun":
        with redirect_stderr(io.StringIO()) as said:
            try:
                get_args_parser().parse_args(words[1:])
            except SystemExit:
                return said.getvalue()
    if words[0] == "make":
        targets = re.findall(r"^([\w -]+):", (ROOT / "Makefile").read_text(), flags=re.M)
        unknown = {word for word in words[1:] if "=" not in word} - set(" ".join(targets).split())
        return f"no target {', '.join(unknown)}" if unknown else None
    if words[0] == "git":
        return None if words[1:2] == ["clone"] else "a reader needs no git but git clone"
    if script := script_and_arguments(words):
        path, arguments = script
        if (ROOT / path).is_file():
            return settings_error(path, arguments)
        file = path.endswith(".py")
        exists = Path(path).name in OTHER_FILES if file else importlib.util.find_spec(path)
        return None if exists else f"there is no {path}"
    known = words[0] in OTHERS | {"python", "pytest"}
    return None if known else f"an unknown program, {words[0]}; see OTHERS in tests/test_docs.py"


def wrong_commands(page, text):
    errors = ((words, wrong_command(words)) for words in commands(text))
    return [f"{page}: {' '.join(words)}: {error}" for words, error in errors if error]


def outside_paths(page, text):
    """Paths of commands that are not in the clone, nor made or cloned by the page before."""
    made, breaches = set(USER_FOLDERS), []
    top = {path.name for path in ROOT.iterdir() if path.is_dir()} - USER_FOLDERS
    for words in commands(text):
        if words[:2] == ["git", "clone"]:
            made.add(Path(words[-1]).name.removesuffix(".git"))
        for i, word in enumerate(words[1:], 1):
            setting, _, value = word.rpartition("=") if word[0] == "-" else ("", "", word)
            is_output = setting.startswith(("--out", "--folder")) or words[i - 1] in (">", "mkdir")
            for part in value.split(","):
                part = re.sub(r"^(instruct:|FILE:)", "", part)
                first, _, rest = part.partition("/")
                if re.match(r"\w+://|hub:|git@|/dev/null$", part) or " " in part:
                    continue
                if part[:1] in ("/", "~", "$") or ".." in Path(part).parts:
                    breaches.append(f"{page}: {part} is outside of the clone")
                elif is_output:
                    made.add(first)
                elif first in CHECKOUTS - made:
                    breaches.append(f"{page}: {part}: the page does not clone it before")
                elif first in top and rest:
                    if not any(ROOT.glob(part.partition("::")[0])):
                        breaches.append(f"{page}: there is no {part}")
                elif rest and first not in made and setting not in HUB_SETTINGS:
                    breaches.append(f"{page}: {part}: no command before makes {first}/")
    return breaches


# ---- the checks of the text --------------------------------------------------------------------


def anchors(text):
    """The anchors that GitHub gives a page's headings, and those in its HTML."""
    found = set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
    for title in re.findall(r"^#+ (.*)$", BLOCK.sub("", text), flags=re.M):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        slug = re.sub(r"[^\w -]", "", title.strip()).lower().replace(" ", "-")
        number = next(n for n in range(100) if (f"{slug}-{n}" if n else slug) not in found)
        found.add(f"{slug}-{number}" if number else slug)
    return found


def links(text):
    text = re.sub(r"`[^`]*`|\$\$.*?\$\$", "", BLOCK.sub("", text), flags=re.S)
    found = re.findall(r"\]\(\s*([^)\s]+)[^)]*\)", text)
    return found + re.findall(r"""(?:src|srcset|href)="([^"\s]+)""", text)


def broken_links(page, text):
    breaches = []
    for link in links(text):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if path and not (target.exists() and target.resolve().is_relative_to(ROOT)):
            breaches.append(f"{page}: {link}: there is no such file in the clone")
        elif anchor:
            there = text if not path else target.read_text(encoding="utf-8")
            if target.suffix == ".md" and anchor not in anchors(there):
                breaches.append(f"{page}: {link}: no such anchor")
    return breaches


@functools.cache
def file_names():
    folders = ("nanostories", "eval", "configs", "kernels", "benchmarks", "tests", "docs")
    files = [*ROOT.glob("*.py"), *(path for f in folders for path in (ROOT / f).rglob("*.py"))]
    return OTHER_FILES | {path.name for path in files}


def inline_code(text):
    return re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", BLOCK.sub("", text))


def missing_files(page, text):
    """Files between backticks, `eval/loss.py` or `hooks.py`, that are not in the clone."""
    breaches = []
    for code in inline_code(text):
        for path in re.findall(r"^[\w./-]+\.(?:py|txt|toml)$", code):
            if "/" in path and path.partition("/")[0] not in USER_FOLDERS:
                exists = (ROOT / path).exists() or Path(path).name in OTHER_FILES
            else:
                mine = path.endswith((".txt", ".toml")) or path.startswith("mine")
                exists = mine or Path(path).name in file_names()
            breaches += [] if exists else [f"{page}: there is no {path}"]
    return breaches


@functools.cache
def all_settings():
    benchmarks = {name for path in ROOT.glob("benchmarks/*.py") for name in declared(path)}
    return known_names() | benchmarks | OTHER_SETTINGS


def unknown_settings(page, text):
    """Settings between backticks, `--top_p=0.9`, that no script declares."""
    names = [n for code in inline_code(text) for n in re.findall(r"(?<![\w-])--([a-z]\w*)", code)]
    return [f"{page}: no script has --{name}" for name in names if name not in all_settings()]


OUTSIDE = re.compile(r"(?<![\w./…])(?:\.\./\w|/(?:work|home|root|Users|mnt)/)[\w./\[\]*-]*")


def outside_names(page, text):
    """Paths beside the clone, or of one computer, in help, messages, configs and prose."""
    if page.endswith(".md"):
        text = re.sub(r"""\]\([^)]*\)|(?:src|srcset|href)="[^"]*\"""", "", text)
    return [f"{page}: {name}" for name in OUTSIDE.findall(text)]


def foreign_blocks(page, text):
    """Blocks of a shell under another name than bash, which no other check would read."""
    names = [words.split()[0] for words, _ in BLOCK.findall(text) if words.split()]
    marks = [words for words, _ in bash_blocks(text) if words not in ("bash", "bash offline")]
    foreign = {"sh", "shell", "console", "zsh", "shell-session", "powershell"}
    return [f"{page}: ```{name}: call it bash" for name in [*names, *marks] if name in foreign] + [
        f"{page}: ```{words}: neither bash nor bash offline" for words in marks
    ]


# ---- the project keeps them --------------------------------------------------------------------

CHECKS = (wrong_commands, outside_paths, broken_links, missing_files, unknown_settings,
          foreign_blocks)  # fmt: skip


def named(path):
    return path.relative_to(ROOT).as_posix()


def text_of(path):
    return path.read_text(encoding="utf-8")


def test_they_are_read():
    every = [words for page in PAGES for words in commands(text_of(page))]
    scripts = [x for x in map(script_and_arguments, every) if x and (ROOT / x[0]).is_file()]
    assert len(scripts) > 80 and len({path for path, _ in scripts}) > 20
    assert ("train.py", ["configs/ts_33m.py"]) in scripts
    files = [x for page in PAGES for x in re.findall(r"`[\w/]+/[\w.]+\.(?:py|txt)`", text_of(page))]
    assert len(files + [link for page in PAGES for link in links(text_of(page))]) > 60


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_page_is_sound(page, check, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert check(named(page), text_of(page)) == []


def test_no_path_beside_the_clone_is_named():
    kinds = ("**/*.py", "**/*.toml", "**/*.txt", "**/*.md", "**/page.html", "**/sections.html",
             "**/*.js")  # fmt: skip
    folders = ("configs", "eval", "nanostories", "kernels", "benchmarks", "docs", "assets")
    files = [path for f in folders for kind in kinds for path in (ROOT / f).glob(kind)]
    files += [*ROOT.glob("*.py"), *ROOT.glob("*.toml"), *ROOT.glob("*.md"), ROOT / "Makefile"]
    names = {named(path): text_of(path) for path in files}
    breaches = [x for name in names for x in outside_names(name, names[name])]
    assert breaches == [] and len(names) > 100


# ---- and each check sees a breach --------------------------------------------------------------

SOUND = """# A page

[a script](train.py), [below](#running-it), <img src="assets/study.png">, `eval/loss.py`, `hooks.py`

## Running *it*

```bash offline
make setup
python prepare.py configs/storybook.py && python train.py configs/storybook.py \\
    --max_iters=3   # a comment
for k in 0 0.1; do python reward.py configs/reward_cat.py --kl_factor=$k --init_from=out/x; done
TRITON_INTERPRET=1 python train.py --source="stories/*.txt" --out_dir=mine
python sample.py --out_dir=mine --start=FILE:prompts.txt --json > stories.jsonl
head -c 1000 mine/few.txt > few.txt
```

```bash
git clone https://github.com/karpathy/nanoGPT
python -m benchmarks.training --nanogpt=nanoGPT
python -m eval.loss --init_from=roneneldan/TinyStories-33M --source=hub:owner/name
torchrun --standalone --nproc_per_node=8 train.py configs/ts_33m.py
pytest -m slow tests/test_story.py
```

`python -m eval.skills out/<run>` and `--top_p=0.9`.
"""
BREACHES = [
    (wrong_commands, "python prepare.py", "python prepares.py"),
    (wrong_commands, "eval.loss --init", "eval.losses --init"),
    (wrong_commands, "--max_iters=3", "--max_iter=3"),
    (wrong_commands, "--max_iters=3", "--max_iters=few"),
    (wrong_commands, "--max_iters=3", "--max_iters=-3"),
    (wrong_commands, "--max_iters=3", "--n_head=3"),  # of 128 channels
    (wrong_commands, "configs/storybook.py \\", "configs/story.py \\"),
    (wrong_commands, "--kl_factor=$k", "--kl_factor=$n"),
    (wrong_commands, "make setup", "make set-up"),
    (wrong_commands, "head -c 1000", "heads -c 1000"),
    (wrong_commands, "--nproc_per_node", "--nprocs_per_node"),
    (wrong_commands, "eval.skills out/<run>", "eval.skills --runs=out/<run>"),
    (outside_paths, "mine/few.txt", "../few.txt"),
    (outside_paths, "mine/few.txt", "/tmp/few.txt"),
    (outside_paths, "mine/few.txt", "other/few.txt"),
    (outside_paths, "FILE:prompts.txt", "FILE:~/prompts.txt"),
    (outside_paths, '"stories/*.txt"', '"instruct:../stories/*.txt"'),
    (outside_paths, "git clone https://github.com/karpathy/nanoGPT", ""),
    (outside_paths, "tests/test_story.py", "tests/test_tale.py"),
    (broken_links, "(train.py)", "(trains.py)"),
    (broken_links, "(train.py)", "(../elsewhere/train.py)"),
    (broken_links, "(train.py)", "(docs/none.md#there)"),
    (broken_links, "(train.py)", "(README.md#nowhere)"),
    (broken_links, "#running-it", "#running"),
    (broken_links, "study.png", "studies.png"),
    (missing_files, "eval/loss.py", "eval/losses.py"),
    (missing_files, "hooks.py", "hook.py"),
    (unknown_settings, "--top_p", "--topp"),
    (outside_names, "A page", "A page of ../shared/data"),
    (outside_names, "A page", "A page of /home/me/data"),
    (foreign_blocks, "```bash offline", "```sh"),
    (foreign_blocks, "```bash offline", "```bash of-line"),
]


@pytest.mark.parametrize("check, old, new", BREACHES)
def test_a_breach_is_seen(check, old, new, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert old in SOUND
    assert check("page.md", SOUND) == []
    assert len(check("page.md", SOUND.replace(old, new))) == 1
