"""python -m eval.side_by_side: the paper's beginnings, completed by a tiny run."""

import json
import sys

import pytest
import tiny
from tiny import settings_for

from configs import ROOT, UserError
from eval import side_by_side
from eval.harness import beginnings


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["side_by_side.py", "--device=cpu", *map(str, words)])
    side_by_side.main()


def test_the_beginnings():
    texts = beginnings(str(ROOT / "eval" / "prompts" / "side_by_side.txt"))
    assert len(texts) == len(side_by_side.NAMES)
    for text, end in zip(texts, ("Sara and", "it would say", "said Jack.", "I don't"), strict=True):
        assert text.endswith(end)


def test_the_command(data, tmp_path, monkeypatch, capsys):
    """With room for two of them; the nearest story shares words with the completion."""
    settings = settings_for(data, tmp_path / "run", block_size=128, max_iters=20)
    tiny.train(settings)
    call(monkeypatch, tmp_path / "run", "--max_new_tokens=20")
    result = json.loads((tmp_path / "run" / "eval" / "side_by_side.json").read_text())
    names = [row["name"] for row in result["stories"]]
    assert names and set(names) < set(side_by_side.NAMES)
    for row in result["stories"]:
        assert 0 <= row["rouge_nearest"] <= 1 and bool(row["rouge_nearest"]) == bool(
            row["nearest_text"]
        )
    assert any(row["rouge_nearest"] for row in result["stories"])
    assert "--- the pumpkin" in capsys.readouterr().out


def test_a_published_model_needs_data(monkeypatch, tmp_path):
    with pytest.raises(UserError):
        call(monkeypatch, "--init_from=nowhere/none")
