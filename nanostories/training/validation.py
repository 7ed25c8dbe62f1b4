"""Validation: the loss over held-out stories, every target counted once."""

import contextlib
import itertools
import math

import torch

from nanostories.training.distributed import all_reduce_sum, rank, world_size


@torch.no_grad()
def evaluate(model, batches, autocast=contextlib.nullcontext, compiled=None):
    """Total loss of a GPT over `batches`, without dropout: (nats, targets counted).

    batches: of packing.Batch. compiled: the compiled form of `model`, used where a batch has the
    first one's shape: a shorter last one is not worth compiling for. A batch's losses are summed in
    float32 on the device, the batches in float64 on the CPU: nothing waits for it until the end."""
    training, shape = model.training, None
    model.eval()
    sums, count = [torch.zeros((), device=model.wte.weight.device)], 0
    for batch in batches:
        shape = shape or batch.tokens.shape
        forward = compiled if compiled is not None and batch.tokens.shape == shape else model
        if forward is not model:  # perhaps a CUDA graph; the last batch's results are used up
            torch.compiler.cudagraph_mark_step_begin()
        where = {"positions": batch.positions, "doc_start": batch.doc_start}
        with autocast():
            sums.append(forward(batch.tokens, batch.targets, **where, mean=False).sum())
        count += batch.target_count
    model.train(training)
    return torch.stack(sums).cpu().double().sum().item(), count


def validate(model, compiled, loader, text_bytes, autocast, signal):
    """(loss in nats per target, bits per byte) of the validation stories, by all ranks together.

    loader: their PackedDataLoader. text_bytes: of their text, a separator counted as one byte.
    signal: a StopSignal; where it is received meanwhile, the result is None."""
    ranges = (loader.row_range(i) for i in range(rank(), len(loader), world_size()))
    ranges = itertools.takewhile(lambda _: not signal.received, ranges)
    sums = evaluate(model, loader.stream(ranges), autocast, compiled)
    total_loss, targets = all_reduce_sum(*sums)
    if targets != loader.row_targets.sum():
        return None
    return total_loss / targets, total_loss / math.log(2) / text_bytes
