"""A run exported for others, and the one that comes with the project."""

import hashlib
import json

import pytest
import tiny
import torch
from safetensors import safe_open
from tiny import settings_for

from configs import ROOT, UserError
from nanostories.training import checkpoint, export

BOX = ROOT / "pretrained"


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "some"
    tiny.train(settings_for(data, out, max_iters=4))
    return out


@pytest.fixture(scope="module")
def exported(run):
    out = run.parent / "small"
    export.main([str(run), "--to=run", f"--out={out}"])
    return out


def test_an_exported_run_is_a_run(run, exported):
    whole, small = checkpoint.load_run(run), checkpoint.load_run(exported, "best")
    for name, weight in whole.model.state_dict().items():
        rounded = small.model.state_dict()[name]
        assert rounded.dtype == torch.float32 and torch.equal(rounded, weight.bfloat16().float())
    assert small.tokenizer.same_as(whole.tokenizer) and small.max_length == whole.max_length
    assert checkpoint.data_folder(exported) == checkpoint.data_folder(run)
    assert (exported / "metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()
    sizes = [(out / "latest" / "model.safetensors").stat().st_size for out in (run, exported)]
    assert sizes[1] < 0.6 * sizes[0]


def test_it_starts_another_run(exported, data, tmp_path):
    settings = settings_for(data, tmp_path / "next", init_from=str(exported), max_iters=1)
    tiny.train(settings)
    assert checkpoint.steps_of(tmp_path / "next") == [1]


def test_it_cannot_be_resumed_and_says_so(exported, data):
    before = sorted(path for path in exported.rglob("*"))
    settings = settings_for(data, exported, resume=True, max_iters=8)
    with pytest.raises(UserError, match=r"without the optimizer.s state.*--init_from") as error:
        tiny.train(settings)
    assert "\n" not in str(error.value)
    assert sorted(path for path in exported.rglob("*")) == before


def test_only_runs_are_exported_as_runs(run, tmp_path):
    export.main([str(run), f"--out={tmp_path / 'hf'}"])
    words = f"--init_from={tmp_path / 'hf'}", "--to=run", f"--out={tmp_path / 'again'}"
    with pytest.raises(UserError, match="is no run"):
        export.main([*words])
    assert not (tmp_path / "again").exists()


# ---- pretrained/ -------------------------------------------------------------------------------


def test_the_boxed_model_is_small_and_whole():
    loaded, [weights] = checkpoint.load_run(BOX), BOX.glob("checkpoints/*/model.safetensors")
    assert weights.stat().st_size <= 10_000_000
    with safe_open(weights, "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
    assert loaded.model.config.n_layer == 4 and loaded.max_length == 512
    names = {path.name for path in BOX.iterdir()}
    assert {"README.md", "config.json", "tokenizer.json", "env.json", "metrics.jsonl"} <= names


def test_its_card_says_what_was_measured():
    card = (BOX / "README.md").read_text(encoding="utf-8")
    results = json.loads((ROOT / "results" / "box" / "loss.json").read_text())
    digest = hashlib.sha256((BOX / "latest" / "model.safetensors").read_bytes()).hexdigest()
    assert results["checkpoint"]["sha256"] == digest
    half = results["bits_per_byte_95"]
    assert f"**{results['bits_per_byte']:.3f} ± {half:.3f} bits per byte**" in card
    assert "CDLA-Sharing-1.0" in card and card.count("\n> Once upon a time") >= 10
