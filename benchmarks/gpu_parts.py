"""The parts of benchmarks/gpu_check.py, the most important first: what each runs, how long it may
take, and its tiny form, which a CPU runs in seconds. Each function takes that script's Settings."""

import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace

from benchmarks.gpu_schedule import Command, Part
from configs import read_config_file
from nanostories import storage
from nanostories.training import schedule

TRAINING = ("tiktoken", "ftfy", "safetensors", "matplotlib")  # packages that train.py needs
SIZES = ("768-4", "256-8", "512-8", "64-8")  # of the models that are timed
TINY_SIZES = dict(zip(SIZES, ("64-1", "32-1", "48-1", "16-1"), strict=True))
PROFILED = SIZES[:2]  # also those that generate
TRAINED = {"ts_33m": "gpt2", "fast_33m": "bpe"}  # config: the tokenizer of its data
TOKENS_PER_MINUTE = 60e6  # about what an H100 trains at 768-4

TINY_MODEL = ("--n_layer=1", "--n_head=2", "--n_embd=32", "--block_size=128", "--row_tokens=256",
              "--batch_size=2", "--gradient_accumulation_steps=1")  # fmt: skip


def missing_packages(*names):
    """A line that says which of these packages are not installed; "" if all are."""
    missing = [name for name in names if not importlib.util.find_spec(name)]
    if not missing:
        return ""
    return f"not installed: {', '.join(missing)}; try: pip install {' '.join(missing)}"


def data_folder(settings, config):
    """The token folder of a config, a Path."""
    if settings.tiny:
        return Path(settings.out, "tiny-data", "stories")
    return Path(f"{settings.data}-{TRAINED[config]}")


def data_problem(settings, config):
    """A line that says how to make the data of a config; "" if it is there."""
    folder = data_folder(settings, config)
    if settings.tiny:
        return ""
    advice = f"python prepare.py configs/{config}.py --out={folder}"
    if not (folder / "manifest.json").is_file():
        return f"no data in '{folder}': {advice} (--source=... for stories of your own)"
    wanted = read_config_file(f"configs/{config}.py").get("vocab_size")
    if wanted and (size := storage.read_json(folder / "manifest.json")["vocab_size"]) != wanted:
        return f"'{folder}' has a vocabulary of {size:,}, the config one of {wanted:,}: {advice}"
    return ""


def training_limit(settings, config):
    """How long to train, as a setting of train.py: for `epochs`, so that the learning rate ends
    with them, or by the clock where they would not fit train_minutes on a fast GPU."""
    if settings.tiny:
        return "--max_iters=12"
    by_clock = f"--max_minutes={settings.train_minutes}"
    manifest = data_folder(settings, config) / "manifest.json"
    if not manifest.is_file():
        return by_clock
    tokens = settings.epochs * storage.read_json(manifest)["splits"]["train"]["tokens"]
    if tokens > TOKENS_PER_MINUTE * settings.train_minutes:
        return by_clock
    names = SimpleNamespace(**{"grow_iters": 0} | read_config_file(f"configs/{config}.py"))
    return f"--max_iters={schedule.steps_in_an_epoch(names, tokens // names.row_tokens)}"


# ---- the parts ---------------------------------------------------------------------------------


def tiny_data(settings):
    """Made-up stories for the tiny form."""
    words = ("prepare.py", "--source=storybook", "--tokenizer=bpe", "--vocab_size=512",
             "--stories=400", "--val_fraction=0.1", "--workers=1",
             f"--out={data_folder(settings, 'ts_33m')}")  # fmt: skip
    return [Part("tiny-data", 60, (Command("prepare.log", words),))]


