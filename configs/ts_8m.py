"""The released TinyStories-8M's shape on the real TinyStories: 256 wide, 8 layers, 16 heads."""

source = "tinystories"
tokenizer = "gpt2"

n_layer = 8
n_head = 16
n_embd = 256
block_size = 512

batch_size = 32  # rows of 1,024 tokens: 32,768 tokens a pass, about 170 stories
row_tokens = 1024
gradient_accumulation_steps = 2  # 65,536 tokens a step

learning_rate = 2e-3
warmup_iters = 400
weight_decay = 0.1
eval_interval = 1000
