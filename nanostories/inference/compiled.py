"""The decoder on a CPU in C: step.c, compiled at first use, in place of many calls to torch.

    decoder = CompiledDecoder(model, "int8")     # or float32, bfloat16
    cache = decoder.new_cache(batch_size=1, max_length=512)      # as any BatchedKVCache

A small model's step in torch is some 150 calls of a few microseconds each; here it is one. The
library is built by the system's C compiler ($CC, else cc) for this very CPU, compared with
model.py, and kept in ~/.cache/nanostories, or $XDG_CACHE_HOME.
"""

import contextlib
import ctypes
import functools
import mmap
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import torch

from configs import UserError
from model import GPT, GPTConfig, rotation
from nanostories.inference.kv_cache import NO_NUMBERS, NO_PENALTIES, BatchedKVCache
from nanostories.training.device import cpu_name
from nanostories.training.int8 import quantize_rows

SOURCE = Path(__file__).with_name("step.c")
# What -ffast-math means for the file alone: linked with it, a library would change how all of the
# process treats the smallest numbers.
FLAGS = (
    "-O3", "-march=native", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math",
    "-fno-signed-zeros", "-ffinite-math-only", "-fassociative-math", "-freciprocal-math",
)  # fmt: skip
TYPES = {"float32": 0, "bfloat16": 1, "int8": 2}  # as in step.c
VECTORS = 4
SHARED = 8  # slots for each thread, from which on each thread has its own
LARGE_PAGE = 2**21  # bytes
CHUNK = 64  # tokens of a prompt that are read together: their activations stay in a core's cache
_Pointer = ctypes.c_void_p


class _Matrix(ctypes.Structure):
    _fields_ = [(name, _Pointer) for name in ("weight", "bias", "scale")]
    _fields_ += [(name, ctypes.c_int) for name in ("num_inputs", "num_outputs", "type")]


class _Layer(ctypes.Structure):
    _fields_ = [("ln_1", _Pointer), ("ln_2", _Pointer)]
    _fields_ += [(name, _Matrix) for name in ("c_attn", "attn_proj", "c_fc", "mlp_proj")]


class _Model(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int) for name in ("n_layer", "n_head", "n_embd", "window", "tanh_gelu")
    ]
    _fields_ += [("attention_scale", ctypes.c_float)]
    _fields_ += [(name, _Pointer) for name in ("wte", "wpe", "turns", "ln_f")]
    _fields_ += [("head", _Matrix), ("layers", ctypes.POINTER(_Layer))]


# ---- the library ---------------------------------------------------------------------------------


@functools.cache
def load_library(mlp="gelu"):
    """step.c as a ctypes library, built if it is not yet; None, with a line on stderr, where it
    cannot be or lacks such an MLP."""
    try:
        if mlp != "gelu":
            raise UserError(f"step.c computes mlp=gelu alone, not {mlp}")
        return _library()
    except (OSError, UserError) as error:
        line = f"generation goes on in torch, which is slower: {error}"
        print(" ".join(line.split())[:300], file=sys.stderr, flush=True)


def _library():
    compiler = shlex.split(os.environ.get("CC") or "cc")
    if not (path := shutil.which(compiler[0])):
        raise UserError(f"there is no C compiler '{compiler[0]}'")
    # Another compiler, file or CPU makes another library.
    facts = [SOURCE.read_bytes(), compiler, FLAGS, os.stat(path).st_mtime, platform.machine()]
    name = sha256(repr([*facts, cpu_name(), torch.backends.cpu.get_cpu_capability()]).encode())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanostories"
    file = cache / f"step-{name.hexdigest()[:16]}.so"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            part = Path(folder) / file.name
            _build([path, *compiler[1:]], part)
            _check(_declare(part))
            os.replace(part, file)  # two commands may build it: each leaves a whole one
    return _declare(file)