def tests(settings):
    """The tests that a GPU runs otherwise than a CPU, then 60 steps, a save, a resume, a story."""
    pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    if importlib.util.find_spec("xdist") and not settings.tiny:
        pytest += ("-n", str(min(16, os.cpu_count())))  # most of a test is compiling
    kernels = (*pytest, "-m", "not slow", "tests/kernels")
    if settings.tiny:
        kernels += ("-k", "large_scores")
    gpu = (*pytest, "-m", "gpu", "tests/training/test_gpu_training.py",
           "tests/inference/test_generate.py")  # fmt: skip
    run = f"{settings.out}/tests-run/run"
    first = (*start_training(settings, "ts_33m", run), "--max_iters=30", "--lr_decay_iters=60",
             "--warmup_iters=20", "--eval_interval=30")  # fmt: skip
    resume = ("train.py", "--resume", f"--out_dir={run}", "--max_iters=60")
    sample = ("sample.py", f"--out_dir={run}", f"--device={settings.device}", "--num_samples=2",
              "--max_new_tokens=100")  # fmt: skip
    commands = (Command("train.log", first, run, "done with step 30"),
                Command("resume.log", resume, run, "done with step 60"),
                Command("stories.txt", sample))  # fmt: skip
    problem = missing_packages(*TRAINING) or data_problem(settings, "ts_33m")
    return [
        Part("tests-kernels", 240, (Command("pytest.log", kernels),), problem=missing_packages(
            "pytest", "triton")),
        Part("tests-training", 240, (Command("pytest.log", gpu),), problem=missing_packages(
            "pytest", "rustbpe", *TRAINING)),
        Part("tests-run", 240, commands, problem=problem),
    ]  # fmt: skip


def start_training(settings, config, run):
    """The words of train.py for a new run of a config."""
    words = ("train.py", f"configs/{config}.py", f"--dataset={data_folder(settings, config)}",
             f"--out_dir={run}", f"--device={settings.device}", "--eval_stories=500")  # fmt: skip
    return (*words, *TINY_MODEL, "--eval_stories=8") if settings.tiny else words


def train(settings):
    """Two recipes for the paper's 33M on all stories, then what the best checkpoint is worth."""
    parts = []
    for config in TRAINED:
        name = f"train-{config}"
        run = f"{settings.out}/{name}/{config}"
        interval = 6 if settings.tiny else 100
        words = (*start_training(settings, config, run), training_limit(settings, config),
                 f"--eval_interval={interval}", "--eval_stories=0")  # fmt: skip
        best = (f"--out_dir={run}", "--checkpoint=best", f"--device={settings.device}")
        stories = ("sample.py", *best, "--num_samples=10")
        stories += ("--max_new_tokens=30",) if settings.tiny else ()
        commands = (Command("train.log", words, run, "done with step "),
                    Command("loss.log", ("-m", "eval.loss", *best)),
                    Command("stories.txt", stories))  # fmt: skip
        problem = missing_packages(*TRAINING) or data_problem(settings, config)
        # It may be stopped and resumed: on a slow GPU the epochs take longer than train_minutes.
        seconds = 240 + 4 * 60 * settings.train_minutes
        parts.append(Part(name, seconds, commands, least=20 if settings.tiny else 90,
                          problem=problem))  # fmt: skip
    return parts


def nanogpt_problem(settings):
    """A line that says that there is no nanoGPT; "" if there is."""
    if settings.nanogpt and (Path(settings.nanogpt) / "model.py").is_file():
        return ""
    where = f"no nanoGPT in '{settings.nanogpt}'" if settings.nanogpt else "it needs nanoGPT"
    return f"{where}: git clone https://github.com/karpathy/nanoGPT, then --nanogpt=nanoGPT"


def race(settings):
    """Time to nanoGPT's final bits per byte."""
    words = ("-m", "benchmarks.race", f"--nanogpt={settings.nanogpt}",
             f"--dataset={data_folder(settings, 'fast_33m')}", f"--device={settings.device}",
             f"--out={settings.out}/race/race.json")  # fmt: skip
    if settings.tiny:
        words += ("--config=configs/storybook.py", "--minutes=0.03", "--points=2", "--rows=2",
                  "--shapes=16-1-1", "--learning_rates=1e-3", "--eval_stories=8",
                  "--turn_seconds=1")  # fmt: skip
    else:
        minutes = settings.race_minutes
        words += ("--config=configs/fast_33m.py", f"--minutes={minutes}", "--shapes=768-4-16",
                  "--rows=64", "--learning_rates=1e-3,2e-3", f"--sweep_minutes={minutes / 2}",
                  "--beta2=0.95")  # fmt: skip
    problem = missing_packages(*TRAINING) or nanogpt_problem(settings)
    problem = problem or data_problem(settings, "fast_33m")
    seconds = 60 if settings.tiny else 150 + 60 * 3 * settings.race_minutes
    return [Part("race", seconds, (Command("race.log", words),), problem=problem)]


