"""What the tests of both kernel files share: where kernels run, and when their error is small."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # on a CPU in Triton's interpreter
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in DTYPES}


def assert_as_exact(ours, theirs, exact, what="", largest=0.0):
    """
    Our greatest error against float64 is at most twice that of torch in the same dtype.

    The floor under torch's error is two roundings of the largest value: where torch happens to be
    exact, at T = 1 say, we may still round. In float32 on a CPU it is four: there both sides sum as
    the processor's BLAS does, and on one without AVX-512 ours was 5 and 6.8 roundings off where
    torch's was 1.6 and 3. `largest`: a value on the way to it, where that may be larger.
    """
    exact = exact.double()
    eps = torch.finfo(ours.dtype).eps
    roundings = 4 if (DEVICE, ours.dtype) == ("cpu", torch.float32) else 2
    floor = roundings * eps * max(exact.abs().max().item(), largest) + 1e-30
    our_error = (ours.double() - exact).abs().max().item()
    their_error = (theirs.double() - exact).abs().max().item()
    assert our_error <= 2 * max(their_error, floor), (what, our_error, their_error)  # nan fails
    assert ours.isfinite().all(), what
