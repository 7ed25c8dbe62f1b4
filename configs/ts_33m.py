"""The paper's 33M on the real TinyStories: 768 wide, 4 layers, 16 heads (33M without embeddings).

The authors trained theirs with 5e-4 constant, weight decay 0.1, betas 0.9 / 0.95, batch 80 x 16
stories of 512 tokens, about 20 epochs. This recipe is for one GPU and one epoch.
"""

source = "tinystories"
tokenizer = "gpt2"

n_layer = 4
n_head = 16
n_embd = 768
block_size = 512

batch_size = 32  # rows of 1,024 tokens: 32,768 tokens a pass, about 170 stories
row_tokens = 1024
gradient_accumulation_steps = 4  # 131,072 tokens a step

learning_rate = 1e-3
warmup_iters = 200
weight_decay = 0.1
eval_interval = 500
