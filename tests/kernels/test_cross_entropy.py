"""The fused loss against float64, in each of its three ways."""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import DEVICE, DTYPES, NAMES, assert_as_exact
from torch.utils._python_dispatch import TorchDispatchMode

from configs import ROOT
from kernels import cross_entropy as module
from kernels.cross_entropy import IMPLEMENTATIONS, choose_loss, linear_cross_entropy

IGNORE = -1
# Not recompute in float32, which is never chosen: its one rounded log-sum for both passes has cost
# up to 2.3 times torch's error there.
CHOSEN = [(i, d) for i in IMPLEMENTATIONS for d in DTYPES if (i, d) != ("recompute", torch.float32)]


def inputs(N, C, V, dtype, spread=0.5):
    """hidden (N, C), weight padded to a multiple of 128 (with rubbish in the padding), targets."""
    torch.manual_seed(N + C + V)
    hidden = torch.randn(N, C, device=DEVICE).to(dtype)
    weight = (spread * torch.randn(-(-V // 128) * 128, C, device=DEVICE)).to(dtype)
    weight[V:] = 50
    targets = torch.randint(V, (N,), device=DEVICE)
    targets[1::4] = IGNORE
    return hidden, weight, targets


def eager(hidden, weight, targets, V, mean):
    logits = F.linear(hidden, weight[:V])
    logits = logits if hidden.dtype == torch.float64 else logits.float()
    reduction = "mean" if mean else "none"
    return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction=reduction)


def passes(implementation, hidden, weight, targets, V, mean, dtype):
    """[loss, gradient of hidden, gradient of weight] in `dtype`; None: eager torch."""
    hidden, weight = (x.to(dtype).detach().clone().requires_grad_() for x in (hidden, weight))
    if implementation is None:
        loss = eager(hidden, weight, targets, V, mean)
    else:
        loss = linear_cross_entropy(hidden, weight, targets, V, IGNORE, mean, implementation)
    torch.manual_seed(0)
    d_loss = 3 * torch.randn(loss.shape, device=DEVICE).abs().to(loss.dtype)
    return [loss.detach(), *torch.autograd.grad(loss, (hidden, weight), d_loss)]


def check(implementation, N, C, V, dtype, mean, spread=0.5):
    args = (*inputs(N, C, V, dtype, spread), V, mean)
    result = passes(implementation, *args, dtype)
    eager, exact = (passes(None, *args, kind) for kind in (dtype, torch.float64))
    logits = args[0].double() @ args[1][:V].double().T  # the loss is a difference of such
    for name, *values in zip(("loss", "d hidden", "d weight"), result, eager, exact, strict=True):
        assert_as_exact(*values, name, largest=logits.abs().max().item() * (name == "loss"))
    assert not result[2][V:].any()  # the padding is never trained


@pytest.mark.parametrize(
    "mean", [pytest.param(True, id="mean"), pytest.param(False, id="each", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_error_is_torchs(implementation, dtype, mean):
    check(implementation, 150, 40, 300, dtype, mean)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "N, C, V", [(1, 16, 1), (64, 16, 64), (65, 20, 129), (9, 200, 129), (3, 128, 5000)]
)
def test_any_size(implementation, N, C, V):
    check(implementation, N, C, V, torch.bfloat16, True)


@pytest.mark.slow
@pytest.mark.parametrize("implementation, dtype", CHOSEN, ids=str)
def test_every_size(implementation, dtype):
    recompute = implementation == "recompute"
    for C in (4, 48, 128) if recompute else (4, 48, 128, 200):
        for N, V in ((1, 50), (200, 512), (150, 1505), (40, 4096)):
            check(implementation, N, C, V, dtype, mean=N > 100)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_more_than_one_chunk(implementation, monkeypatch):
    monkeypatch.setattr(module, "chunk_size", lambda device: 64)
    for mean in (True, False):
        check(implementation, 200, 24, 200, torch.float32, mean)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_sure_targets_keep_their_gradient(implementation):
    """p_t = 0.9999: in bfloat16 it is 1, and p_t - 1 nothing."""
    torch.manual_seed(0)
    V, C = 100, 128
    weight = torch.zeros(128, C, device=DEVICE)
    weight[torch.arange(V), torch.arange(V)] = 4.0
    targets = torch.arange(64, device=DEVICE)
    hidden = weight[targets] * (math.log(99 * 1e4) / 16)
    loss, d_hidden, _ = passes(implementation, hidden, weight, targets, V, True, torch.bfloat16)
    _, exact, _ = passes(None, hidden.bfloat16(), weight, targets, V, True, torch.float64)
    assert loss.item() == pytest.approx(1e-4, rel=0.2)
    own = (torch.arange(64), targets)  # the component along the target's weights
    torch.testing.assert_close(d_hidden[own].double(), exact[own], rtol=0.02, atol=0)


@pytest.mark.parametrize("implementation, dtype", CHOSEN, ids=str)
def test_targets_of_no_probability(implementation, dtype):
    """Losses of 200 nats and more: exp(-loss) is 0 in float32 from 104 on."""
    check(implementation, 40, 32, 300, dtype, mean=False, spread=8)


@pytest.mark.parametrize("nats", [0, 60, 100, 140, 1000])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=NAMES.get)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_any_loss(implementation, dtype, nats):
    """Every third token prefers one word, in a segment of its own, to its target by so much: above
    2^100 times, 69 nats, that row alone takes the usual way. Without it every loss is near 0."""
    hidden, weight, targets = inputs(30, 32, 700, dtype, 0.1)
    weight[:, 0], hidden[:, 0] = 0, 0
    weight[targets, 0] = 1
    weight[300:310, 0] = torch.linspace(1, 4, 10, device=DEVICE).to(dtype)
    hidden[::3, 0] = nats / 3
    hidden[1::3, 0] = -2 * nats
    args = (hidden, weight, targets, 700, False)
    result = passes(implementation, *args, dtype)
    eager, exact = (passes(None, *args, kind) for kind in (dtype, torch.float64))
    assert nats * 0.6 < exact[0].max() < nats * 3 + 20
    top = hidden[:, 0].abs().max().item()
    largest = {"loss": 4 * top + 10, "d hidden": 0, "d weight": 0}  # logit
    if dtype == torch.float32:
        # The two passes may round their logits differently, as products do on CPUs without AVX-512:
        # then p is off by a quarter of that at most, and d weight by p times the hidden states.
        largest["d weight"] = largest["loss"] / 4 * top
    for name, *values in zip(largest, result, eager, exact, strict=True):
        assert_as_exact(*values, name, largest=largest[name])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nothing_counts(implementation):
    hidden, weight, targets = inputs(10, 16, 50, torch.float32)
    targets[:] = IGNORE
    hidden.requires_grad_()
    each = linear_cross_entropy(hidden, weight, targets, 50, IGNORE, False, implementation)
    assert not each.any()
    assert not torch.autograd.grad(each.sum(), hidden)[0].any()
    assert linear_cross_entropy(hidden, weight, targets, 50, IGNORE, True, implementation).isnan()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_without_gradients_the_loss_is_the_same(implementation):
    hidden, weight, targets = inputs(100, 24, 300, torch.float32)
    for mean in (True, False):
        args = (weight, targets, 300, IGNORE, mean, implementation)
        with torch.no_grad():
            plain = linear_cross_entropy(hidden, *args)
        trained = linear_cross_entropy(hidden.clone().requires_grad_(), *args)
        assert torch.equal(plain, trained)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_twice_is_the_same_and_every_element_is_written(implementation):
    torch.use_deterministic_algorithms(True, warn_only=True)  # what is not written to is nan
    try:
        args = (*inputs(100, 24, 300, torch.bfloat16), 300, False, torch.bfloat16)
        for a, b in zip(passes(implementation, *args), passes(implementation, *args), strict=True):
            assert a.isfinite().all()
            assert torch.equal(a, b)
    finally:
        torch.use_deterministic_algorithms(False)


def test_autocast_decides_the_dtype():
    hidden, weight, targets = inputs(100, 24, 300, torch.float32)
    hidden.requires_grad_(), weight.requires_grad_()
    with torch.autocast(DEVICE, torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets, 300, IGNORE)
        rounded = linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), targets, 300, IGNORE)
    loss.backward()
    assert torch.equal(loss, rounded)
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_layouts_other_than_contiguous(implementation):
    hidden, weight, targets = inputs(100, 24, 300, torch.float32)
    args = (300, True, torch.float32)
    strided = torch.stack([targets, targets + 1], -1)[:, 0]
    turned = (hidden.T.contiguous().T, weight.T.contiguous().T, strided)
    expected = passes(implementation, hidden, weight, targets, *args)
    for a, b in zip(passes(implementation, *turned, *args), expected, strict=True):
        assert torch.equal(a, b)


class Largest(TorchDispatchMode):
    """The size in bytes of the largest tensor that is made under it."""

    nbytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        for tensor in result if isinstance(result, tuple) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.nbytes = max(self.nbytes, tensor.nbytes)
        return result


@pytest.mark.parametrize("implementation", ["chunks", "torch"])
def test_the_logits_never_exist(implementation, monkeypatch):
    monkeypatch.setattr(module, "chunk_size", lambda device: 32)
    N, C, V = 320, 16, 512
    hidden, weight, targets = inputs(N, C, V, torch.float32)
    with Largest() as largest:
        module._in_chunks(
            hidden, weight, targets, torch.ones(N, device=DEVICE), V, IGNORE, True, implementation
        )
    assert largest.nbytes == 32 * V * 4


# ---- torch's side ------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_opcheck(implementation):
    hidden, weight, targets = inputs(20, 16, 50, torch.float32)
    for mean in (True, False):
        args = (targets, 50, IGNORE, mean, True, implementation, torch.float32)
        tensors = (hidden.clone().requires_grad_(), weight.clone().requires_grad_())
        torch.library.opcheck(module.fused_loss, (*tensors, *args))
    saved = module.fused_loss(hidden, weight, *args)[1:]
    args = (targets, *saved, 50, IGNORE, implementation, torch.float32)
    torch.library.opcheck(
        module.fused_loss_backward, (torch.ones(20, device=DEVICE), hidden, weight, *args)
    )


def test_what_is_chosen():
    assert choose_loss("cpu", torch.float32, 64) == "torch"
    assert module.choose_kernels(torch.bfloat16, 128) == "recompute"
    assert module.choose_kernels(torch.bfloat16, 256) == "recompute"
    assert module.choose_kernels(torch.bfloat16, 260) == "chunks"
    assert module.choose_kernels(torch.float32, 64) == "chunks"


def test_an_evaluation_does_not_import_the_compiler():
    code = """
import sys, torch
from kernels.cross_entropy import linear_cross_entropy
hidden, targets = torch.ones(4, 8), torch.zeros(4, dtype=torch.long)
with torch.no_grad():
    print(linear_cross_entropy(hidden, torch.ones(16, 8), targets, 16).item())
print("torch._dynamo" in sys.modules)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loss, imported = done.stdout.split()
    assert float(loss) == pytest.approx(math.log(16)) and imported == "False"
