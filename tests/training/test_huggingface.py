"""Published models in, trained ones out: against transformers itself, both ways."""

import json
import runpy
import shutil
import sys
import types
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import LAYOUTS, random_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
)

import eval.loss
import sample
import train
from configs import UserError, load
from nanostories import storage
from nanostories.dataset.tokenizer import Tokenizer, build
from nanostories.inference.decoder import Decoder
from nanostories.inference.generate import generate
from nanostories.training import checkpoint, export, hub_layouts, huggingface
from nanostories.training.run_config import complete

SHAPES = {  # of the odd kinds: a head of 48, a window of 256, a vocabulary of 4,099
    "gpt2, heads of 48": {"vocab_size": 4099, "block_size": 64, "n_embd": 96, "n_head": 2},
    "gpt2, unscaled": {"vocab_size": 257, "block_size": 40, "scale_attention": False},
    "neo, window of 256": {"vocab_size": 300, "block_size": 320, "n_layer": 3, "n_embd": 48,
                           "window": 256, "scale_attention": False, "qkv_bias": False},
    "neo, no window": {"vocab_size": 257, "scale_attention": False, "qkv_bias": False},
    "rotary, gelu": {"vocab_size": 300, "block_size": 224, "n_embd": 96, "n_head": 3,
                     "positions": "rope", "gelu": "erf"},
    "rotary, gelu_new": {"vocab_size": 257, "positions": "rope"},
}  # fmt: skip


def transformers_model(name):
    """transformers' own model of a shape, with random weights, biases and gains included."""
    shape = asdict(random_model(**SHAPES[name]).config)
    if name.startswith("gpt2"):
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=shape["vocab_size"], n_positions=shape["block_size"],
                n_embd=shape["n_embd"], n_layer=shape["n_layer"], n_head=shape["n_head"],
                scale_attn_weights=shape["scale_attention"],
            )
        )  # fmt: skip
    elif name.startswith("rotary"):
        model = GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=shape["vocab_size"], max_position_embeddings=shape["block_size"],
                hidden_size=shape["n_embd"], num_hidden_layers=shape["n_layer"],
                num_attention_heads=shape["n_head"], intermediate_size=4 * shape["n_embd"],
                hidden_act=name.removeprefix("rotary, "), use_parallel_residual=False,
                rotary_pct=1.0, tie_word_embeddings=True,
            )
        )  # fmt: skip
    else:
        kinds = [["global", "local" if shape["window"] else "global"], 1]
        types = [kinds, [["global"], 1]] if shape["n_layer"] == 3 else [kinds]
        model = GPTNeoForCausalLM(
            GPTNeoConfig(
                vocab_size=shape["vocab_size"], max_position_embeddings=shape["block_size"],
                hidden_size=shape["n_embd"], num_layers=shape["n_layer"],
                num_heads=shape["n_head"], attention_types=types, window_size=256,
            )
        )  # fmt: skip
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    return model.eval()


def tokenizer_for(vocab_size, folder):
    """A tokenizer of that size in the folder: the bytes, and words nobody writes."""
    ranks = {bytes([i]): i for i in range(256)}
    pairs = ((a, b) for a in range(256) for b in range(256))
    for i in range(256, vocab_size - 1):
        ranks[bytes(next(pairs))] = i
    Tokenizer("bpe", ranks, build("bytes").patterns).save(folder / "tokenizer.json")


@pytest.fixture(params=SHAPES)
def folder(request, tmp_path):
    """(transformers' model, the folder it is saved in, with a tokenizer)."""
    model = transformers_model(request.param)
    model.save_pretrained(tmp_path / "model")
    tokenizer_for(model.config.vocab_size, tmp_path / "model")
    return model, tmp_path / "model"


