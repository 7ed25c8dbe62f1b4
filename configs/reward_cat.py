"""The student report's experiment: stories about a cat, by reward alone, on a CPU in minutes.

    python reward.py configs/reward_cat.py                         # from the model in pretrained/
    python sample.py --out_dir=out/reward_cat --start "Once upon a time there was"
    python train.py configs/ts_cpu.py
    python reward.py configs/reward_cat.py --init_from=out/ts_cpu --out_dir=out/reward_cat_ts

Tuned for ts_cpu.py. A story should have two sentences about the word and name it no more often than
a story would. So the two closest sentences count, and only up to a cosine similarity of 0.40, which
a quarter of the sentences with the word reach. Repeating more than the reference does costs reward.
"""

word = "cat"
temperature = 0.8

top_sentences = 2
max_similarity = 0.4
repetition_penalty = 2.5
kl_factor = 0.015

batch_size = 32
max_iters = 200
learning_rate = 3e-4
schedule = "linear"
