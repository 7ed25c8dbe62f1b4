"""Several processes that train together: their ranks, their sums, and a signal that stops them all.

    with process_group():                          # does nothing where torchrun started no ranks
        print0(f"{world_size()} rank(s)")          # printed once, by rank 0
        [seconds] = all_reduce_max(seconds)        # the same number on every rank

Ranks are torch.distributed's: NCCL between GPUs, gloo between CPUs and for the numbers the hosts
agree on, so that agreeing never waits for a GPU.
"""

import contextlib
import functools
import os
import signal
import threading

import torch
import torch.distributed as dist


@contextlib.contextmanager
def process_group():
    """Join the ranks that torchrun started, if it did, and leave them at the end."""
    if "RANK" not in os.environ:
        yield
        return
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    yield
    dist.destroy_process_group()  # not after an error: it would wait for ranks that are gone


def _initialized():
    return dist.is_available() and dist.is_initialized()


def rank():
    """This process's number among the ranks, 0 where it is alone."""
    return dist.get_rank() if _initialized() else 0


def world_size():
    """How many processes train together."""
    return dist.get_world_size() if _initialized() else 1


def barrier():
    """Return when every rank has come here."""
    all_reduce_sum(0)


def print0(*words):
    """print, on rank 0 alone."""
    if rank() == 0:
        print(*words, flush=True)


def _all_reduce(operation, *numbers):
    """Each number's sum or maximum over the ranks, a list of floats."""
    numbers = torch.tensor(numbers, dtype=torch.float64)
    if _initialized():
        dist.all_reduce(numbers, getattr(dist.ReduceOp, operation))
    return numbers.tolist()


all_reduce_sum, all_reduce_max = (functools.partial(_all_reduce, name) for name in ("SUM", "MAX"))


def all_gather(items):
    """The lists of all ranks, one after the other by rank, as one list on each of them."""
    if not _initialized():
        return list(items)
    lists = [None] * world_size()
    dist.all_gather_object(lists, list(items))
    return [item for part in lists for item in part]


class StopSignal:
    """Within `with StopSignal() as stop:`, SIGTERM and the first Ctrl-C only set `stop.received`.

    The second ends the process at once. torchrun passes the signal on, and kills 30 seconds later.
    """

    def __enter__(self):
        self.received, self.previous = False, {}
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _handle(self, number, _frame):
        if self.received:
            os._exit(128 + number)
        self.received = True
        if rank() == 0:  # not with print: a signal may come in the middle of one
            os.write(2, b"\nstopping after this step; once more to stop at once\n")