@torch.no_grad()
def assert_same(ours, model, length):
    """Logits within 1e-4, and the same 200 greedy tokens, or as many as there is room for."""
    tokens = torch.randint(ours.config.vocab_size, (2, length))
    torch.testing.assert_close(ours(tokens), model(tokens).logits, atol=1e-4, rtol=0)
    prompt = tokens[:1, :3]
    steps = min(200, ours.config.block_size - 3)
    kwargs = {"do_sample": False, "max_new_tokens": steps, "min_new_tokens": steps,
           "attention_mask": torch.ones_like(prompt), "pad_token_id": 0}  # fmt: skip
    expected = model.generate(prompt, **kwargs)[0, 3:].tolist()
    [story] = generate(
        Decoder(ours), [prompt[0].tolist()], -1, [0], temperature=0, max_new_tokens=steps
    )
    assert story.ids == expected


# ---- in ----------------------------------------------------------------------------------------


def test_a_published_model_computes_the_same(folder):
    model, path = folder
    loaded = huggingface.load(str(path))
    assert_same(loaded.model, model, loaded.model.config.block_size)
    assert loaded.max_length == loaded.model.config.block_size
    assert loaded.model.wte.weight[loaded.model.config.vocab_size :].abs().sum() == 0


def test_old_bin_files_are_read_without_running_them(folder, tmp_path):
    model, path = folder
    state = model.base_model.state_dict()  # as the hub's gpt2 has them: without their prefix
    state |= {"h.0.attn.bias": torch.ones(1, 1, 8, 8), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    torch.save(state, path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    assert_same(huggingface.load(str(path)).model, model, 9)

    torch.save(state, path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert_same(huggingface.load(str(path)).model, model, 9)  # as torch wrote them before 1.6

    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    for zipped in (True, False):
        kwargs = {"_use_new_zipfile_serialization": zipped}
        torch.save(state | {"ln_f.bias": Hostile()}, path / "pytorch_model.bin", **kwargs)
        with pytest.raises(UserError, match=r"pytorch_model\.bin cannot be read"):
            huggingface.load(str(path))
    (path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"pytorch_model\.bin cannot be read"):
        huggingface.load(str(path))
    assert not (tmp_path / "ran").exists()


def test_half_precision_and_several_files(folder):
    """Weights in 16 bits become float32; a large model comes in parts."""
    model, path = folder
    model = model.half()
    model.save_pretrained(path, max_shard_size="40KB")
    assert len(list(path.glob("model-*.safetensors"))) > 1
    (path / "model.safetensors").unlink()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    assert_same(huggingface.load(str(path)).model, model, 9)


@pytest.mark.parametrize("layout", ["gpt2, heads of 48", "neo, window of 256"])
def test_what_model_py_does_not_have_is_refused(layout, tmp_path):
    transformers_model(layout).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    others = [
        ({"activation_function": "relu"}, "has activation_function 'relu'"),
        ({"layer_norm_epsilon": 1e-12}, "has layer_norm_epsilon 1e-12"),
        ({"tie_word_embeddings": False}, "has tie_word_embeddings False"),
        ({"n_inner": 7, "intermediate_size": 7}, "has n_inner 7|has intermediate_size 7"),
        ({"model_type": "llama"}, "is a llama; only gpt2, gpt_neo, gpt_neox can be read"),
        ({"attention_layers": ["local", "global", "local"], "n_embd": None}, "alternate|damaged"),
    ]
    for changes, message in others:
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(UserError, match=message):
            hub_layouts.read_model_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    hub_layouts.read_model_config(tmp_path)


def test_a_gpt_neox_that_names_no_order_of_its_parts_is_parallel(tmp_path):
    """As transformers takes it, and so it is refused."""
    transformers_model("rotary, gelu").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    hub_layouts.read_model_config(tmp_path)
    assert not config.pop("use_parallel_residual") and GPTNeoXConfig().use_parallel_residual
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"has use_parallel_residual True; model\.py has False"):
        hub_layouts.read_model_config(tmp_path)


def test_damage_is_said_in_one_line(tmp_path):
    transformers_model("gpt2, unscaled").save_pretrained(tmp_path)
    tokenizer_for(300, tmp_path)
    with pytest.raises(UserError, match="the tokenizer has 300 tokens, the model 257"):
        huggingface.load(str(tmp_path))
    tokenizer_for(257, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {name: x for name, x in weights.items() if "ln_f" not in name},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(UserError, match=r"do not fit its config\.json: .*ln_f"):
        huggingface.load(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        huggingface.load(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors in"):
        huggingface.load(str(tmp_path))
    with pytest.raises(UserError, match="holds no model"):
        huggingface.load(str(tmp_path.parent))


def test_a_head_of_its_own_is_refused():
    model = random_model()
    tensors = hub_layouts.to_hub_tensors(model.state_dict(), model.config)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    hub_layouts.from_hub_tensors(tensors, model.config)
    tensors["lm_head.weight"][0] += 1
    with pytest.raises(UserError, match="its output head is not its token embedding"):
        hub_layouts.from_hub_tensors(tensors, model.config)
    del tensors["lm_head.weight"]
    tensors["transformer.wte.weight"] = tensors["transformer.wte.weight"][1:]
    with pytest.raises(UserError, match="it embeds 256 tokens; its vocab_size is 257"):
        hub_layouts.from_hub_tensors(tensors, model.config)


def test_positions_that_were_never_trained_are_cut(tmp_path, capsys):
    """GPT-Neo's 2,048 are declared, TinyStories' 512 were trained."""
    path = tmp_path / "TinyStories-1M"
    model = transformers_model("neo, window of 256")
    wide = torch.cat([model.transformer.wpe.weight, torch.randn(2048 - 320, 48)])
    model.transformer.wpe.weight = torch.nn.Parameter(wide)
    model.config.max_position_embeddings = 2048
    model.save_pretrained(path)
    tokenizer_for(300, path)
    loaded = huggingface.load(str(path))
    assert loaded.max_length == loaded.model.config.block_size == 512
    printed = capsys.readouterr()  # not where stories are
    assert "of 2,048 positions 512 were trained; the rest is cut" in printed.err and not printed.out
    tokens = torch.randint(300, (1, 512))
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(path)(tokens).logits
        torch.testing.assert_close(loaded.model(tokens), logits, atol=1e-4, rtol=0)
    assert huggingface.load(str(path), block_size=100).model.config.block_size == 100


def test_the_hubs_own_gpt2_tokenizer(gpt2_files, tmp_path):
    """Its tokenizer.json and its older vocab.json are tiktoken's gpt2."""
    gpt2 = build("gpt2")
    text = " Once upon a time,\n\n there's  a 123 café…!"
    gpt2.save(tmp_path / "tokenizer.json")
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    saved["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False,
                              "trim_offsets": True, "use_regex": True}  # fmt: skip
    saved["post_processor"] = saved["pre_tokenizer"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.same_as(gpt2) and loaded.name == "gpt2"
    assert AutoTokenizer.from_pretrained(tmp_path).encode(text) == loaded.encode(text)
    assert not huggingface._begins_with_eot(tmp_path)
    saved["model"]["merges"] = [" ".join(pair) for pair in saved["model"]["merges"]]  # as of old
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    assert Tokenizer.load(tmp_path).same_as(gpt2)
    saved["model"]["merges"][5:7] = saved["model"]["merges"][6:4:-1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match="its merges are not in the order of their ids"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(saved["model"]["vocab"]))
    assert Tokenizer.load(tmp_path).same_as(gpt2)
    (tmp_path / "vocab.json").unlink()
    assert huggingface.load_tokenizer(tmp_path, 50257).same_as(gpt2)


def test_from_the_hubs_cache_without_a_network(tmp_path, monkeypatch, capsys):
    """A snapshot as the hub's client leaves it, loaded by name and by revision; others are not."""
    commit, cache = "f" * 40, tmp_path / "hub" / "models--someone--tiny"
    model = transformers_model("gpt2, unscaled")
    model.save_pretrained(cache / "snapshots" / commit)
    tokenizer_for(257, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def generate_with(*arguments):
        options = ("--max_new_tokens=4", "--temperature=0", "--start=Tom")
        monkeypatch.setattr(sys, "argv", ["sample.py", *arguments, *options])
        sample.main()
        return capsys.readouterr().out

    assert generate_with("--init_from=someone/tiny").startswith("Tom")
    assert generate_with("--init_from=someone/tiny", f"--revision={commit}").startswith("Tom")
    for arguments in (["--init_from=someone/else"], ["--init_from=someone/tiny", "--revision=v2"],
                      ["--init_from=out/no/run"], ["--init_from=gpt2-medium"]):  # fmt: skip
        with pytest.raises(UserError, match="is no folder here and cannot be had from") as error:
            generate_with(*arguments)
        assert "\n" not in str(error.value)


# ---- used --------------------------------------------------------------------------------------


def test_fine_tuning_and_measuring_a_published_model(data, tmp_path, monkeypatch):
    """train.py and eval.loss take it as they take a run, with its shape and tokenizer."""
    model = random_model(vocab_size=512, block_size=64, **LAYOUTS["neo"])
    tokenizer = Tokenizer.load(data)
    path = tmp_path / "base"
    loaded = huggingface.LoadedModel(model, tokenizer, 64, [tokenizer.eot], str(tmp_path), {})
    export.export(loaded, path)

    def settings_of(*more):
        words = [f"--init_from={path}", f"--dataset={data}", "--device=cpu", "--dtype=float32",
                 "--max_iters=2", "--batch_size=2", f"--out_dir={tmp_path / 'run'}"]  # fmt: skip
        return complete(*load(train.Settings, [*words, *more]))

    with pytest.raises(UserError, match=r"n_layer of '.*base' is 3: it stays so"):
        settings_of("--n_layer=2")
    with pytest.raises(UserError, match=r"block_size of '.*base' is 64: it stays so"):
        settings_of("--block_size=65")
    settings = settings_of("--block_size=48")
    assert (settings.n_embd, settings.block_size, settings.tokenizer) == (32, 48, str(path))
    loaded = train.build_model(settings, Tokenizer.load(settings.dataset), torch.device("cpu"))
    for name, weight in loaded.state_dict().items():
        expected = model.state_dict()[name]
        assert torch.equal(weight[:48] if name == "wpe.weight" else weight,
                           expected[:48] if name == "wpe.weight" else expected) or (
            name == "wte.weight" and torch.equal(weight[:512], expected[:512])), name  # fmt: skip
    assert loaded.config == replace(model.config, block_size=48)
    train.train(settings)
    again = checkpoint.load_run(tmp_path / "run")
    assert again.model.config.window == 9 and again.max_length <= 48

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("Tom had a ball.\n<|endoftext|>\nSue had a cat.")
    monkeypatch.setattr(sys, "argv", ["loss.py", f"--init_from={path}", "--source=mine.txt"])
    eval.loss.main()
    [result] = (tmp_path / "out/published").glob("*base/eval/loss.json")
    facts = json.loads(result.read_text())["checkpoint"]
    assert facts["model"] == str(path) and len(facts["model.safetensors"]) == 64
    monkeypatch.setattr(sys, "argv", sys.argv[:2])
    with pytest.raises(UserError, match="has no data of its own: name some with --source"):
        eval.loss.main()


# ---- out ---------------------------------------------------------------------------------------


def run_of(model, tokenizer, out):
    """A run folder with this model, and a result in it."""
    checkpoint.create_run_folder(out, model.config, train.Settings(), tokenizer, {})
    state = {"step": 1, "best_step": 1, "kept_steps": [], "max_length": 30}
    state["model"] = asdict(model.config)
    checkpoint.write_checkpoint(out, model.state_dict(), {}, state)
    (out / "eval").mkdir()
    storage.write_json(out / "eval" / "loss.json", {"bits_per_byte": 0.8625, "source": "a|b"})


@pytest.mark.parametrize("name", SHAPES)
def test_out_and_back_is_bitwise(name, tmp_path, capsys):
    """A run, exported, read by transformers, saved by it, imported: not a bit has changed."""
    model = random_model(**SHAPES[name])
    tokenizer_for(model.config.vocab_size, tmp_path)
    run_of(model, Tokenizer.load(tmp_path), tmp_path / "run")
    export.main([str(tmp_path / "run"), f"--out={tmp_path / 'hf'}"])
    assert "its README.md says how to use it" in capsys.readouterr().out
    hub_model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    assert hub_model.config.vocab_size == model.config.vocab_size
    assert_same(model, hub_model, model.config.block_size)
    hub_model.save_pretrained(tmp_path / "again")
    shutil.copy(tmp_path / "hf" / "tokenizer.json", tmp_path / "again")
    for folder in ("hf", "again"):
        loaded = huggingface.load(str(tmp_path / folder))
        for key, weight in model.state_dict().items():
            size = model.config.vocab_size if key == "wte.weight" else len(weight)
            assert torch.equal(loaded.model.state_dict()[key][:size], weight[:size]), key
        assert loaded.bos_ids == [loaded.tokenizer.eot]


def test_the_exported_folder_tells_stories_in_transformers(data, tmp_path):
    """The trained BPE, <|endoftext|> first, its end known, and a card made of the run's files."""
    tokenizer = Tokenizer.load(data)
    model = random_model(vocab_size=512)
    run_of(model, tokenizer, tmp_path / "run")
    export.export(checkpoint.load_run(tmp_path / "run"), tmp_path / "tiny")
    hub_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tiny")
    texts = ["Once upon a time", "", "Tom's cat — 12 \n\n “café” <|endoftext|>x"]
    for text in texts[:2]:
        assert hub_tokenizer.encode(text) == [tokenizer.eot, *tokenizer.encode(text)]
        assert hub_tokenizer.decode(hub_tokenizer.encode(text), skip_special_tokens=True) == text
    assert hub_tokenizer(texts[:2], padding=True)["input_ids"][1][0] == tokenizer.eot
    hub_model = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny")
    config = hub_model.generation_config
    assert config.eos_token_id == config.bos_token_id == tokenizer.eot and config.max_length == 30
    assert json.loads((tmp_path / "tiny" / "config.json").read_text())["n_ctx"] == 48
    prompt = hub_tokenizer("Once", return_tensors="pt")
    assert 1 < len(hub_model.generate(**prompt)[0]) <= 30
    card = (tmp_path / "tiny" / "README.md").read_text()
    assert "| learning_rate | 0.0005 |" in card and "| bits_per_byte | 0.8625 |" in card
    assert "| source | a\\|b |" in card
    with pytest.raises(UserError, match="exists already"):
        export.main([str(tmp_path / "run"), f"--out={tmp_path / 'tiny'}"])
    with pytest.raises(UserError, match="cannot be written"):
        export.main([str(tmp_path / "run"), f"--out={tmp_path / 'tiny' / 'README.md' / 'x'}"])


def test_what_no_layout_has_is_not_exported(tmp_path):
    model = random_model(window=9)
    run_of(model, build("bytes"), tmp_path / "run")
    with pytest.raises(UserError, match="neither GPT-2 nor GPT-NeoX has a window"):
        export.export(checkpoint.load_run(tmp_path / "run"), tmp_path / "hf")
    assert not list(tmp_path.glob("hf*"))


@pytest.mark.parametrize("place", ["conversion.base", "convert_hf_to_gguf"])
def test_to_gguf_tells_the_converter_how_words_are_cut(place, data, tmp_path, monkeypatch):
    """With a stand-in for llama.cpp's converter, as it is now and as it was in one file."""
    model = random_model(vocab_size=512)
    run_of(model, Tokenizer.load(data), tmp_path / "run")
    export.export(checkpoint.load_run(tmp_path / "run"), tmp_path / "hf")
    calls = []
    text_model = type("TextModel", (), {})
    converter = types.ModuleType("convert_hf_to_gguf")
    converter.main = lambda: calls.append((text_model().get_vocab_base_pre(None), sys.argv[1:]))
    modules = {"convert_hf_to_gguf": converter, "conversion": None, "conversion.base": None}
    if place == "conversion.base":
        modules |= {"conversion": types.ModuleType("conversion")}
        modules |= {"conversion.base": types.SimpleNamespace(TextModel=text_model)}
    else:
        converter.TextModel = text_model
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["to_gguf.py", "llama.cpp", "--outtype=f32"])
    with pytest.raises(SystemExit, match=r"usage: python to_gguf\.py"):
        runpy.run_path(str(tmp_path / "hf" / "to_gguf.py"), run_name="__main__")
    (tmp_path / "convert_hf_to_gguf.py").touch()
    sys.argv[1] = str(tmp_path)
    runpy.run_path(str(tmp_path / "hf" / "to_gguf.py"), run_name="__main__")
    folder = (tmp_path / "hf").resolve()
    assert calls == [
        ("llama-bpe", [str(folder), f"--outfile={folder / 'model.gguf'}", "--outtype=f32"])
    ]


@pytest.mark.parametrize("place", ["conversion.gpt_neox", "convert_hf_to_gguf"])
def test_to_gguf_gives_a_rotary_model_what_llama_cpp_asks_for(place, data, tmp_path, monkeypatch):
    """Its head, which is the embedding, and how much of a head is rotary."""

    class GPTNeoXModel:
        def __init__(self):
            self.hparams, self.rotary = {}, None

        def set_gguf_parameters(self):
            self.rotary = self.hparams["rotary_pct"]

        def modify_tensors(self, data, name, layer):
            yield self.map_tensor_name(name), data

        def map_tensor_name(self, name):
            return f"{name} of llama.cpp"

    model = random_model(vocab_size=512, positions="rope")
    run_of(model, Tokenizer.load(data), tmp_path / "run")
    export.export(checkpoint.load_run(tmp_path / "run"), tmp_path / "hf")
    converter = types.SimpleNamespace(main=lambda: None, TextModel=type("TextModel", (), {}))
    modules = {"convert_hf_to_gguf": converter, "conversion": None, "conversion.gpt_neox": None}
    if place == "conversion.gpt_neox":
        modules["conversion"] = types.ModuleType("conversion")
        modules["conversion.base"] = types.SimpleNamespace(TextModel=converter.TextModel)
        modules[place] = types.SimpleNamespace(GPTNeoXModel=GPTNeoXModel)
    else:
        converter.GPTNeoXModel = GPTNeoXModel
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["to_gguf.py", str(tmp_path)])
    (tmp_path / "convert_hf_to_gguf.py").touch()
    runpy.run_path(str(tmp_path / "hf" / "to_gguf.py"), run_name="__main__")
    assert "gpt_neox.embed_in.weight" in load_file(tmp_path / "hf" / "model.safetensors")
    neox = GPTNeoXModel()
    neox.set_gguf_parameters()
    assert neox.rotary == 1.0
    assert list(neox.modify_tensors(7, "gpt_neox.embed_in.weight", None)) == [
        ("gpt_neox.embed_in.weight of llama.cpp", 7), ("embed_out.weight of llama.cpp", 7)
    ]  # fmt: skip
    assert len(list(neox.modify_tensors(7, "gpt_neox.final_layer_norm.weight", None))) == 1


def test_a_config_of_training_does_not_turn_sampling_to_its_base(
    data, tmp_path, capsys, monkeypatch
):
    """init_from, batch_size and dtype in a file are train.py's."""
    run_of(random_model(vocab_size=512), Tokenizer.load(data), tmp_path / "run")
    config = tmp_path / "mine.py"
    lines = ["init_from = 'gpt2'", "batch_size = 1", "dtype = 'float16'",
             f"out_dir = {str(tmp_path / 'run')!r}"]  # fmt: skip
    config.write_text("\n".join(lines))
    monkeypatch.setattr(
        sys, "argv", ["sample.py", str(config), "--start=Tom", "--max_new_tokens=3"]
    )
    sample.main()
    assert capsys.readouterr().out.startswith("Tom")


def test_a_run_with_fewer_positions(tmp_path):
    """Fine-tuning may keep only some of a run's own positions, too."""
    model = random_model()
    run_of(model, build("bytes"), tmp_path / "run")
    loaded = checkpoint.load_model(str(tmp_path / "run"), block_size=20)
    assert loaded.max_length == loaded.model.config.block_size == 20
    tokens = torch.randint(257, (1, 20))
    assert torch.equal(loaded.model(tokens), model(tokens))


def test_sample_takes_a_run_or_a_model_not_both(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sample.py", "--out_dir=out/a", "--init_from=gpt2"])
    with pytest.raises(UserError, match="out_dir names a run, init_from any model"):
        sample.main()
