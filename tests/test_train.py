"""Training end to end on a small storybook: the golden curve, resume, fine-tuning, schedules."""

import itertools
import json
import math
import resource
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import tiny
import torch
from tiny import losses, settings_for

import eval.loss
import prepare
import train
from configs import UserError
from kernels import attention_backward, backend, cross_entropy, mlp, tile
from model import GPT, GPTConfig
from nanostories.dataset.packing import make_loaders, open_data
from nanostories.dataset.shards import Dataset
from nanostories.training import checkpoint, device, optim, run_config
from nanostories.training.optim import make_optimizers, orthogonal
from nanostories.training.schedule import get_lr, rows_of_step, steps_in_an_epoch
from train import Settings

# Recorded on a CPU; torch 2.11 and 2.13 agree on every digit. A change of grammar, tokenizer,
# model, batches, optimizer or schedule shows here, and is recorded anew if it was meant.
GOLDEN = {
    "adamw": [6.2423, 5.7262, 5.3803, 5.2659, 5.3032, 5.2754, 5.2236],
    "muon": [6.2423, 5.7152, 5.3560, 5.2548, 5.2898, 5.2383, 5.1679],
    "muon, rotary": [6.2384, 5.7229, 5.3321, 5.1630, 5.1498, 5.0034, 4.9296],
}


@pytest.mark.parametrize("name", ["adamw", "muon", "muon, rotary"])
def test_golden_loss_curve(data, tmp_path, name):
    optimizer, _, rotary = name.partition(", ")
    changes = {"positions": "rope", "gelu": "erf"} if rotary else {}
    tiny.train(settings_for(data, tmp_path / "run", optimizer=optimizer, **changes))
    curve = losses(tmp_path / "run")
    assert curve[0] == pytest.approx(math.log(512), abs=0.1)
    assert curve[::5] + curve[-1:] == pytest.approx(GOLDEN[name], abs=2e-3)


@pytest.mark.parametrize(
    "attn, loss",
    [
        ("math", "torch"),
        pytest.param("triton", "recompute", marks=pytest.mark.slow),
        pytest.param("triton", "chunks", marks=pytest.mark.slow),
        pytest.param("triton", "epilogue", marks=pytest.mark.slow),
    ],
)
def test_golden_loss_curve_with_every_kernel(data, tmp_path, monkeypatch, attn, loss):
    """The curve above came from torch's own attention and loss."""
    large = {"BLOCK": 256, "STEP": 256, "num_warps": 4, "num_stages": 2}
    for module, name in ((tile, "tiles"), (attention_backward, "one_pass_tiles")):
        monkeypatch.setattr(module, name, lambda *_: large)  # the interpreter is quicker with few
    monkeypatch.setattr(cross_entropy, "choose_loss", lambda *_: loss)
    monkeypatch.setattr(train, "validate", lambda *_: None)
    tiny.train(settings_for(data, tmp_path / "run", attn=attn))
    curve = losses(tmp_path / "run")
    assert curve[::5] + curve[-1:] == pytest.approx(GOLDEN["adamw"], abs=2e-3)


def test_the_residual_in_bfloat16_learns_as_well(data, tmp_path):
    curves = []
    for name, residual in (("float32", False), ("bfloat16", True)):
        out = tmp_path / name
        tiny.train(settings_for(data, out, dtype="bfloat16", bfloat16_residual=residual))
        curves.append(losses(out))
    assert curves[0] != curves[1]
    # At every step but one: rounding may lead to a batch whose loss stands out.
    assert np.sort(np.abs(np.subtract(*curves)))[-2] < 0.05


def test_a_run_with_the_fused_mlp(data, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "validate", lambda *_: None)
    settings = settings_for(data, tmp_path / "run", fused_mlp=True, max_iters=2)
    with mock.patch.object(mlp, "launch", wraps=mlp.launch) as launches:
        tiny.train(settings)
    assert launches.call_count == 2 * 2 * settings.n_layer  # forward and backward, each step
    tiny.train(replace(settings, fused_mlp=False, out_dir=str(tmp_path / "other")))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "other"), abs=1e-4)


