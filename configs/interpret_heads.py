"""The paper's model for looking at attention heads: one layer, 1,024 wide, 16 heads.

Sized for an hour or less on a CPU. On a GPU, one epoch of all of TinyStories:
python train.py configs/interpret_heads.py --max_minutes=0 --batch_size=32
"""

source = "tinystories"
tokenizer = "bpe"
vocab_size = 4096  # a twelfth of GPT-2's head; as with GPT-2's, most words are one token

block_size = 512
n_layer = 1
n_head = 16
n_embd = 1024

batch_size = 2  # 2,048 tokens a step
row_tokens = 1024
optimizer = "adamw"  # in so wide a layer Muon's iteration would cost more than the step
learning_rate = 1e-3
schedule = "linear"
warmup_iters = 100
max_minutes = 40.0
eval_interval = 1000
