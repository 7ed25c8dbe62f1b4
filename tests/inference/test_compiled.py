"""The decoder in C: model.py's numbers, the stories of torch's decoder, and doing without it."""

import ctypes
import stat
from pathlib import Path

import pytest
import torch
from tiny import LAYOUTS, random_model
from torch import nn

from configs import ROOT
from model import GPT, GPTConfig
from nanostories.inference import compiled
from nanostories.inference.compiled import CompiledDecoder
from nanostories.inference.decoder import Decoder, open_decoder
from nanostories.inference.generate import generate, request_seeds
from nanostories.inference.sampling import sample_token
from nanostories.training import checkpoint
from nanostories.training.int8 import quantize_rows

CPU = torch.device("cpu")


@pytest.fixture
def threads():
    """A function that sets the number of threads, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def logits(decoder, ids, parts=1):
    """The logits after each of `ids`, read in so many parts, in slot 1 of 3."""
    kv, positions, rows = decoder.new_kv(3, len(ids)).fill_(7), torch.arange(len(ids)), []
    for some in positions.chunk(parts):
        x = decoder.hidden(kv, ids[some], torch.ones_like(some), some)
        rows.append(decoder.logits(x))
    assert (kv[:, :, [0, 2]] == 7).all()  # other slots are left alone
    return torch.cat(rows)


# ---- its numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_logits_are_the_models(layout):
    """For a prompt that is read at once, in parts, and token by token."""
    model = random_model(**LAYOUTS[layout], block_size=150)
    ids = torch.randint(256, (150,), generator=torch.Generator().manual_seed(1))
    decoder, expected = CompiledDecoder(model), model(ids[None])[0]
    for parts in (1, 7, 150):
        error = (logits(decoder, ids, parts) - expected).abs().max()
        assert error < 1e-4, (parts, error)


@pytest.mark.parametrize("shape", [(1, 1, 8), (3, 1, 20), (2, 4, 64), (2, 3, 102)])
@torch.no_grad()
def test_odd_widths(shape):
    """Widths that fill no vector, and vocabularies that fill no block."""
    n_layer, n_head, n_embd = shape
    torch.manual_seed(0)
    for vocab_size in (67, 129):
        model = GPT(GPTConfig(vocab_size, 40, n_layer, n_head, n_embd)).eval()
        ids = torch.arange(40) % vocab_size
        torch.testing.assert_close(
            logits(CompiledDecoder(model), ids), model(ids[None])[0], atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
@torch.no_grad()
def test_smaller_weights_are_taken_out_whole(dtype):
    """The logits are those of the model whose matrices were rounded beforehand."""
    model, ids = random_model(n_embd=72), torch.arange(20)
    decoder = CompiledDecoder(model, dtype)

    def rounded(weight):
        numbers, scale = quantize_rows(weight)
        return numbers * scale[:, None] if dtype == "int8" else weight.bfloat16().float()

    for layer in model.h.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.copy_(rounded(layer.weight))
    expected = model.hidden(ids[None])[0] @ rounded(model.wte.weight[:257]).T
    assert (logits(decoder, ids) - expected).abs().max() < 1e-4


@torch.no_grad()
def test_every_token_is_the_same_alone_and_among_others(threads):
    """Bit for bit, and on any number of threads."""
    model = random_model(n_embd=192, n_layer=2, vocab_size=2000)
    decoder, ids = CompiledDecoder(model), torch.randint(2000, (48,))
    whole = logits(decoder, ids)
    for parts in (5, 48):
        assert torch.equal(logits(decoder, ids, parts), whole)
    threads(3)
    assert torch.equal(logits(decoder, ids), whole)


def test_two_hundred_greedy_tokens_are_the_models():
    """Of the boxed model, whose next tokens are sure enough that rounding changes none."""
    model = checkpoint.load_run(ROOT / "pretrained").model
    decoders, eot = (CompiledDecoder(model), Decoder(model)), 4095
    prompts = [[eot], [eot, 300], [eot, 400, 500]]
    options = {"temperature": 0, "max_new_tokens": 200}
    one, other = (generate(d, prompts, eot, [0] * 3, **options) for d in decoders)
    assert one == other and max(len(story.ids) for story in one) > 100


def test_tokens_are_drawn_as_in_torch():
    """From the same noise the same tokens, but where a rounding decides."""
    torch.manual_seed(0)
    library = compiled.load_library()
    scores, noise = torch.randn(3000, 500) * 3, torch.rand(3000) * (1 - 2**-20)
    noise[:2] = torch.tensor([0, 1 - 2**-20])
    for temperature in (0.0, 0.5, 1.0, 2.0):
        tokens, p = torch.empty(3000, dtype=torch.int64), torch.empty(500)
        columns = torch.stack([torch.full_like(noise, 2), noise], 1)  # of a position each
        second = torch.ones_like(tokens)
        addresses = (x.data_ptr() for x in (second, p, tokens))
        assert library.sample(
            scores.data_ptr(), 3000, 500, temperature, columns.data_ptr(), 2, *addresses
        )
        expected = sample_token(scores, noise, temperature)
        assert (tokens == expected).float().mean() > 0.998
        assert (tokens == expected).all() or temperature


def test_weights_of_no_use_are_told():
    model = random_model()
    model.ln_f.weight.data[0] = torch.nan
    with pytest.raises(FloatingPointError, match="nan or inf"):
        generate(CompiledDecoder(model), [[256]], 256, [0])


# ---- the library -------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty cache folder, and no library loaded yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiled.load_library.cache_clear()
    yield tmp_path
    compiled.load_library.cache_clear()


def built(folder):
    return sorted((folder / "cache" / "nanostories").glob("*"))


def test_it_is_built_once(elsewhere, monkeypatch, capsys):
    assert isinstance(open_decoder(random_model(), "auto", CPU), CompiledDecoder)
    [file] = built(elsewhere)
    assert file.suffix == ".so" and capsys.readouterr() == ("", "")
    compiled.load_library.cache_clear()
    monkeypatch.setattr(compiled, "_build", None)  # not called again
    assert compiled.load_library()


def compiler(folder, script):
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n".replace("{folder}", str(folder)))
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return str(path)


@pytest.mark.parametrize("script, why", [
    (None, "there is no C compiler 'no-such-compiler'"),
    ("echo 'step.c: error: too modern' >&2; exit 1", "step.c: error: too modern"),
    ("exit 0", "cannot open shared object file"),
    ('exec cc "$@" -DINLINE=broken -Werror', "error"),
    # A compiler that makes something else of it.
    (f"sed s/1e-5f/1e-1f/ {compiled.SOURCE} > {{folder}}/other.c;"
     f'exec cc $(echo "$@" | sed s#{compiled.SOURCE}#{{folder}}/other.c#)',
     "the compiled step.c computes something else than model.py"),
])  # fmt: skip
def test_without_a_compiler_torch_does_it(elsewhere, monkeypatch, capsys, script, why):
    monkeypatch.setenv("CC", compiler(elsewhere, script) if script else "no-such-compiler")
    model = random_model()
    decoders = [open_decoder(model, "auto", CPU) for _ in range(2)]
    assert all(type(decoder) is Decoder for decoder in decoders)
    [line] = capsys.readouterr().err.splitlines()  # once
    assert line.startswith("generation goes on in torch, which is slower: ") and why in line
    assert built(elsewhere) == []
    expected = generate(Decoder(model), [[256]], 256, request_seeds(1, 1))
    assert generate(decoders[0], [[256]], 256, request_seeds(1, 1)) == expected


def test_a_cache_folder_that_cannot_be_written(elsewhere, capsys):
    (elsewhere / "cache").write_text("a file")
    assert compiled.load_library() is None
    assert "which is slower" in capsys.readouterr().err


def test_a_compiler_without_openmp_will_do(elsewhere, monkeypatch, threads):
    script = 'for word; do [ "$word" = -fopenmp ] && exit 1; done; exec cc "$@"'
    monkeypatch.setenv("CC", compiler(elsewhere, script))
    threads(2)
    assert isinstance(open_decoder(random_model(), "int8", CPU), CompiledDecoder)


def test_the_library_keeps_how_the_process_rounds():
    """Linked with -ffast-math, it would make torch's smallest numbers 0."""
    assert compiled.load_library()
    assert (torch.tensor([1e-40]) * 1.0).item() > 0
    assert ctypes.c_int.in_dll(compiled.load_library(), "lanes").value in (8, 16)
    assert len(Path(compiled.SOURCE).read_text().splitlines()) < 200