def test_the_fused_mlp_is_refused_where_triton_cannot_run(data, tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "interpreted", lambda: False)
    settings = settings_for(data, tmp_path / "run", fused_mlp=True, device="cpu")
    with pytest.raises(UserError, match=r"^fused_mlp cannot run: .* a CUDA GPU, not cpu; leave it"):
        run_config.check(settings)
    run_config.check(replace(settings, fused_mlp=False))


def test_a_run_folder_holds_everything(data, tmp_path):
    out = tmp_path / "run"
    state = tiny.train(settings_for(data, out, max_iters=4, eval_interval=2))
    names = {path.name for path in out.iterdir()}
    assert names >= {"config.json", "tokenizer.json", "env.json", "metrics.jsonl", "loss.png",
                     "samples.txt", "latest", "best", "checkpoints"}  # fmt: skip
    assert (out / "latest").readlink().name == "4"
    assert len(list((out / "checkpoints").iterdir())) <= 2
    assert (out / "samples.txt").read_text().count("--- step") == 2
    evaluations = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in evaluations if "val_loss" in line][-1]
    val = Dataset(data, "val")
    nats = last["val_loss"] * val.tokens
    assert last["val_bpb"] == pytest.approx(nats / math.log(2) / (val.bytes + val.stories))
    assert state["max_length"] == 128
    found = checkpoint.load_run(out)
    assert found.tokenizer.vocab_size == found.model.config.vocab_size == 512
    assert not any(name.startswith(("_orig_mod", "module")) for name in found.model.state_dict())


