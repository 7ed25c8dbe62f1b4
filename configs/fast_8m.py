"""As wide and deep as the paper's 8M, made to learn fast: python train.py configs/fast_8m.py

What differs from ts_8m.py: rotary positions, Muon, a vocabulary of 10,000 tokens, and steps that
grow. docs/fast.md has the reasons, and the rule behind the learning rates.
"""

source = "tinystories"
tokenizer = "bpe"
vocab_size = 10_000

n_layer = 8
n_head = 16
n_embd = 256
block_size = 512
positions = "rope"

batch_size = 32  # rows of 1,024 tokens: 32,768 tokens a pass, about 170 stories
row_tokens = 1024
gradient_accumulation_steps = 2  # 65,536 tokens a step
grow_iters = 400  # but half of that at first

optimizer = "muon"
learning_rate = 1.1e-2
muon_lr_scale = 0.6
muon_momentum = 0.9
beta2 = 0.99
schedule = "linear"
warmup_iters = 200
weight_decay = 0.1
eval_interval = 1000