def speed(settings):
    """A step of four sizes beside compiled nanoGPT's, and the kernels of two of them."""
    parts, device = [], f"--device={settings.device}"
    for size in SIZES:
        words = ("-m", "benchmarks.training", device, "--vocabs=50257", f"--sizes={size}",
                 f"--out={settings.out}/speed-{size}/speed.json")  # fmt: skip
        if not nanogpt_problem(settings):
            words += (f"--nanogpt={settings.nanogpt}",)
        if settings.tiny:
            words += ("--vocabs=300", f"--sizes={TINY_SIZES[size]}", "--tokens=1024", "--rounds=1")
        parts.append(Part(f"speed-{size}", 150, (Command("speed.log", words),),
                          problem=missing_packages(*TRAINING)))  # fmt: skip
    for size in PROFILED:
        name = f"speed-profile-{size}"
        words = ("-m", "benchmarks.step_profile", device, f"--size={size}",
                 f"--out={settings.out}/{name}/profile.json")  # fmt: skip
        if settings.tiny:
            words += (f"--size={TINY_SIZES[size]}", "--vocab_size=300", "--tokens=1024",
                      "--steps=2")  # fmt: skip
        parts.append(Part(name, 120, (Command("profile.log", words),),
                          problem=missing_packages(*TRAINING)))  # fmt: skip
    return parts


def kernels(settings):
    """Attention and the loss beside every other implementation, then other tile shapes."""
    jobs = (
        ("kernels-attention", 240, "kernels", "D="),
        ("kernels-loss", 200, "kernels", "loss"),
        ("kernels-tuning-attention", 300, "kernel_tuning", "attention"),
        ("kernels-tuning-loss", 180, "kernel_tuning", "loss"),
    )
    parts, tiny = [], {"D=": "D=16", "attention": "attention 16 forward"}
    for name, seconds, module, only in jobs:
        words = ("-m", f"benchmarks.{module}", f"--device={settings.device}",
                 f"--out={settings.out}/{name}", f"--only={only}")  # fmt: skip
        if settings.tiny:
            loss = "loss 64 forward" if module == "kernel_tuning" else "loss C=64"
            words += (f"--only={tiny.get(only, loss)}", "--tokens=64", "--rounds=1")
            words += ("--length=64", "--workers=1") if module == "kernel_tuning" else ()
        parts.append(Part(name, seconds, (Command("kernels.log", words),),
                          problem=missing_packages("triton", "matplotlib")))  # fmt: skip
    return parts


def generation(settings):
    """One story and 1,024 at once, beside transformers."""
    parts = []
    for size in PROFILED:
        name = f"generation-{size}"
        words = (
            "-m",
            "benchmarks.generation",
            f"--device={settings.device}",
            f"--out={settings.out}/{name}/generation.json",
            f"--only={size}-50257",
        )
        if settings.tiny:
            shape = "64-8-4096" if size == "256-8" else "128-4-4096"
            words += (f"--only={shape}", "--tokens=20", "--rounds=1")
        parts.append(Part(name, 240, (Command("generation.log", words),),
                          problem=missing_packages(*TRAINING)))  # fmt: skip
    return parts


def all_parts(settings):
    """Every Part, in the order in which they run."""
    groups = [tests, train, race, speed, kernels, generation]
    groups = [tiny_data, *groups] if settings.tiny else groups
    parts = [part for group in groups for part in group(settings)]
    if not settings.tiny:
        return parts
    return [Part(p.name, 60, p.commands, p.least and 20, p.problem) for p in parts]
