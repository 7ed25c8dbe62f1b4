"""The study's other architectures: ReLU squared, SwiGLU, and a head apart from the embedding.

Each computes its formula, trains, resumes and generates; and what cannot do one says so.
"""

import json
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny import contents, losses, random_model, settings_for

import train
from configs import UserError, load
from eval.harness import completion_nlls
from eval.interpret import parse_neurons
from eval.interpretability import hooks
from model import GPT, GPTConfig
from nanostories.dataset.tokenizer import build
from nanostories.inference import compiled
from nanostories.inference.compiled import CompiledDecoder
from nanostories.inference.decoder import Decoder, open_decoder
from nanostories.inference.generate import Completion
from nanostories.training import checkpoint, export, hub_layouts, run_config
from nanostories.training.export_html import html_page
from nanostories.training.huggingface import LoadedModel
from nanostories.training.optim import make_optimizers
from train import Settings

CPU = torch.device("cpu")
MLPS = {"relu2": {"mlp": "relu2"}, "swiglu": {"mlp": "swiglu"}}
UNTIED = {"tied_head": False}
VARIANTS = MLPS | {"untied": UNTIED, "rotary": {"positions": "rope", "mlp": "swiglu"} | UNTIED}
PROMPTS = [[256], [256, 5, 6, 7, 200], [256, *range(30)], [256, 9]]

each_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
each_mlp = pytest.mark.parametrize("changes", MLPS.values(), ids=MLPS)


# ---- what they compute -------------------------------------------------------------------------


def reference(model, ids):
    """(logits of one story, the neurons of each layer), written out; learned positions."""
    w, config, neurons = dict(model.named_parameters()), model.config, []
    T, C, H, width = len(ids), config.n_embd, config.n_head, config.mlp_width
    linear = lambda x, name: x @ w[f"{name}.weight"].T + w[f"{name}.bias"]  # noqa: E731
    norm = lambda x, name: F.layer_norm(x, [C], w[f"{name}.weight"], w[f"{name}.bias"])  # noqa: E731
    x = w["wte.weight"][ids] + w["wpe.weight"][:T]
    for i in range(config.n_layer):
        qkv = linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")
        q, k, v = qkv.view(T, 3, H, C // H).permute(1, 2, 0, 3)
        scores = q @ k.mT / (C // H) ** 0.5 + torch.full((T, T), -torch.inf).triu(1)
        attended = (scores.softmax(-1) @ v).transpose(0, 1).reshape(T, C)
        x = x + linear(attended, f"h.{i}.attn.c_proj")
        u = linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        if config.mlp == "swiglu":
            gate, up = u[:, :width], u[:, width:]
            neurons.append(gate / (1 + (-gate).exp()) * up)
        else:
            neurons.append(torch.where(u > 0, u**2, 0) if config.mlp == "relu2" else gelu(u))
        x = x + linear(neurons[-1], f"h.{i}.mlp.c_proj")
    head = w["wte.weight" if config.tied_head else "lm_head.weight"]
    return norm(x, "ln_f") @ head[: config.vocab_size].T, neurons


def gelu(u):
    return u / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (u + 0.044715 * u**3)))


