"""The README's first promise, kept by the commands themselves: slow, so only in make test-slow."""

import json
import subprocess
import sys
import time

import pytest

from configs import ROOT
from nanostories.dataset import storybook_parser


def script(name, *arguments, cwd):
    command = [sys.executable, str(ROOT / name), str(ROOT / "configs" / "storybook.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_storybook_to_stories(tmp_path):
    """Data, tokenizer, training and telling: 90 % of 200 stories keep their facts.

    In 2,000 steps rather than `make story`'s 3 minutes, about as many on two quiet cores, so that
    a busy machine takes longer but learns the same.
    """
    script("prepare.py", cwd=tmp_path)
    began = time.monotonic()
    log = script("train.py", "--max_minutes=0", "--max_iters=2000", cwd=tmp_path)
    minutes = (time.monotonic() - began) / 60
    many = ("--out_dir=out/storybook", "--num_samples=200", "--json")
    told = script("sample.py", *many, cwd=tmp_path)
    stories = [json.loads(line)["text"] for line in told.splitlines()]
    assert len(stories) == 200 and len(set(stories)) > 180
    errors = [storybook_parser.find_errors(story) for story in stories]
    good = sum(not one for one in errors)
    print(log.splitlines()[-1], f"{good} of 200 stories without a fault, {minutes:.1f} minutes")
    assert good >= 180, [one for one in errors if one][:10]
