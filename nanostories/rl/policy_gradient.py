"""Policy gradients with a KL penalty: REINFORCE, RLOO, GRPO and the student report's method.

A completion y has the reward R(y). All methods maximize

    J(pi) = E[R(y)] - beta KL(pi || ref),    y ~ pi,    KL(pi || ref) = E[log pi(y) - log ref(y)]

where pi is the policy, the model that is trained, and ref the frozen reference. The optimum is
pi(y) = ref(y) exp(R(y) / beta) / Z, the gradient E[(R(y) - beta log(pi(y) / ref(y))) grad log
pi(y)]. log pi(y) = sum_t log pi(y_t) over its tokens y_t, and <|endoftext|> where it ended. The n
completions of one prompt are a group. R~_i = R_i - beta log(pi(y_i) / ref(y_i)) has no gradient.
KL_t = sum_v pi(v) log(pi(v) / ref(v)), both after the prompt and the tokens before y_t.

    naive       L = mean_i [-R_i log pi(y_i) + beta sum_t KL_t]
                The report's. The first term has no baseline: it is unbiased and noisy. The second
                has the gradient of each token's KL_t, but not of how likely the tokens before it
                are: that is the gradient of KL(pi || ref) only for completions of one token.
    reinforce   L = mean_i -(R~_i - mean_j R~_j) log pi(y_i)
                Williams 1992. The baseline contains the completion's own reward, which makes the
                gradient (n - 1) / n of the exact one.
    rloo        L = mean_i -(R~_i - mean_j/=i R~_j) log pi(y_i)
                REINFORCE leave-one-out (Kool et al. 2019; Ahmadian et al. 2024): n / (n - 1) times
                reinforce, the exact gradient.
    grpo        L = mean_i [-(R_i - mean_j R_j) / (std_j R_j + 1e-4) log pi(y_i)
                            + beta sum_t KL_t] / |y_i|
                Shao et al. 2024. With one update a batch their probability ratio is 1 and nothing
                is clipped. Their KL term is the estimate k3, whose gradient as a loss is that of
                KL(ref || pi) token by token. Ours is the exact KL_t of (pi || ref).

All KL here is KL(pi || ref) in nats, summed over the vocabulary and over a completion's tokens.
"""

import torch

from kernels.cross_entropy import IGNORE_INDEX

METHODS = ("naive", "reinforce", "rloo", "grpo")
KL_IN_LOSS = ("naive", "grpo")


def log_probs(model, tokens, targets, temperature):
    """The model's log-probabilities at a temperature, float32 (M, V), where targets (N, T) has one:
    the head reads no prompt and no padding. tokens: (N, T)."""
    hidden = model.hidden(tokens)[targets != IGNORE_INDEX]
    return (model.head(hidden).float() / temperature).log_softmax(-1)


def target_log_probs(logs, targets):
    """The log-probabilities of the targets, (N, T), 0 where there is none. logs: of `log_probs`."""
    index = targets[targets != IGNORE_INDEX]
    return _at_targets(logs.gather(-1, index[:, None])[:, 0], targets)


def _at_targets(values, targets):
    """(N, T) with values, (M,), where targets has one, and 0 elsewhere."""
    return values.new_zeros(targets.shape).masked_scatter(targets != IGNORE_INDEX, values)


def compare(policy, reference, tokens, targets, temperature=1.0, kl_in_loss=False):
    """(log pi, log ref, KL_t) of a PaddedBatch at a temperature, each (N, T) float32 and 0 outside
    the completions. log pi has a gradient; KL_t has one with kl_in_loss."""
    policy_logs = log_probs(policy, tokens, targets, temperature)  # (M, V)
    with torch.no_grad():
        reference_logs = log_probs(reference, tokens, targets, temperature)
    log_pi = target_log_probs(policy_logs, targets)
    log_ref = target_log_probs(reference_logs, targets)
    policy_logs = policy_logs if kl_in_loss else policy_logs.detach()
    kl = (policy_logs.exp() * (policy_logs - reference_logs)).sum(-1)
    return log_pi, log_ref, _at_targets(kl, targets)


def advantages(method, rewards, log_ratios, beta, group_size):
    """The advantages A_i, (N,): the loss has -A_i log pi(y_i).

    rewards: (N,) R_i. log_ratios: (N,) log(pi(y_i) / ref(y_i)). group_size: so many completions in
    a row belong to one prompt. Raises ValueError for an unknown method or a group of one."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not '{method}'")
    if method == "naive":
        return rewards
    if group_size < 2:
        raise ValueError(f"method {method} compares completions of a prompt: group_size >= 2")
    scores = rewards if method == "grpo" else rewards - beta * log_ratios
    groups = scores.view(-1, group_size)
    centered = groups - groups.mean(1, keepdim=True)
    if method == "grpo":
        centered = centered / (groups.std(1, correction=0, keepdim=True) + 1e-4)
    if method == "rloo":
        centered = centered * (group_size / (group_size - 1))
    return centered.flatten()


def loss(method, advantage, log_pi, kl, completion_mask, beta):
    """The loss of each completion, (N,). advantage: (N,); log_pi, kl, completion_mask: (N, T)."""
    losses = -advantage * log_pi.sum(1)
    if method in KL_IN_LOSS:
        losses = losses + beta * kl.sum(1)
    return losses / completion_mask.sum(1) if method == "grpo" else losses


def kl_estimates(log_pi, log_ref):
    """{k1, k2, k3}: estimates of each completion's KL from its sampled tokens alone, (N,) each.

    Schulman 2020: with d = log ref - log pi of a token, the sums of k1 = -d, k2 = d^2 / 2 and
    k3 = e^d - 1 - d. k1 and k3 are unbiased."""
    d = log_ref - log_pi
    return {"k1": -d.sum(1), "k2": (d * d / 2).sum(1), "k3": (d.expm1() - d).sum(1)}
