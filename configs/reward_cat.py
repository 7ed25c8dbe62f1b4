"""
The student report's experiment: stories about a cat, by reward alone, on a CPU in minutes.

    python train.py configs/ts_cpu.py
    python reward.py configs/reward_cat.py
    python sample.py --out_dir=out/reward_cat --start "Once upon a time there was"
    python reward.py configs/reward_cat.py --word=dog --out_dir=out/reward_dog

A story is to have two sentences about the word, and none that names it more than a story would:
the two closest sentences count, and a cosine above 0.4, as most sentences with the word have, is
enough. What it repeats more than the reference does costs reward.
"""

init_from = "out/ts_cpu"
word = "cat"
temperature = 0.8

best = 2
enough = 0.4
repeat_cost = 0.5
kl_factor = 0.02

stories = 32
max_iters = 150
learning_rate = 3e-4
schedule = "linear"
