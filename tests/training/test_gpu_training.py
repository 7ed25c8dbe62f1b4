"""What of training only a GPU can show: compiled steps, CUDA graphs, the corpus there, no waits."""

import contextlib

import pytest
import tiny
import torch
from tiny import losses, metrics, settings_for

from eval.loss import groups_of_text, score
from nanostories.dataset.packing import PackedDataLoader
from nanostories.dataset.shards import Dataset
from nanostories.training import checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def train_for(data, out, **changes):
    same = {"device": "cuda", "gradient_accumulation_steps": 2, "max_iters": 8, "eval_interval": 4}
    return tiny.train(settings_for(data, out, **same | changes))


@pytest.mark.parametrize("graphs", [False, True], ids=["launched", "graph"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_compiled_training_is_eager_training(data, tmp_path, monkeypatch, optimizer, graphs):
    """Evaluations in between, and nothing is compiled twice (evaluation compiles once itself)."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    how = {"compile": True, "cuda_graphs": graphs, "optimizer": optimizer}
    train_for(data, tmp_path / "compiled", **how)
    frames = torch._dynamo.utils.counters["frames"]["ok"]
    assert frames <= 2 and not torch._dynamo.utils.counters["graph_break"]
    train_for(data, tmp_path / "eager", compile=False, optimizer=optimizer)
    curves = [
        [line[key] for line in metrics(tmp_path / name) for key in ("loss", "val_loss")
         if key in line]
        for name in ("compiled", "eager")
    ]  # fmt: skip
    assert curves[0] == pytest.approx(curves[1], abs=2e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_waits_for_nothing(data, tmp_path, optimizer):
    def watched(train_step, model, optimizers, scaler, guard, batches, step, *rest):
        if step >= 3:
            torch.cuda.set_sync_debug_mode("error")
        try:
            return train_step(model, optimizers, scaler, guard, batches, step, *rest)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with tiny.each_step(watched):
        train_for(data, tmp_path / "run", dtype="auto", optimizer=optimizer, max_iters=6)


def test_the_corpus_lies_on_the_gpu(data):
    tokens = Dataset(data, "train")
    there, here = (
        PackedDataLoader(tokens, 511, 64, 128, 3, 5, device=name) for name in ("cuda", "cpu")
    )
    assert there.device_tokens.is_cuda and here.device_tokens is None
    away = PackedDataLoader(tokens, 511, 64, 128, 3, 5, device="cuda")
    away.device_tokens = None  # as where it does not fit
    for i in (0, len(there) - 1):
        for name in ("tokens", "targets", "positions", "doc_start"):
            expected = getattr(here[i], name)
            assert torch.equal(getattr(there[i], name).cpu(), expected), name
            assert torch.equal(getattr(away[i], name).cpu(), expected), name


def test_nan_holds_the_weights(data, tmp_path):
    """A loss that is nan from the first step on: every checkpoint would hold the first weights."""
    steps, spoil = [], tiny.poison(range(1, 9), "loss")

    def recorded(train_step, model, *args):
        steps.append([p.detach().clone() for p in model.parameters()])
        return spoil(train_step, model, *args)

    with tiny.each_step(recorded):
        state = train_for(data, tmp_path / "run", compile=False, skip_nonfinite=True)
    assert state["skipped"] == 8 and losses(tmp_path / "run") == []
    for weights in steps:
        assert all(torch.equal(a, b) for a, b in zip(weights, steps[0], strict=True))


def test_a_checkpoint_holds_what_the_gpu_held(data, tmp_path):
    models = []

    def recorded(train_step, model, *args):
        models.append(model)
        return train_step(model, *args)

    with tiny.each_step(recorded):
        train_for(data, tmp_path / "run", dtype="auto", compile=False)
    saved = checkpoint.read_tensors(tmp_path / "run" / "latest", "model.safetensors")
    for name, weight in models[0].state_dict().items():
        assert torch.equal(saved[name], weight.cpu()), name
    saver = checkpoint.CheckpointSaver(tmp_path / "pinned")
    saver.save(models[0], [], {"step": 1, "best_step": 1, "kept_steps": []})
    saver.wait()
    assert all(copy.is_pinned() for copy in saver.copies.values())


def test_the_evaluation_of_a_text_runs_there(data, tmp_path):
    train_for(data, tmp_path / "run", max_iters=1)
    totals = []
    for device in ("cuda", "cpu"):
        found = checkpoint.load_run(tmp_path / "run", device=device)
        tokenizer = found.tokenizer
        groups = groups_of_text(iter(["Once upon a time.", "The end. " * 90]), tokenizer, 1)
        totals.append(score(found.model, groups, tokenizer.eot, 4, contextlib.nullcontext))
    assert totals[0] == pytest.approx(totals[1], rel=1e-3)
