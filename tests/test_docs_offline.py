"""Blocks ```bash offline of README.md and docs/ run as they stand, each page in a clone of its own.

Without a network, with nothing downloaded before, and with BUDGETS that make a page take a minute.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_docs import PAGES, ROOT, bash_blocks, named, text_of

pytestmark = pytest.mark.slow

# What is added to a script's own arguments: the last word for a setting wins.
BUDGETS = {
    "prepare.py": "--stories=300 --max_stories=300 --workers=1",
    "train.py": "--max_iters=2 --max_minutes=0 --eval_stories=8",
    "train.py --resume": "--max_iters=4 --max_minutes=0",
    "sample.py": "--max_new_tokens=20",
    "reward.py": "--max_iters=1 --max_minutes=0 --max_new_tokens=30",
    "reward.py --resume": "--max_iters=2 --max_minutes=0",
    "synonyms.py": "--workers=1",
    "eval.judge": "--num_prompts=2 --num_samples=1",
    "eval.skills": "--questions=8",
    "eval.instruct": "--prompts=4 --max_new_tokens=30",
    "eval.diversity": "--num_prompts=4 --max_new_tokens=30 --workers=1",
    "eval.interpret": "--stories=8 --head_stories=4",
    "eval.vocabulary": "--num_samples=1",
    "eval.reward": "--stories=4 --max_new_tokens=30",
    "benchmarks.training": "--sizes=64-2 --vocabs=256 --tokens=1024 --rounds=1",
    "benchmarks.generation": "--only=64-8-4096 --tokens=20 --rounds=1",
    "benchmarks.kernels": "--tokens=64 --rounds=1",
    "benchmarks.kernel_compile": "--arch=90 --only=attention,D=16,bfloat16",
    "benchmarks.prepare": "--mb=0.1 --rounds=1 --tokenizers=bpe",
    "benchmarks.memorization_index": "--sizes=0",
    "pytest": "--collect-only",
}
# Stands in .venv/bin for python: adds the budget, and ends a server once it runs.
PYTHON = f"""#!{sys.executable}
import signal, subprocess, sys
arguments = sys.argv[1:]
script = arguments[1] if arguments[:1] == ["-m"] else "".join(arguments[:1])
resumed = " --resume" if "--resume" in arguments else ""
budget = {BUDGETS!r}.get(script + resumed, "").split()
command = [{sys.executable!r}, *arguments, *budget]
if "--serve" not in arguments:
    sys.exit(subprocess.call(command))
server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
answers = any("http://" in line for line in server.stdout)
server.send_signal(signal.SIGINT)
sys.exit(not answers or server.wait() not in (0, 128 + signal.SIGINT))
"""


def run_page(text, folder):
    """Run the offline blocks of a page in a copy of the clone; returns its output, errors last."""
    clone = folder / "nanostories"
    left_out = (".*", "data", "out", "__pycache__")
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(*left_out))
    tools = clone / ".venv" / "bin"
    tools.mkdir(parents=True)
    (tools / "activate").touch()
    (tools / "ruff").symlink_to(Path(sys.executable).with_name("ruff"))
    for name, content in {"python": PYTHON, "pytest": "#!/bin/sh\npython -m pytest $*\n"}.items():
        (tools / name).write_text(content)
        (tools / name).chmod(0o755)
    (tools.parent / "ready").touch()  # newer than pyproject.toml: `make setup` is done
    lines = ["set -eo pipefail", "trap 'echo failed: $BASH_COMMAND' ERR"]
    for words, block in bash_blocks(text):
        lines += block if "offline" in words else []
    nowhere = "http://127.0.0.1:9"
    environment = {k: v for k, v in os.environ.items() if not re.match("HF_|NLTK_|TIKTOKEN_", k)}
    environment |= {"PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(folder)}
    environment |= {"http_proxy": nowhere, "https_proxy": nowhere, "no_proxy": "127.0.0.1"}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)], cwd=clone, env=environment, text=True, timeout=900,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_offline_commands_of_a_page_run(page, tmp_path):
    code, output = run_page(text_of(page), tmp_path)
    assert code == 0, output[-3000:]


PAGE = """
```bash
python sample.py --init_from=gpt2     # a network is needed: not run
```

```bash offline
for n in 1 2; do python prepare.py configs/storybook.py \\
    --seed=$n --out=data/$n; done     # a comment
```

```bash offline
wc -l data/2/manifest.json
{}
```
"""


def test_a_run_and_its_page_on_a_tiny_budget(tmp_path):
    commands = "make story\npython sample.py --out_dir=out/storybook --serve --port=0\nmake test"
    code, output = run_page(PAGE.format(commands), tmp_path)
    assert code == 0, output[-3000:]


FAILING = ["python sample.py --out_dir=out/none", "python -m eval.loss --init_from=gpt2 | cat"]


@pytest.mark.parametrize("command", FAILING)
def test_a_page_is_run_to_its_first_failure(command, tmp_path):
    code, output = run_page(PAGE.format(f"{command}\necho further"), tmp_path)
    assert "data/2/manifest.json" in output and "failed: " in output and code
    assert "further" not in output