def _build(compiler, out):
    """Compile step.c, with OpenMP's threads where the compiler has them; UserError if it fails."""
    for threads in (["-fopenmp"], []):
        command = [*compiler, *FLAGS, *threads, str(SOURCE), "-o", str(out), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
    first = next(iter(done.stderr.splitlines()), "")
    raise UserError(f"'{compiler[0]}' does not compile step.c: {first}")


def _declare(file):
    library, number = ctypes.CDLL(str(file)), ctypes.c_int
    shape = [number] * 3
    library.hidden.argtypes = [_Pointer, _Pointer, *shape, *[_Pointer] * 5, number]
    library.logits.argtypes = [_Pointer, _Pointer, number, _Pointer, _Pointer, number]
    library.sample.argtypes = [_Pointer, number, number, ctypes.c_float, _Pointer, number,
                               *[_Pointer] * 3]  # fmt: skip
    library.hidden.restype = library.logits.restype = None
    return library


@torch.no_grad()
def _check(library):
    """Raise UserError unless the library computes what model.py does, of a small model."""
    for positions in ("learned", "rope"):
        model = GPT(GPTConfig(72, 16, 2, 2, 24, positions=positions)).eval()
        decoder, ids = CompiledDecoder(model, library=library), torch.arange(16)
        kv = decoder.new_kv(1, 16)
        logits = decoder.logits(decoder.hidden(kv, ids, torch.zeros_like(ids), ids))
        if not torch.allclose(logits, model(ids[None])[0], atol=1e-4):
            raise UserError("the compiled step.c computes something else than model.py")


# ---- the decoder ---------------------------------------------------------------------------------


class CompiledDecoder:
    """A GPT's weights laid out for step.c, on the CPU. dtype: of the matrices, as decoder.Decoder
    has it. UserError where there is no library."""

    def __init__(self, model, dtype="float32", library=None):
        if dtype not in TYPES:
            raise UserError(f"dtype must be float32, bfloat16 or int8, not '{dtype}'")
        self.library = library or load_library(model.config.mlp)
        if not self.library:
            raise UserError("step.c cannot run this model here")
        self.lanes = ctypes.c_int.in_dll(self.library, "lanes").value
        self.config = config = model.config
        self.device, self.cache_dtype = torch.device("cpu"), torch.float32
        self._tensors = []  # kept alive: the library has their addresses
        layers = (_Layer * len(model.h))()
        for layer, block in zip(layers, model.h, strict=True):
            layer.ln_1, layer.ln_2 = self._norm(block.ln_1), self._norm(block.ln_2)
            layer.c_attn = self._matrix(block.attn.c_attn.weight, block.attn.c_attn.bias, dtype)
            layer.attn_proj = self._matrix(block.attn.c_proj.weight, block.attn.c_proj.bias, dtype)
            layer.c_fc = self._matrix(block.mlp.c_fc.weight, block.mlp.c_fc.bias, dtype)
            layer.mlp_proj = self._matrix(block.mlp.c_proj.weight, block.mlp.c_proj.bias, dtype)
        wpe = turns = None
        if model.wpe is None:
            cos, sin = rotation(torch.arange(config.block_size), config.n_embd // config.n_head)
            turns = self._address(torch.cat([cos, sin], -1).flatten(1))  # (positions, D)
        else:
            wpe = self._address(model.wpe.weight)
        self._model = _Model(
            config.n_layer, config.n_head, config.n_embd, config.window or config.block_size,
            config.gelu == "tanh",
            (config.n_embd // config.n_head) ** -0.5 if config.scale_attention else 1.0,
            self._address(model.wte.weight), wpe, turns, self._norm(model.ln_f),
            self._matrix(model.head_weight[: config.vocab_size], None, dtype), layers,
        )  # fmt: skip
        self.address = ctypes.addressof(self._model)

    def _address(self, tensor):
        self._tensors.append(tensor.detach().float().contiguous())
        return self._tensors[-1].data_ptr()

    def _norm(self, layer):
        return self._address(torch.cat([layer.weight, layer.bias]))

    def _matrix(self, weight, bias, dtype):
        weight, scale = weight.detach().float(), None
        if dtype == "int8":
            weight, scale = quantize_rows(weight)
        elif dtype == "bfloat16":
            weight = weight.bfloat16()
        out, size = weight.shape
        block = VECTORS * self.lanes
        padded = weight.new_zeros(-(-out // block) * block, size)
        padded[:out] = weight
        packed = padded.view(-1, block, size).mT  # (blocks, in, block)
        per_word = 4 // weight.element_size()  # those of 32 bits side by side
        packed = _in_large_pages(packed.unflatten(-1, (-1, per_word, self.lanes)).mT)
        self._tensors.append(packed)
        return _Matrix(
            packed.data_ptr(), None if bias is None else self._address(bias),
            None if scale is None else self._address(scale * 2.0**-24), size, out, TYPES[dtype],
        )  # fmt: skip

    def new_cache(self, batch_size, max_length, **penalties):
        return CompiledKVCache(self, batch_size, max_length, **penalties)

    def new_kv(self, batch, max_length):
        """An empty cache (n_layer, 2, batch, T / lanes, C, lanes); T: max_length, rounded up."""
        blocks, C = -(-max_length // self.lanes), self.config.n_embd
        return torch.zeros(self.config.n_layer, 2, batch, blocks, C, self.lanes)

    def hidden(self, kv, tokens, slots, positions):
        """The last layer's output of each token, float32 (N, C); its keys and values go to kv, of
        `new_kv`. tokens, slots, positions: (N,) int64, contiguous; those of one slot in order."""
        _, _, batch, blocks, C, lanes = kv.shape
        x, threads = torch.empty(len(tokens), C), torch.get_num_threads()
        work = torch.empty(5 * C * min(CHUNK, len(tokens)))
        for i in range(0, len(tokens), CHUNK):
            rows = [some[i : i + CHUNK].data_ptr() for some in (tokens, slots, positions, x)]
            n = min(CHUNK, len(tokens) - i)
            self.library.hidden(self.address, kv.data_ptr(), batch, blocks * lanes, n, *rows,
                                work.data_ptr(), threads)  # fmt: skip
        return x

    def logits(self, x):
        """float32 (N, vocab_size) from what `hidden` returned."""
        x = x.contiguous()
        scores, work = torch.empty(len(x), self.config.vocab_size), torch.empty_like(x)
        self.library.logits(self.address, x.data_ptr(), len(x), scores.data_ptr(), work.data_ptr(),
                            torch.get_num_threads())  # fmt: skip
        return scores


def _in_large_pages(tensor):
    """A contiguous copy, of a large one in pages of 2 MiB where Linux has them: read whole for each
    token, in pages of 4 KiB it makes the core look up addresses, too."""
    if tensor.nbytes < LARGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return tensor.contiguous()
    pages = mmap.mmap(-1, tensor.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)


class CompiledKVCache(BatchedKVCache):
    """A BatchedKVCache of a CompiledDecoder."""

    def __init__(self, decoder, batch_size, max_length, **penalties):
        super().__init__(decoder, batch_size, max_length, **penalties)
        C, V = decoder.config.n_embd, decoder.config.vocab_size
        self.x, self.work = torch.empty(batch_size, C), torch.empty(batch_size, 5 * C)
        self.scores, self.p = torch.empty(batch_size, V), torch.empty(batch_size, V)
        names = ("last_tokens", "slots", "positions", "uniform_noise", "x", "work", "scores", "p")
        tensors = {name: getattr(self, name) for name in names}
        self._address = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        # Bytes of a slot.
        self._sizes = {name: t.stride(0) * t.element_size() for name, t in tensors.items()}
        self.pool = ThreadPoolExecutor(torch.get_num_threads())  # it starts threads when needed

    def _prefill(self, group, prompts, first):
        slot_of, tokens, slots, positions = {}, [], [], []
        for slot, prompt in enumerate(map(tuple, prompts), first):
            slot_of.setdefault(prompt, slot)
        for prompt in group:
            tokens += prompt[:-1]
            slots += [slot_of[prompt]] * (len(prompt) - 1)
            positions += range(len(prompt) - 1)
        rows = [torch.tensor(some, dtype=torch.int64) for some in (tokens, slots, positions)]
        x, members = self.decoder.hidden(self.kv, *rows), set(group)
        for slot, prompt in enumerate(map(tuple, prompts), first):
            if prompt in members and slot != (source := slot_of[prompt]):
                kv = self._columns(len(prompt))
                kv[:, :, slot] = kv[:, :, source]
        return dict(zip(group, x.split([len(prompt) - 1 for prompt in group]), strict=True))

    def _logits(self, n, S, position):
        self._in_parts(n, self._read)
        self.positions[:n] += 1
        return self.scores[:n]

    def step(self, temperature=1.0, top_k=0, top_p=1.0):
        if top_k or top_p < 1 or self.penalties not in ({}, NO_PENALTIES):
            return super().step(temperature=temperature, top_k=top_k, top_p=top_p)
        n = len(self.lengths)
        self.lengths = [length + 1 for length in self.lengths]
        if not all(self._in_parts(n, lambda *rows: self._read(*rows, temperature))):
            raise FloatingPointError(NO_NUMBERS)
        self.positions[:n] += 1
        self.last_logits = self.scores[:n]
        return self.last_tokens[:n]

    def _in_parts(self, n, action):
        """[action(first, end, threads)] over ranges of the first n slots. Each thread takes many
        slots from the first layer to the last; of few, all threads share every product."""
        threads = torch.get_num_threads()
        if threads == 1 or n < SHARED * threads:
            return [action(0, n, threads)]
        ends = [n * i // threads for i in range(threads + 1)]
        return list(self.pool.map(action, ends[:-1], ends[1:], [1] * threads))

    def _read(self, first, end, threads, temperature=None):
        """Fill the rows of `scores` by what the last tokens of these slots lead to; with a
        temperature, draw the next ones. Returns whether they are numbers."""
        n, library, model = end - first, self.decoder.library, self.decoder.address
        address = {name: self._address[name] + first * size for name, size in self._sizes.items()}
        tokens, slots, positions = address["last_tokens"], address["slots"], address["positions"]
        scores, work, x = address["scores"], address["work"], address["x"]
        T = self.kv.shape[3] * self.decoder.lanes
        library.hidden(model, self.kv.data_ptr(), self.batch_size, T, n, tokens, slots, positions,
                       x, work, threads)  # fmt: skip
        library.logits(model, x, n, scores, work, threads)
        if temperature is not None:
            return library.sample(
                scores, n, self.scores.shape[1], temperature, address["uniform_noise"],
                self.max_length, positions, address["p"], tokens,
            )  # fmt: skip

    def _new_kv(self, floats):
        return self.decoder.new_kv(self.batch_size, self.max_length)

    def _columns(self, n):
        return self.kv[:, :, :, : -(-n // self.decoder.lanes)]

    # C reads how far each story is: no masks.
    def _new_masks(self, floats):
        return ()

    def _show_columns(self, new, positions):
        pass
