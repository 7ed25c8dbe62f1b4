"""A small model in minutes on a CPU, on real TinyStories: python train.py configs/ts_cpu.py

Tuned for eight minutes on two cores, where every choice is paid for in tokens not seen: a narrow
model, small steps, a high learning rate. docs/fast.md has what was tried, and what it gave.
"""

source = "tinystories"
tokenizer = "bpe"
vocab_size = 4096  # a twelfth of GPT-2's head at the same tokens per story

block_size = 512  # with 256, a tenth of the stories would end unfinished
n_layer = 2
n_head = 2
n_embd = 160
positions = "rope"
gelu = "erf"

batch_size = 2  # 2,048 tokens a step: more, smaller steps were worth more than fewer, smoother ones
row_tokens = 1024
optimizer = "muon"
learning_rate = 1.5e-2  # of the embeddings and vectors
muon_lr_scale = 0.5  # of the matrices: half of it
muon_momentum = 0.9
beta2 = 0.99  # a small step's squared gradients are noisy: average over more of them
schedule = "linear"
warmup_iters = 40
max_minutes = 8.0
eval_interval = 1000