@pytest.mark.parametrize("changes", [{}, *MLPS.values(), UNTIED, MLPS["swiglu"] | UNTIED])
@torch.no_grad()
def test_the_model_computes_its_formula(changes):
    """Logits, the loss without them, and the neurons that hooks read."""
    model = random_model(n_embd=40, **changes)
    ids, targets = torch.randint(257, (2, 20), generator=torch.Generator().manual_seed(1))
    logits, neurons = reference(model, ids)
    torch.testing.assert_close(model(ids[None])[0], logits, atol=1e-4, rtol=1e-4)
    loss = F.cross_entropy(logits, targets)
    torch.testing.assert_close(model(ids[None], targets[None]), loss, atol=1e-4, rtol=1e-4)
    read = {}
    hooks.neuron_activations(model, ids[None], lambda layer, x: read.update({layer: x[0]}))
    for layer, expected in enumerate(neurons):
        assert expected.shape[1] == model.config.mlp_width
        torch.testing.assert_close(read[layer], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("n_embd", [64, 128, 160, 256, 512, 768])
def test_swiglu_has_as_many_parameters(n_embd):
    with torch.device("meta"):
        plain, relu2, swiglu = (
            GPT(GPTConfig(2048, 512, 4, 4, n_embd, mlp=mlp)) for mlp in ("gelu", *MLPS)
        )
    assert plain.num_params() == relu2.num_params()
    body = plain.num_params(embeddings=False)
    assert swiglu.num_params(embeddings=False) == pytest.approx(body, rel=0.02)
    assert swiglu.config.mlp_width % 8 == 0


@pytest.mark.parametrize("positions, rows", [("learned", 48), ("rope", 0)])
def test_parameters_of_an_untied_head(positions, rows):
    """Counted without the vocabulary's padding: 257 rows of 384, in the embedding and the head."""
    model = random_model(positions=positions, **UNTIED)
    blocks = sum(p.numel() for p in (*model.h.parameters(), *model.ln_f.parameters()))
    assert model.num_params(embeddings=False) == blocks
    assert model.num_matmul_params() == blocks + 257 * 32  # the head; wte is looked up
    assert model.num_params() == blocks + (2 * 257 + rows) * 32
    padding = 2 * (384 - 257) * 32
    assert model.num_params() == sum(p.numel() for p in model.parameters()) - padding
    tied = random_model(positions=positions)
    assert model.flops_per_token(100) == tied.flops_per_token(100)


def test_an_untied_head_begins_as_the_embedding_does():
    torch.manual_seed(0)
    model = GPT(GPTConfig(2000, n_embd=64, **UNTIED))
    assert model.lm_head.weight.shape == model.wte.weight.shape == (2048, 64)
    assert model.lm_head.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not torch.equal(model.lm_head.weight, model.wte.weight)


def test_the_default_has_no_new_weights():
    names = {name.split(".")[-2] for name in random_model().state_dict()}
    assert names == {"wte", "wpe", "ln_1", "c_attn", "c_proj", "ln_2", "c_fc", "ln_f"}


@each_variant
def test_completions_are_scored_by_the_models_head(changes):
    model, completion = random_model(**changes), Completion([7, 8, 9])
    [(nll, tokens)] = completion_nlls(model, [[256, 1]], [completion], 256, 1)
    log_p = model(torch.tensor([[256, 1, 7, 8, 9]]))[0].log_softmax(-1)
    expected = -sum(log_p[i, token] for i, token in ((1, 7), (2, 8), (3, 9)))
    assert tokens == 3 and nll == pytest.approx(expected.item(), rel=1e-5)


# ---- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@each_variant
def test_every_parameter_has_its_optimizer(changes, optimizer):
    """An untied head is AdamW's, with the embeddings' learning rate and without weight decay."""
    model = random_model(**changes)
    settings = Settings(optimizer=optimizer, muon_lr_scale=0.5, embedding_lr_scale=2.0)
    optimizers, names = make_optimizers(model, settings), {}
    for one in optimizers:
        for group in one.param_groups:
            for p in group["params"]:
                assert id(p) not in names
                names[id(p)] = type(one).__name__, group["lr_scale"], group["weight_decay"]
    muon = ("Muon", 0.5, 0.1) if optimizer == "muon" else ("AdamW", 1.0, 0.1)
    for name, p in model.named_parameters():
        embedding = name in ("wte.weight", "wpe.weight", "lm_head.weight")
        matrix = muon if p.ndim == 2 else ("AdamW", 1.0, 0.0)
        assert names.pop(id(p)) == (("AdamW", 2.0, 0.0) if embedding else matrix), name
    assert not names


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_learns_and_resumes_bit_for_bit(data, tmp_path, name):
    optimizer = "adamw" if name == "untied" else "muon"
    whole = settings_for(
        data, tmp_path / "whole", optimizer=optimizer, dropout=0.1, max_iters=8, eval_interval=4,
        lr_decay_iters=8, gradient_accumulation_steps=2, **VARIANTS[name],
    )  # fmt: skip
    tiny.train(whole)
    curve = losses(whole.out_dir)
    assert curve[0] == pytest.approx(6.24, abs=0.1) and curve[-1] < curve[0] - 0.4
    parts = replace(whole, out_dir=str(tmp_path / "parts"))
    tiny.train(replace(parts, max_iters=4))
    tiny.train(replace(parts, resume=True))
    assert contents(whole.out_dir) == contents(parts.out_dir)
    config = checkpoint.load_run(parts.out_dir).model.config
    assert {key: getattr(config, key) for key in VARIANTS[name]} == VARIANTS[name]


def test_one_batch_trains_the_head_and_the_embedding_apart():
    model = random_model(**UNTIED).train()
    ids = torch.tensor([[256, 1, 2]])
    model(ids, torch.tensor([[3, 4, 5]])).backward()
    read, predicted = (m.weight.grad.abs().sum(1) > 0 for m in (model.wte, model.lm_head))
    assert read.nonzero().flatten().tolist() == [1, 2, 256]  # no gradient by way of the head
    assert predicted[:257].all() and not predicted[257:].any()


# ---- runs from before these settings -----------------------------------------------------------


def make_old(out):
    """Take the two settings out of a run's files, as a version without them had written these."""
    out = Path(out)
    config = json.loads((out / "config.json").read_text())
    for part in config["model"], config["train"]:
        del part["mlp"], part["tied_head"]
    (out / "config.json").write_text(json.dumps(config))
    for folder in (out / "checkpoints").iterdir():
        state = json.loads((folder / "state.json").read_text())
        del state["model"]["mlp"], state["model"]["tied_head"]
        (folder / "state.json").write_text(json.dumps(state))
        files = [path for path in sorted(folder.iterdir()) if path.name != "SHA256SUMS"]
        sums = (f"{sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)
        (folder / "SHA256SUMS").write_text("".join(sums))


def complete(argv):
    return run_config.complete(*load(Settings, argv))


def test_an_old_run_loads_resumes_and_is_fine_tuned(data, tmp_path):
    whole = settings_for(data, tmp_path / "whole", max_iters=4, eval_interval=2)
    tiny.train(whole)
    old = settings_for(data, tmp_path / "old", max_iters=2, eval_interval=2, lr_decay_iters=4)
    tiny.train(old)
    make_old(old.out_dir)
    config = checkpoint.load_run(old.out_dir).model.config
    assert (config.mlp, config.tied_head) == ("gelu", True)
    tuned = complete([f"--init_from={old.out_dir}", "--tied_head=true", f"--dataset={data}"])
    assert (tuned.mlp, tuned.tied_head, tuned.n_embd) == ("gelu", True, 32)
    resumed = complete(["--resume", f"--out_dir={old.out_dir}", "--max_iters=4"])
    tiny.train(resumed)
    assert contents(old.out_dir) == contents(whole.out_dir)
    # config.json has the settings by now; the old checkpoint, still there, has not.
    assert "mlp" in checkpoint.read_config(old.out_dir)["model"]
    assert "mlp" not in checkpoint.read_state(old.out_dir, "checkpoints/2")["model"]
    checkpoint.load_run(old.out_dir, "checkpoints/2")


def test_an_mlp_that_is_not_the_checkpoints_is_refused(data, tmp_path):
    """relu2 has gelu's weights by name and shape: only the settings tell them apart."""
    settings = settings_for(data, tmp_path / "run", max_iters=1, mlp="relu2")
    tiny.train(settings)
    path = Path(settings.out_dir) / "config.json"
    config = json.loads(path.read_text())
    del config["model"]["mlp"]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="mlp is gelu, not relu2"):
        checkpoint.load_run(settings.out_dir)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--mlp=relu"], "mlp must be gelu, relu2 or swiglu, not 'relu'"),
        (["--tied_head=no"], "--tied_head takes True or False, not 'no'"),
        (["--init_from=pretrained", "--mlp=swiglu"], "mlp of 'pretrained' is gelu: it stays so"),
        (
            ["--init_from=pretrained", "--tied_head=false"],
            "tied_head of 'pretrained' is True: it stays so",
        ),
    ],
)
def test_settings_that_are_refused(argv, message, monkeypatch):
    monkeypatch.chdir(Path(train.__file__).parent)
    with pytest.raises(UserError, match=message):
        complete(argv)


