"""Validation: the loss over held-out stories, every target counted once."""

import contextlib

import torch


@torch.no_grad()
def evaluate(model, batches, autocast=contextlib.nullcontext, compiled=None):
    """
    Total loss of a GPT over `batches`, without dropout: (nats, targets counted).

    batches: an iterable of packing.Batch. autocast: a function that returns the context to compute
    in. compiled: the compiled form of `model`, used where a batch has the first one's shape.
    A batch's losses are summed in float32 on the device, the batches in float64 on the CPU: nothing
    waits for the device until the end.
    """
    training, shape = model.training, None
    model.eval()
    sums, count = [torch.zeros((), device=model.wte.weight.device)], 0
    for batch in batches:
        shape = shape or batch.tokens.shape
        # A last batch of fewer rows is not worth compiling for.
        forward = compiled if compiled is not None and batch.tokens.shape == shape else model
        torch.compiler.cudagraph_mark_step_begin()  # the last batch's results are used up
        where = {"positions": batch.positions, "start": batch.doc_start}
        with autocast():
            sums.append(forward(batch.tokens, batch.targets, **where, mean=False).sum())
        count += batch.target_count
    model.train(training)
    return torch.stack(sums).cpu().double().sum().item(), count