def test_accumulation_is_one_large_batch(data, tmp_path):
    """Weighted by real tokens: 4 micro-batches of one row give the gradient of one batch of 4."""
    curves = []
    for name, size, steps in (("large", 4, 1), ("small", 1, 4)):
        settings = settings_for(data, tmp_path / name, max_iters=5, batch_size=size,
                                gradient_accumulation_steps=steps)  # fmt: skip
        tiny.train(settings)
        curves.append(losses(tmp_path / name))
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_stays_near_float32(data, tmp_path, dtype):
    tiny.train(settings_for(data, tmp_path / "run", max_iters=10, dtype=dtype))
    tiny.train(settings_for(data, tmp_path / "full", max_iters=10))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "full"), abs=0.05)
    weights = checkpoint.read_tensors(tmp_path / "run" / "latest", "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_loss_on_the_story_alone(tmp_path, monkeypatch):
    out = prepare.prepare(
        prepare.Settings(
            source="instruct:storybook", tokenizer="bpe", vocab_size=512, stories=300,
            val_fraction=0.1, out=str(tmp_path / "data"), workers=1,
        )
    )  # fmt: skip
    for loss_on in ("all", "story"):
        settings = settings_for(str(out), tmp_path / loss_on, loss_on=loss_on, max_iters=3)
        settings = replace(settings, block_size=400, row_tokens=800)
        tiny.train(settings)
    data = Dataset(out, "val")
    loaded = checkpoint.load_model(tmp_path / "story")
    model, tokenizer = loaded.model, loaded.tokenizer
    # What the model is judged by is what it is trained on: the story's tokens and its end.
    targets = data.tokens - int((data.answers - 1).sum())
    nats = sum(-model_log_p(model, data.story(i), data.answers[i]) for i in range(data.stories))
    lines = (tmp_path / "story" / "metrics.jsonl").read_text().splitlines()
    last = [json.loads(line) for line in lines if "val_loss" in line][-1]
    assert last["val_loss"] == pytest.approx(nats / targets, rel=1e-4)
    stories = [tokenizer.decode(data.story(i)[a:]) for i, a in enumerate(data.answers)]
    size = sum(len(story.encode()) + 1 for story in stories)
    assert last["val_bpb"] == pytest.approx(nats / math.log(2) / size, rel=1e-4)
    # eval.loss says the same of the run, and of its data as a text.
    monkeypatch.setattr(sys, "argv", ["eval.loss", str(tmp_path / "story")])
    eval.loss.main()
    found = json.loads((tmp_path / "story" / "eval" / "loss.json").read_text())
    assert (found["loss_on"], found["tokens"], found["bytes"]) == ("story", targets, size)
    assert found["loss"] == pytest.approx(last["val_loss"], rel=1e-4)
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--loss_on=all"])
    eval.loss.main()
    found = json.loads((tmp_path / "story" / "eval" / "loss.json").read_text())
    assert (found["loss_on"], found["tokens"]) == ("all", data.tokens)
    # Instructions are read if not learned: the pace is that of all tokens.
    tokens = [checkpoint.read_state(tmp_path / name)["tokens"] for name in ("all", "story")]
    assert tokens[0] == tokens[1] > 0
    # The story told on the way is told to an instruction.
    prompt = tokenizer.decode(data.prompt(0)[1:])
    assert prompt in (tmp_path / "story" / "samples.txt").read_text()


def model_log_p(model, ids, answer):
    """The log-probability of a story from token `answer` on, and of its end."""
    ids = torch.tensor([*ids.tolist(), int(ids[0])])
    with torch.no_grad():
        log_p = model.eval()(ids[None, :-1])[0].log_softmax(-1)
    return log_p.gather(1, ids[1:, None])[answer - 1 :].sum().item()


def test_fine_tuning_starts_from_the_run(data, tmp_path):
    tiny.train(settings_for(data, tmp_path / "base"))
    origin = dict.fromkeys(vars(Settings()), "default")
    settings = settings_for(data, tmp_path / "tuned", init_from=str(tmp_path / "base"), max_iters=3)
    settings = run_config.complete(replace(settings, n_layer=4, n_head=16, n_embd=768), origin)
    assert (settings.n_layer, settings.n_embd) == (2, 32)
    tiny.train(settings)
    assert losses(tmp_path / "tuned")[0] < losses(tmp_path / "base")[10]


def test_a_fine_tuned_run_generates_as_long_stories_as_its_base(data, tmp_path):
    """Also where its own stories are shorter."""
    base, source = tmp_path / "base", tmp_path / "short.txt"
    tiny.train(settings_for(data, base, max_iters=1))
    texts = [f"Tom has {i} hats." for i in range(40)]
    source.write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    options = {"tokenizer": str(base), "workers": 1, "val_fraction": 0.2}
    options |= {"source": str(source), "out": str(tmp_path / "short")}
    short = prepare.prepare(prepare.Settings(**options))
    tuned = tmp_path / "tuned"
    tiny.train(settings_for(str(short), tuned, init_from=str(base), max_iters=1))
    assert checkpoint.load_run(base).max_length == checkpoint.load_run(tuned).max_length == 128
    tiny.train(settings_for(str(short), tuned, resume=True, max_iters=2))
    assert checkpoint.load_run(tuned).max_length == 128
    tiny.train(settings_for(str(short), tmp_path / "own", max_iters=1))
    assert checkpoint.load_run(tmp_path / "own").max_length < 40


def test_max_minutes_counts_time_on_steps_only(data, tmp_path, monkeypatch):
    """With a clock of our own: a step takes 10 s, an evaluation 1,000 s; 2 minutes are 12 steps."""
    clock, validate = [0.0], train.validate
    monkeypatch.setattr(train, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def slow_step(train_step, *args):
        clock[0] += 10
        return train_step(*args)

    def slow_validate(*args):
        clock[0] += 1000
        return validate(*args)

    monkeypatch.setattr(train, "validate", slow_validate)
    with tiny.each_step(slow_step):
        state = tiny.train(settings_for(data, tmp_path / "run", max_iters=0, max_minutes=2.0,
                                        eval_interval=5, schedule="linear",
                                        warmup_iters=1))  # fmt: skip
    assert state["step"] == 12 and state["seconds"] == pytest.approx(120)
    rates = [line["lr"] for line in tiny.metrics(tmp_path / "run") if "lr" in line]
    assert rates == pytest.approx([1e-2 * (1 - i / 12) for i in range(12)])


@pytest.mark.parametrize(
    "factor, grow_iters, sizes",
    [
        (4, 6, [1, 1, 1, 2, 2, 2, 4, 4]),
        (6, 7, [1, 1, 2, 2, 4, 4, 4, 6]),  # to 6 by way of 1, 2 and 4
        (8, 2, [2, 4, 8, 8]),  # too few steps for every size
        (1, 5, [1, 1, 1, 1, 1, 1]),
        (4, 0, [4, 4, 4]),
    ],
)
def test_the_rows_of_a_growing_step(factor, grow_iters, sizes):
    settings = Settings(batch_size=3, gradient_accumulation_steps=factor, grow_iters=grow_iters)
    ranges = [rows_of_step(settings, step) for step in range(len(sizes))]
    assert [(last - first) // 3 for first, last in ranges] == sizes
    assert all(a[1] == b[0] for a, b in itertools.pairwise([(0, 0), *ranges]))  # no row twice
    for rows in (1, 4, 10, 1000):
        steps = steps_in_an_epoch(settings, rows)
        assert rows_of_step(settings, steps)[0] >= rows > rows_of_step(settings, steps - 1)[0]


def test_schedules():
    settings = Settings(learning_rate=1.0, min_lr=0.1, warmup_iters=10)
    assert get_lr(settings, 0, 0) == pytest.approx(0.1)
    assert get_lr(settings, 4, 0) == pytest.approx(0.5)
    assert get_lr(settings, 50, 0.5) == pytest.approx(0.55)
    assert get_lr(settings, 99, 1.0) == pytest.approx(0.1)
    assert get_lr(settings, 99, 7.0) == pytest.approx(0.1)
    assert get_lr(replace(settings, schedule="linear"), 50, 0.25) == pytest.approx(0.775)
    assert get_lr(replace(settings, schedule="constant"), 50, 0.9) == pytest.approx(1.0)


def test_every_parameter_is_optimized_once_and_only_matrices_decay():
    model = GPT(GPTConfig(300, 16, 2, 2, 32))
    for optimizer in ("adamw", "muon"):
        optimizers = make_optimizers(model, Settings(optimizer=optimizer))
        groups = [group for each in optimizers for group in each.param_groups]
        mine = [id(p) for group in groups for p in group["params"]]
        assert sorted(mine) == sorted(id(p) for p in model.parameters())
        decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
        blocks = {id(p) for block in model.h for p in block.parameters() if p.ndim == 2}
        assert decayed == blocks


def test_each_group_has_its_own_learning_rate():
    model = GPT(GPTConfig(300, 16, 2, 2, 32))
    settings = Settings(optimizer="muon", muon_lr_scale=0.5, embedding_lr_scale=2.0)
    scales = {}
    for optimizer in make_optimizers(model, settings):
        for group in optimizer.param_groups:
            scales |= {id(p): group["lr_scale"] for p in group["params"]}
    for name, p in model.named_parameters():
        embedding = name in ("wte.weight", "wpe.weight")
        assert scales[id(p)] == (2.0 if embedding else 0.5 if p.ndim == 2 else 1.0), name


@pytest.mark.parametrize("bfloat16, rounding", [(False, 1e-4), (True, 2e-2)])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 40), (2, 40, 8)])
def test_orthogonal_brings_singular_values_near_one(shape, bfloat16, rounding, monkeypatch):
    """In either dtype, whichever this machine would take."""
    monkeypatch.setattr(optim, "computes_in_bfloat16", lambda device: bfloat16)
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    singular = torch.logspace(0, -1.5, 8)
    got = orthogonal(u * singular @ v)
    assert got.shape == shape
    values = torch.linalg.svdvals(got)
    assert values.min() > 0.6 and values.max() < 1.25
    # The directions stay: U^T got V is diagonal and positive.
    turned = u.mT @ got @ v.mT
    diagonal = turned.diagonal(dim1=-2, dim2=-1)
    assert (turned - diagonal.diag_embed()).abs().max() < rounding and diagonal.min() > 0


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n_head": 3}, "n_embd 32 is not a multiple of n_head 3"),
        ({"positions": "rope", "n_head": 32}, "rope needs an even head size, not 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"gradient_accumulation_steps": 10**6}, "rows is too large: lower gradient_accumulation"),
        ({"grad_clip": -1.0}, "grad_clip must be 0 or more, not -1.0"),
        ({"max_iters": -5}, "max_iters must be 0 or more, not -5"),
        ({"dropout": 1.5}, "dropout must be at least 0 and below 1"),
        ({"save_steps": "lag"}, "save_steps must be log or nothing, not 'lag'"),
        ({"schedule": "cosin"}, "schedule must be cosine, linear or constant, not 'cosin'"),
        ({"optimizer": "sgd"}, "optimizer must be adamw or muon, not 'sgd'"),
        ({"attn": "flash"}, "attn must be one of auto, triton, sdpa, math, not 'flash'"),
        ({"device": "cuda:77"}, "device 'cuda:77' cannot be used"),
        ({"dtype": "int8"}, "dtype must be auto, float32, bfloat16 or float16, not 'int8'"),
        ({"row_tokens": 64}, "row_tokens 64 is less than block_size 128"),
        ({"loss_on": "answer"}, "loss_on must be all or story, not 'answer'"),
        ({"loss_on": "story"}, "loss_on=story needs Instruct's records"),
        ({"dataset": "data/nowhere"}, "no data in 'data/nowhere'; make it with: python prepare.py"),
    ],
)
def test_errors_leave_no_run_folder(data, tmp_path, changes, message):
    settings = settings_for(data, tmp_path / "run", **changes)
    with pytest.raises(UserError) as error:
        run_config.check(settings)
        tiny.train(settings)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def flip(data):
    return data[:9] + bytes([data[9] ^ 1]) + data[10:]


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda data: data[:-2], "bytes where manifest.json says"),
        (flip, "does not match the sha256 in manifest.json"),
    ],
)
def test_damaged_data_is_refused(data, tmp_path, damage, message):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    shard = copy / "train_000.bin"
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(UserError) as error:
        tiny.train(settings_for(str(copy), tmp_path / "run"))
    assert message in str(error.value) and "train_000.bin" in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_run_is_never_overwritten(data, tmp_path):
    settings = settings_for(data, tmp_path / "run", max_iters=1)
    tiny.train(settings)
    with pytest.raises(UserError, match="holds a run already"):
        run_config.check(settings)


