"""
The best small model for minutes on a CPU, on real TinyStories: python train.py configs/ts_cpu.py
"""

source = "tinystories"
tokenizer = "bpe"
vocab_size = 4096

block_size = 512
n_layer = 4
n_head = 4
n_embd = 128

batch_size = 4
row_tokens = 1024
optimizer = "muon"
learning_rate = 4e-3
warmup_iters = 40
max_minutes = 8.0
eval_interval = 1000
