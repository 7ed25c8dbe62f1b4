"""
Runs of reward.py that differ in kl_factor alone, one after the other, and their plot.

    runs = members(settings, origin, [0.0, 0.02, 0.05])     # in <out_dir>/kl_0, kl_0.02, kl_0.05
    run(settings, runs, reference, start)                   # and frontier.png in out_dir

What is there already is gone on with; what has come to its end is left as it is.
"""

from dataclasses import replace

from eval import reward_frontier
from nanostories.training import checkpoint
from nanostories.training.distributed import print0, rank
from nanostories.training.run_config import resumed


def members(settings, origin, asked):
    """The settings of the runs: new ones, or as those that are there already have them."""
    found = []
    for factor in asked:
        out = f"{settings.out_dir}/kl_{factor:g}"
        one = replace(settings, kl_factor=factor, out_dir=out)
        there = bool(checkpoint.steps_of(out))
        found.append(replace(resumed(one, origin, out), resume=True) if there else one)
    return found


def is_over(settings):
    """Whether a run has come to its end already, and is not to be longer."""
    if not settings.resume:
        return False
    state = checkpoint.read_state(settings.out_dir)
    longer = state["end"] == "done" and state["step"] < settings.max_iters
    return bool(state["end"]) and not longer


def run(settings, runs, reference, start):
    """
    All runs but those that are over, by start(settings, reference), and their plot. A stop, where
    start returns "", leaves the rest for another call.
    """
    for one in runs:
        if not is_over(one):
            print0(f"--- kl_factor {one.kl_factor:g}: {one.out_dir}")
            if not start(one, reference):
                return
    if rank() == 0:
        reward_frontier.write(settings, [one.out_dir for one in runs], reference)