def test_another_tokenizer_is_refused(data, tmp_path):
    tiny.train(settings_for(data, tmp_path / "base", max_iters=1))
    other = tmp_path / "bytes"
    prepare.prepare(prepare.Settings(source="storybook", tokenizer="bytes", stories=50,
                                     val_fraction=0.1, out=str(other), workers=1))  # fmt: skip
    settings = settings_for(str(other), tmp_path / "run", init_from=str(tmp_path / "base"))
    with pytest.raises(UserError, match="has another tokenizer than"):
        tiny.train(settings)
    with pytest.raises(UserError, match=f"and train.py --tokenizer={tmp_path}/base$"):
        tiny.train(replace(settings, tokenizer="bpe"))
    assert not (tmp_path / "run").exists()


def test_steps_compile_once_into_one_graph(data, tmp_path, monkeypatch):
    """No graph break, and no second compilation while steps and stories change."""
    frames = []

    def compiled_once(graph, inputs):
        frames.append(graph)
        return graph.forward

    def compile(model, **how):
        assert how["dynamic"] is False
        return real(model, backend=compiled_once, fullgraph=True, dynamic=False)

    real = torch.compile
    monkeypatch.setattr(torch, "compile", compile)
    torch._dynamo.reset()
    settings = settings_for(data, tmp_path / "run", attn="math", gradient_accumulation_steps=2)
    monkeypatch.setattr(train, "validate", lambda *_: None)  # its losses are another graph
    compiled = replace(settings, compile=True, max_iters=5)
    tiny.train(compiled)
    assert len(frames) == 1
    plain = replace(compiled, out_dir=str(tmp_path / "plain"), compile=False)
    tiny.train(plain)
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "plain"), abs=1e-4)


