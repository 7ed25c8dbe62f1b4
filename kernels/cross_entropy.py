"""
The output head and its cross-entropy in one operation, without the N x V logits.

    loss_n = logsumexp_v(h_n . W_v) - h_n . W_t(n)
    d loss_n / d h_n = sum_v (p_nv - [v = t(n)]) W_v,      p_n = softmax(W h_n)
    d loss_n / d W_v = (p_nv - [v = t(n)]) h_n

Both gradients need only p, so the forward pass forms it for a few hundred rows at a time, adds what
those rows contribute to both gradients, and forgets it: the chunk stays in the CPU's cache, where
the whole matrix would cross the memory bus six times. Elsewhere than on a CPU the two plain
operations run, which torch.compile fuses.
"""

import torch
import torch.nn.functional as F

CHUNK = 512  # rows; 512 x 4,096 float32 logits are 8 MB


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, ignore_index):
        """hidden (N, C), weight (V, C), targets (N,) -> the mean loss; makes the gradients too."""
        total = hidden.new_zeros((), dtype=torch.float32)
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for first in range(0, len(hidden), CHUNK):
            rows = slice(first, first + CHUNK)
            log_p, target, counts = _log_softmax(hidden[rows], weight, targets[rows], ignore_index)
            total -= (log_p.gather(1, target) * counts).sum()
            d_logits = log_p.exp_()
            d_logits.scatter_add_(1, target, torch.full_like(counts, -1.0))
            d_logits.mul_(counts)
            d_hidden[rows] = d_logits @ weight
            d_weight += d_logits.T @ hidden[rows]
        n = (targets != ignore_index).sum()
        ctx.save_for_backward(d_hidden, d_weight, n)
        return total / n

    @staticmethod
    def backward(ctx, d_loss):
        d_hidden, d_weight, n = ctx.saved_tensors
        scale = d_loss / n
        return d_hidden * scale, d_weight * scale, None, None


def _log_softmax(hidden, weight, targets, ignore_index):
    """For R rows: log p (R, V) float32, a valid target (R, 1), 1 where it counts, else 0 (R, 1)."""
    log_p = F.linear(hidden, weight).float().log_softmax(-1)
    counts = (targets != ignore_index)[:, None]
    return log_p, targets[:, None].where(counts, 0), counts.float()


def linear_cross_entropy(hidden, weight, targets, vocab_size, ignore_index=-1, mean=True):
    """
    Cross-entropy of softmax(hidden W^T) against targets.

    hidden: (N, C) float. weight: (V_padded, C) float; rows from vocab_size on are padding, which
    takes no part and gets no gradient. targets: (N,) int64, ignore_index where nothing counts.
    Returns nats, float32: the mean over the targets that count (nan where none does), or with
    mean=False a loss for each row (N,), 0 where ignored.
    """
    weight = weight[:vocab_size]
    if hidden.device.type != "cpu":
        logits = F.linear(hidden, weight).float()
        reduction = "mean" if mean else "none"
        return F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction=reduction)
    if mean and torch.is_grad_enabled():
        return _ChunkedLoss.apply(hidden, weight, targets, ignore_index)
    losses = []
    for rows, rows_targets in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
        log_p, target, counts = _log_softmax(rows, weight, rows_targets, ignore_index)
        losses.append(-(log_p.gather(1, target) * counts)[:, 0])
    losses = torch.cat(losses)
    return losses.sum() / (targets != ignore_index).sum() if mean else losses
