"""As wide and deep as the paper's 28M, made to learn fast: python train.py configs/fast_28m.py

What differs from ts_28m.py: rotary positions, Muon, a linear schedule, a vocabulary of
10,000 tokens, and steps that grow. docs/fast.md has the reasons, and the learning rates' rule.
Beside ts_cpu.py's vocabulary: prepare.py with --out=data/fast, train.py with --dataset=data/fast.
"""

source = "tinystories"
tokenizer = "bpe"
vocab_size = 10_000

n_layer = 8
n_head = 16
n_embd = 512
block_size = 512
positions = "rope"

batch_size = 32  # rows of 1,024 tokens: 32,768 tokens a pass, about 170 stories
row_tokens = 1024
gradient_accumulation_steps = 2  # 65,536 tokens a step
grow_iters = 400  # early gradients agree: half of the tokens at first

optimizer = "muon"
learning_rate = 1.5e-2  # of biases and gains, at every width
embedding_lr_scale = 0.38
muon_lr_scale = 0.31
muon_momentum = 0.9
beta2 = 0.99
schedule = "linear"
warmup_iters = 200