def test_a_compiled_run_evaluates_with_its_compiled_model(data, tmp_path, monkeypatch):
    """Whole batches in the compiled model, a last one of fewer rows in the plain one."""
    seen = []

    class Compiled(torch.nn.Module):  # as torch's: its truth value is an error
        def __init__(self, model, **_):
            super().__init__()
            self.inner = [model]

        def __len__(self):
            raise TypeError("no len()")

        def forward(self, tokens, *args, **how):
            seen.append(len(tokens))
            return self.inner[0](tokens, *args, **how)

    monkeypatch.setattr(torch, "compile", Compiled)
    losses = []
    for compile in (True, False):
        settings = settings_for(data, tmp_path / str(compile), compile=compile, max_iters=1)
        tiny.train(settings)
        lines = tiny.metrics(settings.out_dir)
        losses.append([line["val_loss"] for line in lines if "val_loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0]
    assert set(seen) == {settings.batch_size} and len(seen) > 2


def test_the_batch_is_described_once_at_the_start(data, tmp_path, capsys):
    same = {"batch_size": 3, "gradient_accumulation_steps": 4, "max_iters": 2, "lr_decay_iters": 1}
    tiny.train(settings_for(data, tmp_path / "run", **same))
    printed = capsys.readouterr().out
    step = "step: 12 rows of 256 tokens on 1 rank(s), in micro-batches of at most 3 rows\n"
    assert printed.count(step) == 1
    assert printed.count("after step 1 the learning rate is 0.0") == 1
    assert f"done with step 2; to go on: train.py --resume --out_dir={tmp_path}/run" in printed


def test_a_profile_says_where_a_step_goes_and_touches_no_run(data, tmp_path):
    settings = settings_for(data, tmp_path / "run", max_iters=2)
    tiny.train(settings)
    before = checkpoint.read_config(settings.out_dir)
    profiled = replace(settings, profile=True)
    run_config.check(profiled)
    tiny.train(profiled)
    folder = tmp_path / "run" / "profile"
    summary = (folder / "summary.txt").read_text()
    for word in ("batch", "forward", "backward", "update", "all", "aten::"):
        assert word in summary
    assert len(summary.splitlines()) < 24  # one screen
    assert json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert checkpoint.read_config(settings.out_dir) == before
    assert checkpoint.steps_of(settings.out_dir) == [2]


def faults_of_steps(path):
    """Write how many pages the kernel had to make while tensors came and went."""
    device.pick_device("cpu")
    found = []
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [torch.ones(2_000_000) for _ in range(4)]  # 8 MB, 1,953 pages, each
        del blocks
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    path.write_text(json.dumps(found))


def test_freed_memory_is_used_again(tmp_path):
    assert tiny.call(faults_of_steps, tmp_path / "faults") == 0
    assert max(json.loads((tmp_path / "faults").read_text())[10:]) < 100


def validation_data(settings):
    """(Dataset, loader, bytes, decode) of the validation stories that a run would evaluate on."""
    train_data, val, tokenizer = open_data(settings)
    _, loader, size = make_loaders(settings, train_data, val, tokenizer, torch.device("cpu"))
    return val, loader, size, tokenizer.decode


def test_evaluations_on_some_of_the_stories(data, tmp_path):
    """Evenly spread ones, each counted whole; and the bytes are theirs."""
    settings = settings_for(data, tmp_path / "run", eval_stories=5)
    val, loader, size, decode = validation_data(settings)
    chosen = [val.story(i) for i in np.linspace(0, val.stories - 1, 5).astype(int)]
    assert loader.row_targets.sum() == sum(map(len, chosen))
    assert size == sum(len(decode(ids[1:]).encode()) + 1 for ids in chosen)
    _, loader, size, _ = validation_data(replace(settings, eval_stories=10**6))
    assert loader.row_targets.sum() == val.tokens and size == val.bytes + val.stories


def test_evaluations_on_some_of_the_records(data, tmp_path):
    """With loss_on=story, what counts of them are their stories."""
    prepare.prepare(
        prepare.Settings(
            source="instruct:storybook", tokenizer=data, stories=100, val_fraction=0.2,
            out=str(tmp_path / "records"), workers=1,
        )
    )  # fmt: skip
    settings = settings_for(
        str(tmp_path / "records"), tmp_path / "run", eval_stories=4, loss_on="story",
        block_size=512, row_tokens=512,
    )  # fmt: skip
    val, loader, size, decode = validation_data(settings)
    places = np.linspace(0, val.stories - 1, 4).astype(int)
    stories = [val.story(i)[val.answers[i] :] for i in places]
    assert loader.row_targets.sum() == sum(len(ids) + 1 for ids in stories)
    assert size == sum(len(decode(ids).encode()) + 1 for ids in stories)
