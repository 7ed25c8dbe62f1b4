"""Flash attention in Triton against float64, at every kind of shape, dtype and mask."""

import subprocess
import sys
import types

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, NAMES, assert_as_exact

from kernels import attention as module
from kernels import attention_backward
from kernels.attention import attention, attention_mask, choose_attention, span_ends, windowed

one_pass_programs = attention_backward.one_pass_programs


@pytest.fixture(autouse=True)
def programs(monkeypatch):
    """A function: the backward pass takes one pass with n programs, or with 0 two sweeps.

    Until it is called, heads that one pass can take share two programs, on a GPU too."""

    def use(n):
        monkeypatch.setattr(attention_backward, "one_pass_programs", lambda *_: n)

    def without_gpu(n_heads, head_size, dtype, device):
        return one_pass_programs(n_heads, head_size, dtype, torch.device("cpu"))

    monkeypatch.setattr(attention_backward, "one_pass_programs", without_gpu)
    return use


def stories(B, T, every=60):
    """A (B, T) start of random stories, `every` tokens long on average."""
    start = torch.zeros(B, T, dtype=torch.int32)
    for b in range(B):
        for cut in sorted(torch.randint(T, (T // every,)).tolist()):
            start[b, cut:] = cut
    return start.to(DEVICE)


def masks(B, T):
    """Every kind of `start` there is."""
    return {
        "causal": None,
        "stories": stories(B, T),
        "window": windowed(None, 50, (B, T), DEVICE),
        "stories and window": windowed(stories(B, T), 20, (B, T), DEVICE),
    }


def passes(implementation, qkv, d_out, start, scale, dtype):
    """(out, gradient of qkv) in `dtype`."""
    qkv = qkv.to(dtype).detach().clone().requires_grad_()
    out = attention(qkv, start, scale, implementation)
    out.backward(d_out.to(dtype))
    return out.detach(), qkv.grad


def check(B, T, H, D, dtype, mask, scale=None):
    torch.manual_seed(B * T + D)
    qkv = torch.randn(B, T, 3, H, D, device=DEVICE).to(dtype)
    d_out = torch.randn(B, T, H, D, device=DEVICE).to(dtype)
    args = (qkv, d_out, masks(B, T)[mask], scale)
    exact = passes("math", *args, torch.float64)
    math, triton = (passes(name, *args, dtype) for name in ("math", "triton"))
    for name, *values in zip(("out", "d qkv"), triton, math, exact, strict=True):
        assert_as_exact(*values, name)


@pytest.mark.parametrize(
    "D, dtype, mask",
    [
        (16, torch.float32, "causal"),
        (48, torch.float32, "stories"),
        (64, torch.float32, "window"),
        (4, torch.bfloat16, "stories"),
        (16, torch.bfloat16, "stories and window"),
        (32, torch.bfloat16, "window"),
        (48, torch.bfloat16, "causal"),
        (48, torch.bfloat16, "stories"),
        (64, torch.bfloat16, "stories"),
        (128, torch.bfloat16, "causal"),
        (20, torch.float16, "stories"),
        (80, torch.float16, "window"),
        (64, torch.float16, "causal"),
        (128, torch.float16, "stories"),
    ],
    ids=lambda x: NAMES.get(x, x),
)
def test_error_is_torchs(D, dtype, mask):
    check(1, 140, 2, D, dtype, mask)


SMALL = [  # cases of `_backward_one_pass`
    (4, torch.float16, "window"),
    (16, torch.float16, "causal"),
    (16, torch.bfloat16, "window"),
    (20, torch.bfloat16, "stories and window"),
    (32, torch.float16, "stories and window"),
    (32, torch.bfloat16, "causal"),
    (32, torch.bfloat16, "stories"),
]


@pytest.mark.parametrize("D, dtype, mask", SMALL, ids=lambda x: NAMES.get(x, x))
def test_error_of_small_heads_is_torchs(D, dtype, mask):
    check(2, 200, 2, D, dtype, mask)


@pytest.mark.parametrize("D, dtype, mask", SMALL[1:-1], ids=lambda x: NAMES.get(x, x))
def test_error_of_small_heads_in_two_sweeps(programs, D, dtype, mask):
    programs(0)
    check(1, 140, 2, D, dtype, mask)


@pytest.mark.parametrize(
    "block, step", [pytest.param(128, 32, marks=pytest.mark.slow), (128, 128), (32, 16)]
)
def test_one_pass_in_other_tiles(monkeypatch, block, step):
    settings = {"BLOCK": block, "STEP": step, "num_warps": 4, "num_stages": 2}
    monkeypatch.setattr(attention_backward, "one_pass_tiles", lambda *_: settings)
    for mask in masks(1, 1):
        check(1, 270, 2, 16, torch.bfloat16, mask)


@pytest.mark.parametrize("T", [1, 2, 63, 64, 65, 97, 128, 129, 513])
def test_any_length(T):
    check(1, T, 1, 48, torch.bfloat16, "causal")
    check(1, T, 1, 16, torch.float16, "stories")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
@pytest.mark.parametrize("D", range(4, 129, 4))
def test_every_head_size(D, dtype):
    for mask in ("causal", "stories and window"):
        check(1, 70, 2, D, dtype, mask)  # one whole block and a part, of every block size


@pytest.mark.slow
@pytest.mark.parametrize("D", [16, 48, 64, 128])
@pytest.mark.parametrize("T", [1, 31, 97, 128, 200, 513, 1024])
def test_every_length(D, T):
    for mask in masks(1, T):
        check(1, T, 2 if T < 500 else 1, D, torch.bfloat16, mask)  # the interpreter takes seconds


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_scale(scale):
    check(1, 100, 2, 16, torch.float32, "stories", scale)


@pytest.fixture
def poisoned():
    """Memory that nothing was written to reads as nan."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all() and torch.zeros(3).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "D, dtype", [(48, torch.bfloat16), (20, torch.float32), (20, torch.bfloat16)]
)
def test_every_element_is_written_and_twice_the_same(poisoned, D, dtype):
    torch.manual_seed(0)
    qkv = torch.randn(2, 100, 3, 2, D, device=DEVICE)
    d_out = torch.randn(2, 100, 2, D, device=DEVICE)
    start = stories(2, 100, 30)
    results = [passes("triton", qkv, d_out, start, None, dtype) for _ in range(2)]
    for a, b in zip(*results, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


def test_a_head_s_gradient_is_the_same_in_any_program(poisoned, programs):
    """What a program leaves in its sums of one head does not reach the next."""
    torch.manual_seed(0)
    qkv = torch.randn(2, 150, 3, 2, 16, device=DEVICE).bfloat16()
    d_out = torch.randn(2, 150, 2, 16, device=DEVICE).bfloat16()
    for start in (None, windowed(stories(2, 150, 40), 50, (2, 150), DEVICE)):
        span = module.attention_span(start, "triton")
        out, lse = module.flash_attention(qkv, *span, 0.25)
        grads = []
        for n in (4, 2, 1):  # one head a program, two, four
            programs(n)
            args = (d_out, qkv, out, lse, *span, 0.25)
            grads.append(module.flash_attention_backward(*args))
        assert grads[0].isfinite().all()
        assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])


def test_one_pass_is_chosen_for_many_small_heads(monkeypatch):
    """Programs of an H100 (132 multiprocessors) and of a B200 (148)."""
    gpus = {"cuda:0": (132, (9, 0)), "cuda:1": (148, (10, 0))}

    def properties(device):
        return types.SimpleNamespace(multi_processor_count=gpus[str(device)][0])

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: gpus[str(device)][1])
    monkeypatch.setattr("kernels.backend.interpreted", lambda: False)
    h100, b200 = torch.device("cuda:0"), torch.device("cuda:1")
    for D, heads, dtype, device, expected in (
        (16, 1024, torch.bfloat16, h100, 3 * 132),
        (16, 1024, torch.float16, b200, 2 * 148),
        (32, 1024, torch.bfloat16, h100, 2 * 132),
        (4, 300, torch.bfloat16, h100, 300),
        (16, 2 * 132 - 1, torch.bfloat16, h100, 0),
        (36, 1024, torch.bfloat16, h100, 0),
        (16, 1024, torch.float32, h100, 0),
    ):
        assert one_pass_programs(heads, D, dtype, device) == expected


def test_layouts_other_than_contiguous():
    torch.manual_seed(0)
    wide = torch.randn(2, 100, 3, 2, 24, device=DEVICE)
    start = stories(2, 100)
    strided_start = torch.stack([start, start], -1)[..., 0]
    d_out = torch.randn(2, 2, 1, 16, device=DEVICE).expand(2, 2, 100, 16).transpose(1, 2)
    results = []
    for qkv, start_now, d_out_now in (
        (wide[..., :16], strided_start, d_out),
        (wide[..., :16].contiguous(), start, d_out.contiguous()),
    ):
        qkv = qkv.detach().requires_grad_()
        out = attention(qkv, start_now, implementation="triton")
        results.append((out, *torch.autograd.grad(out, qkv, d_out_now)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_blocks_of_other_stories_are_never_read():
    """nan in one story would spread through any product with it, even where P is 0."""
    torch.manual_seed(0)
    qkv = torch.randn(1, 512, 3, 1, 16, device=DEVICE)
    d_out = torch.randn(1, 512, 1, 16, device=DEVICE)
    start = torch.zeros(1, 512, dtype=torch.int32, device=DEVICE)
    start[:, 128:], start[:, 384:] = 128, 384
    whole = passes("triton", qkv, d_out, start, None, torch.bfloat16)
    for begin, end in ((0, 128), (128, 384), (384, 512)):
        bad_qkv, bad_d_out = qkv.clone(), d_out.clone()
        for bad in (bad_qkv, bad_d_out):
            bad[:, :begin] = bad[:, end:] = float("nan")
        result = passes("triton", bad_qkv, bad_d_out, start, None, torch.bfloat16)
        for a, b in zip(result, whole, strict=True):
            assert torch.equal(a[:, begin:end], b[:, begin:end])


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("H, D", [(16, 64), (64, 16)])
def test_more_elements_than_32_bits_count(H, D):
    torch.manual_seed(0)
    B, T = 1450, 512  # qkv has 2^31 + 133 M elements
    qkv = torch.randn(1, T, 3, H, D, device=DEVICE, dtype=torch.bfloat16)
    d_out = torch.randn(1, T, H, D, device=DEVICE, dtype=torch.bfloat16)
    one = passes("triton", qkv, d_out, None, None, torch.bfloat16)
    many = (x.expand(B, *x.shape[1:]) for x in (qkv, d_out))
    for a, b in zip(passes("triton", *many, None, None, torch.bfloat16), one, strict=True):
        assert torch.equal(a[-1], b[0])


def test_the_future_does_not_reach_the_past():
    torch.manual_seed(0)
    qkv = torch.randn(1, 150, 3, 2, 32, device=DEVICE)
    before = attention(qkv, implementation="triton")
    qkv[:, 100] += 1
    after = attention(qkv, implementation="triton")
    assert torch.equal(before[:, :100], after[:, :100])
    assert not torch.equal(before[:, 100:], after[:, 100:])


def test_large_scores_do_not_overflow():
    torch.manual_seed(0)
    qkv = 40 * torch.randn(1, 150, 3, 1, 64, device=DEVICE)
    d_out = torch.randn(1, 150, 1, 64, device=DEVICE)
    for value in passes("triton", qkv, d_out, stories(1, 150), 1.0, torch.bfloat16):
        assert value.isfinite().all()


def test_a_key_s_span_ends_after_its_last_query():
    start = windowed(stories(3, 90, 20), 15, (3, 90), DEVICE)
    seen = attention_mask(start)[:, 0]  # (B, query, key)
    last = seen.int() * torch.arange(1, 91, device=DEVICE)[None, :, None]
    assert torch.equal(span_ends(start), last.amax(1).int())


# ---- torch's side ------------------------------------------------------------------------------


def test_opcheck():
    torch.manual_seed(0)
    qkv = torch.randn(2, 40, 3, 1, 16, device=DEVICE, requires_grad=True)
    start = stories(2, 40, 15)
    for span in ((None, None), (start, span_ends(start))):
        torch.library.opcheck(module.flash_attention, (qkv, *span, 0.25))
    out, lse = module.flash_attention(qkv, *span, 0.25)
    args = [x.detach() for x in (torch.randn_like(out), qkv, out, lse)]
    torch.library.opcheck(module.flash_attention_backward, (*args, *span, 0.25))


def test_what_cannot_run_is_refused():
    with pytest.raises(ValueError, match="attn must be one of auto, triton, sdpa, math, not 'fla'"):
        choose_attention("fla", DEVICE, 64, torch.bfloat16)
    for size in (132, 6, 256):
        with pytest.raises(ValueError, match=f"heads of {size} are not a multiple of 4 up to 128"):
            choose_attention("triton", DEVICE, size, torch.bfloat16)
    with pytest.raises(TypeError, match="float64"):
        attention(
            torch.zeros(1, 4, 3, 1, 16, dtype=torch.float64, device=DEVICE), implementation="triton"
        )


def test_without_triton_or_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr("kernels.backend.interpreted", lambda: False)
    with pytest.raises(ValueError, match="need a CUDA GPU, not mps; use attn=sdpa"):
        choose_attention("triton", "mps", 64, torch.bfloat16)
    monkeypatch.setattr("kernels.backend.installed", lambda: False)
    with pytest.raises(ValueError, match="triton is not installed; use attn=sdpa"):
        choose_attention("triton", DEVICE, 64, torch.bfloat16)
    choice = choose_attention("auto", "cuda", 64, torch.bfloat16)
    assert choice == ("sdpa", "triton cannot run: triton is not installed")


def test_what_auto_takes():
    """On a GPU the kernels, but for heads they do not know and in float32, where torch is ahead."""
    sizes = [(64, torch.bfloat16), (4, torch.float16), (6, torch.bfloat16), (64, torch.float32)]
    assert [choose_attention("auto", "cuda", *what)[0] for what in sizes] == ["triton"] * 2 + [
        "sdpa"
    ] * 2
    assert {choose_attention("auto", "cpu", *what)[0] for what in sizes} == {"sdpa"}


def test_everything_else_works_without_triton():
    """As on a Mac: the model trains, and only the kernels are refused."""
    code = """
import sys
sys.modules["triton"] = None  # its import fails from here on
import torch
from kernels.attention import choose_attention
from model import GPT, GPTConfig
model = GPT(GPTConfig(vocab_size=50, n_layer=1, n_head=2, n_embd=8, block_size=9))
tokens = torch.arange(18).view(2, 9)
model(tokens, tokens).backward()
name, _ = choose_attention("auto", "cpu", 4, torch.bfloat16)
print(name, model.wte.weight.grad.isfinite().all().item())
choose_attention("triton", "cpu", 4, torch.bfloat16)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "sdpa True\n", done.stderr
    assert "ValueError: attn=triton cannot run: triton is not installed" in done.stderr
