"""benchmarks/training.py: both projects train the same model and are in the table and the file."""

import json

import pytest

from benchmarks import training
from configs import UserError
from nanostories.training.device import pick_device

# nanoGPT's interface, as benchmarks/training.py uses it, around this project's model.
NANOGPT = """
import torch
from model import GPT as Ours, GPTConfig as Config
class GPTConfig:
    def __init__(self, **shape): self.__dict__ = shape
class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        print("number of parameters: many")
        shape = {k: v for k, v in vars(config).items() if k != "bias"}
        self.model = Ours(Config(**shape))
    def configure_optimizers(self, decay, lr, betas, device_type):
        matrices = [p for p in self.parameters() if p.ndim > 1]
        vectors = [p for p in self.parameters() if p.ndim < 2]
        return torch.optim.AdamW([{"params": matrices}, {"params": vectors}], lr, betas)
    def forward(self, x, y):
        return None, self.model(x, y)
"""


@pytest.mark.slow
def test_the_table_and_the_file(tmp_path, monkeypatch, capfd):
    (tmp_path / "model.py").write_text(NANOGPT)
    out = tmp_path / "figures" / "bench.json"
    monkeypatch.setattr("sys.argv", [
        "training.py", f"--nanogpt={tmp_path}", "--sizes=32-1", "--vocabs=300", "--dtypes=float32",
        "--tokens=2048", "--rounds=2", "--device=cpu", f"--out={out}"])  # fmt: skip
    training.main()
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 3 and "nanoStories" in lines[1] and "nanoGPT" in lines[2]
    facts = json.loads(out.read_text())
    [case] = facts["cases"]
    assert (case["n_embd"], case["n_layer"], case["vocab_size"]) == (32, 1, 300)
    projects = case["nanoStories"], case["nanoGPT"]
    assert case["ratio"]["median"] > 0 and len(case["ratio"]["all"]) == 2
    assert f"{case['ratio']['median']:.2f}x" in lines[1]
    for figures in projects:
        assert figures["tokens_per_second"] > 0 and figures["peak_bytes"] > 50 * 2**20
        assert 0 < figures["matmul_fraction"] < 1
    assert facts["environment"]["torch"] and facts["matmul_flops"]["float32"] > 1e9


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sizes": "64"}, "sizes must be n_embd-n_layer"),
        ({"sizes": "64x2"}, "sizes must be n_embd-n_layer"),
        ({"vocabs": "many"}, "and vocabs numbers"),
        ({"sizes": "20-1"}, "n_embd must be a multiple of 16"),
        ({"vocabs": "100000"}, "a vocabulary have 2 to 65,536 ids"),
        ({"tokens": 100}, "tokens must be a multiple of 1024"),
        ({"rounds": 0}, "rounds at least 1"),
        ({"dtypes": "int8"}, "dtype must be auto, float32, bfloat16 or float16, not 'int8'"),
    ],
)
def test_wrong_settings(changes, message):
    good = {"sizes": "64-1", "vocabs": "300", "dtypes": "float32", "tokens": 2048}
    assert len(list(training.cases(training.Settings(**good), pick_device("cpu")))) == 1
    with pytest.raises(UserError, match=message):
        list(training.cases(training.Settings(**good | changes), pick_device("cpu")))
