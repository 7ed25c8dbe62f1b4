""""""

import contextlib
import os
import signal
import threading

import torch
import torch.distributed as dist


@contextlib.contextmanager
def process_group():
    """Join the ranks that torchrun started, if it did, and part from them at the end."""
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


def all_reduce_sum(*numbers):
    """Each number's sum over the ranks, as floats."""
    return _reduce(numbers, "SUM")


def all_gather(items):
    """The lists of all ranks, one after the other by rank, as one list on each of them."""
    if not _initialized():
        return list(items)
    found = [None] * world_size()
    dist.all_gather_object(found, list(items))
    return [item for part in found for item in part]


def all_reduce_max(*numbers):
    """Each number's maximum over the ranks, as floats."""
    return _reduce(numbers, "MAX")


def _reduce(numbers, how):
    numbers = torch.tensor(numbers, dtype=torch.float64)
    if _initialized():
        dist.all_reduce(numbers, getattr(dist.ReduceOp, how))
    return numbers.tolist()


class StopSignal:
    """
    Within `with StopSignal() as interrupt:`, SIGTERM and the first Ctrl-C only set `asked`.

    The second ends the process at once. torchrun passes a signal on to its ranks, and kills them
    30 seconds later.
    """

    def __enter__(self):
        self.asked, self.before = False, {}
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number, _frame):
        if self.asked:
            os._exit(128 + number)
        self.asked = True
        if rank() == 0:  # not with print: a signal may come in the middle of one
            os.write(2, b"\nstopping after this step; once more to stop at once\n")