def test_the_config_names_the_choices():
    with pytest.raises(ValueError, match=r"mlp in \('gelu', 'relu2', 'swiglu'\)"):
        GPTConfig(mlp="relu")


# ---- generation --------------------------------------------------------------------------------


def assert_every_step_is_the_models(decoder, model):
    cache = decoder.new_cache(len(PROMPTS), 48)
    cache.add_requests(PROMPTS, [[0, i] for i in range(len(PROMPTS))])
    stories = [list(prompt) for prompt in PROMPTS]
    for _ in range(10):
        chosen = cache.step(temperature=0)
        for row, story in enumerate(stories):
            expected = model(torch.tensor([story]))[0, -1]
            torch.testing.assert_close(cache.last_logits[row], expected, atol=2e-4, rtol=1e-4)
            story.append(int(chosen[row]))


@each_variant
@torch.no_grad()
def test_the_torch_decoder_generates_by_the_model(changes):
    """From the cache, for rows of different lengths."""
    model = random_model(**changes)
    assert_every_step_is_the_models(Decoder(model), model)


@torch.no_grad()
def test_the_compiled_decoder_has_an_untied_head():
    model = random_model(**UNTIED)
    decoder = open_decoder(model, "auto", CPU)
    assert isinstance(decoder, CompiledDecoder)
    assert_every_step_is_the_models(decoder, model)


