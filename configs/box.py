"""The model in pretrained/, on whole stories of TinyStories: python train.py configs/box.py

Two hours on two CPU cores, and 8.4 MB in bfloat16. Learning rates by the rule of docs/fast.md;
pretrained/README.md has its data and results.
"""

source = "tinystories-v2"  # the paper's validation file is V1's, whose stories are partly GPT-3.5's
tokenizer = "bpe"
vocab_size = 4096

block_size = 512
n_layer = 4
n_head = 4
n_embd = 256
positions = "rope"
gelu = "erf"
dropout = 0.05  # for some five epochs of 7.5 M tokens; pretrained/README.md says how it was chosen

batch_size = 4  # 4,096 tokens a step
row_tokens = 1024
optimizer = "muon"
learning_rate = 1.5e-2
muon_lr_scale = 0.4  # 7.5e-3 at 192 wide, by 1 / sqrt(width), for a longer run a little lower
embedding_lr_scale = 0.7  # 1.5e-2 at 192 wide, by 1 / width
muon_momentum = 0.9
beta2 = 0.99
schedule = "linear"
warmup_iters = 100
max_minutes = 110.0
eval_interval = 2000
