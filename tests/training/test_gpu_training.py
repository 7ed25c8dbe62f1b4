"""What of training only a GPU can show: compiled steps, CUDA graphs, the corpus there, no waits."""

import contextlib

import pytest
import torch
from tiny import settings_for

from eval.loss import groups_of_text, score
from nanostories.dataset.packing import PackedDataLoader
from nanostories.dataset.shards import Dataset
from nanostories.training import checkpoint
from train import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def trainer_for(data, out, **changes):
    same = {"device": "cuda", "gradient_accumulation_steps": 2, "max_iters": 8, "eval_interval": 4}
    return Trainer(settings_for(data, out, **same | changes))


@pytest.mark.parametrize("graphs", [False, True], ids=["launched", "graph"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_compiled_training_is_eager_training(data, tmp_path, monkeypatch, optimizer, graphs):
    """Evaluations in between, and nothing is compiled twice (evaluation compiles once itself)."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    how = {"compile": True, "cuda_graphs": graphs, "optimizer": optimizer}
    compiled = trainer_for(data, tmp_path / "compiled", **how)
    compiled.run()
    frames = torch._dynamo.utils.counters["frames"]["ok"]
    assert frames <= 2 and not torch._dynamo.utils.counters["graph_break"]
    eager = trainer_for(data, tmp_path / "eager", compile=False, optimizer=optimizer)
    eager.run()
    curves = [
        [line[name] for line in trainer.log.lines for name in ("loss", "val_loss") if name in line]
        for trainer in (compiled, eager)
    ]
    assert curves[0] == pytest.approx(curves[1], abs=2e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_waits_for_nothing(data, tmp_path, optimizer):
    trainer = trainer_for(data, tmp_path / "run", dtype="auto", optimizer=optimizer)
    for _ in range(3):
        trainer.step(1e-3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer.step(1e-3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_corpus_lies_on_the_gpu(data):
    tokens = Dataset(data, "train")
    there, here = (
        PackedDataLoader(tokens, 511, 64, 128, 3, 5, device=name) for name in ("cuda", "cpu")
    )
    assert there.device_tokens.is_cuda and here.device_tokens is None
    away = PackedDataLoader(tokens, 511, 64, 128, 3, 5, device="cuda")
    away.device_tokens = None  # as where it does not fit
    for i in (0, len(there) - 1):
        for name in ("tokens", "targets", "positions", "start"):
            expected = getattr(here[i], name)
            assert torch.equal(getattr(there[i], name).cpu(), expected), name
            assert torch.equal(getattr(away[i], name).cpu(), expected), name


def test_nan_holds_the_weights(data, tmp_path):
    trainer = trainer_for(data, tmp_path / "run", compile=False)
    before = [p.clone() for p in trainer.model.parameters()]
    trainer.model.ln_f.weight.register_hook(lambda gradient: gradient * float("nan"))
    trainer.step(1e-2)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert int(trainer.compute.bad) == 1


def test_a_checkpoint_holds_what_the_gpu_held(data, tmp_path):
    trainer = trainer_for(data, tmp_path / "run", dtype="auto")
    trainer.run()
    saved = checkpoint.read_tensors(tmp_path / "run" / "latest", "model.safetensors")
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(saved[name], weight.cpu()), name
    assert all(copy.is_pinned() for copy in trainer.saver.copies.values())


def test_the_evaluation_of_a_text_runs_there(data, tmp_path):
    trainer = trainer_for(data, tmp_path / "run", max_iters=1)
    trainer.run()
    totals = []
    for device in ("cuda", "cpu"):
        found = checkpoint.load_run(tmp_path / "run", device=device)
        tokenizer = found.tokenizer
        groups = groups_of_text(iter(["Once upon a time.", "The end. " * 90]), tokenizer, 1)
        totals.append(score(found.model, groups, tokenizer.eot, 4, contextlib.nullcontext))
    assert totals[0] == pytest.approx(totals[1], rel=1e-3)