@pytest.mark.parametrize("weights", ["auto", "int8"])
@each_mlp
@torch.no_grad()
def test_without_its_mlp_in_c_torch_generates(changes, weights, capsys):
    compiled.load_library.cache_clear()
    model = random_model(n_embd=64, n_head=2, **changes)
    decoders = [open_decoder(model, weights, CPU) for _ in range(2)]
    assert all(type(one) is Decoder for one in decoders)
    line = "generation goes on in torch, which is slower: step.c computes mlp=gelu alone, not "
    assert capsys.readouterr().err == f"{line}{changes['mlp']}\n"  # once
    cache = decoders[0].new_cache(1, 48)
    cache.add_requests([[256, 1, 2]], [0])
    cache.step()
    expected = model(torch.tensor([[256, 1, 2]]))[0, -1]
    error = (cache.last_logits[0] - expected).norm() / expected.norm()
    assert (1e-5 if weights == "int8" else 0) <= error < (0.1 if weights == "int8" else 1e-4)
    with pytest.raises(UserError, match=r"step\.c cannot run this model"):
        CompiledDecoder(model)


@pytest.mark.parametrize("n_embd", [24, 64, 72])
@torch.no_grad()
def test_int8_in_torch_reads_no_columns_that_are_not_there(n_embd):
    """torch's kernel takes 16 at a time; SwiGLU's widths are multiples of 8: 64, 168 and 192."""
    model = random_model(n_embd=n_embd, **MLPS["swiglu"])
    for count in (1, 20):
        cache = Decoder(model, "int8").new_cache(count, 48)
        cache.add_requests([[256, 1, 2]] * count, [0] * count)
        cache.step()
        expected = model(torch.tensor([[256, 1, 2]]))[0, -1]
        error = (cache.last_logits - expected).norm(dim=1) / expected.norm()
        assert error.max() < 0.1


# ---- who cannot do it says so ------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, line",
    [
        (MLPS["relu2"], "mlp=relu2 stays a run folder: only mlp=gelu is exported"),
        (MLPS["swiglu"], "mlp=swiglu stays a run folder: only mlp=gelu is exported"),
        (UNTIED, "tied_head=False stays a run folder: only tied_head=True is exported"),
    ],
)
def test_exports_are_refused(changes, line):
    model = random_model(**changes)
    loaded = LoadedModel(model, build("bytes"), 48, [256], "", {})
    for write in (
        lambda: html_page(loaded, "A model"),
        lambda: hub_layouts.hub_config(model.config),
        lambda: hub_layouts.to_hub_tensors(model.state_dict(), model.config),
    ):
        with pytest.raises(UserError, match=f"^{line}$"):
            write()


def test_a_run_is_exported_as_a_run_alone(data, tmp_path):
    settings = settings_for(data, tmp_path / "run", max_iters=1, **VARIANTS["rotary"])
    tiny.train(settings)
    for to in ("hf", "html"):
        with pytest.raises(UserError, match=r"^mlp=swiglu stays a run folder"):
            export.main([settings.out_dir, f"--to={to}", f"--out={tmp_path / to}"])
        assert not (tmp_path / to).exists()
    export.main([settings.out_dir, "--to=run", f"--out={tmp_path / 'copy'}"])
    ids = torch.arange(20)[None]
    run, copy = (checkpoint.load_run(tmp_path / name).model(ids) for name in ("run", "copy"))
    torch.testing.assert_close(run, copy, atol=0.05, rtol=0.05)


@each_mlp
def test_the_fused_mlp_is_refused(data, tmp_path, changes):
    settings = settings_for(data, tmp_path / "run", fused_mlp=True, **changes)
    with pytest.raises(
        UserError, match=f"^fused_mlp computes mlp=gelu alone, not {changes['mlp']}"
    ):
        run_config.check(settings)
    model = random_model(**changes)
    model.fused_mlp = True
    with pytest.raises(ValueError, match="fused_mlp computes mlp='gelu' alone"):
        model(torch.zeros(1, 3, dtype=torch.int64))


def test_neurons_are_counted_by_the_models_width():
    config = asdict(random_model(**MLPS["swiglu"]).config)
    last = GPTConfig(**config).mlp_width - 1
    assert last == 87
    settings = SimpleNamespace(neurons=f"1:{last}")
    assert parse_neurons(settings, GPTConfig(**config)) == [2 * 88 - 1]
    settings.neurons = f"1:{last + 1}"
    with pytest.raises(UserError, match="there is no neuron 1:88"):
        parse_neurons(settings, GPTConfig(**config))
