"""Runs sd-scripts' own training with what a run of ours has drawn; started by sd-scripts' interpreter.

    python driver.py JOB.json

It imports nothing of this project. Handed over are the order of the pictures, their latents, the first network (by
sd-scripts' own option) and the random numbers that noise and timesteps are made of; everything else is sd-scripts'
doing. Losses, times and peak memory go into the job's report.
"""

from __future__ import annotations

import itertools
import json
import resource
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import load_file


class Replay:
    """Gives the numbers of one step back, each once, to whoever draws the same shape from the same function."""

    def __init__(self, numbers):
        self.numbers = list(numbers)

    def take(self, function, shape):
        """The next unused numbers of `function` in this shape."""
        for place, (name, values) in enumerate(self.numbers):
            if name == function and tuple(values.shape) == tuple(shape):
                del self.numbers[place]
                return values.clone()
        raise LookupError(f"torch.{function} of shape {tuple(shape)} was not drawn by the other program")

    @contextmanager
    def installed(self):
        """In place of torch's own functions; whoever draws less than there is has another rule, and is told so."""

        def of_shape(function):
            return lambda *shape, **_: self.take(function, shape[0] if isinstance(shape[0], (tuple, list)) else shape)

        with ExitStack() as patches:
            for function in ("randn", "rand"):
                patches.enter_context(mock.patch.object(torch, function, of_shape(function)))
                like = mock.patch.object(torch, f"{function}_like", lambda x, f=function, **_: self.take(f, x.shape))
                patches.enter_context(like)
            integers = mock.patch.object(torch, "randint", lambda low, high, shape, **_: self.take("randint", shape))
            patches.enter_context(integers)
            yield
        if self.numbers:
            left = ", ".join(f"torch.{name} {tuple(values.shape)}" for name, values in self.numbers)
            raise LookupError(f"these were drawn by the other program alone: {left}")


def draws_by_step(tensors):
    """The handed numbers in lists by step, in the order in which they were drawn."""
    names = [name.split(".") for name in tensors if name.startswith("draw.")]
    found = sorted((int(step), int(place), function) for _, step, place, function in names)
    return [
        [(function, tensors[f"draw.{step}.{place}.{function}"]) for _, place, function in group]
        for step, group in itertools.groupby(found, key=lambda each: each[0])
    ]


class Handed:
    """What is handed over, put into sd-scripts' classes and functions."""

    def __init__(self, folder, train_util):
        self.train_util = train_util
        tensors = load_file(str(folder / "handed.safetensors"))
        prefix = "latents."
        self.latents = {name[len(prefix) :]: each for name, each in tensors.items() if name.startswith(prefix)}
        self.draws = iter(draws_by_step(tensors))
        order = json.loads((folder / "handed.json").read_text(encoding="utf-8"))
        self.order = itertools.chain(order, itertools.repeat(order[-1]))  # accelerate fetches one batch ahead

    def install(self):
        """Once, for the rest of the process."""
        train_util = self.train_util
        fetch, cache = train_util.BaseDataset.__getitem__, train_util.BaseDataset.new_cache_latents
        make_noise = train_util.get_noise_noisy_latents_and_timesteps

        def cache_handed(dataset, model, accelerator):
            cache(dataset, model, accelerator)
            for info in dataset.image_data.values():
                self._hand_latents(info)

        def fetch_in_order(dataset, _):
            keys = {info.caption: key for key, info in dataset.image_data.items()}
            with self._one_batch(dataset, [keys[caption] for caption in next(self.order)]):
                return fetch(dataset, 0)

        def make_noise_handed(*arguments):
            with Replay(next(self.draws)).installed():
                return make_noise(*arguments)

        train_util.BaseDataset.new_cache_latents = cache_handed
        train_util.BaseDataset.__getitem__ = fetch_in_order
        train_util.get_noise_noisy_latents_and_timesteps = make_noise_handed

    def _hand_latents(self, info):
        """Ours in place of sd-scripts' own; a picture that no batch of the run holds keeps what it has."""
        latents = self.latents.get(info.caption, info.latents)
        if latents.shape != info.latents.shape:
            raise ValueError(f"{info.absolute_path}: {tuple(info.latents.shape)} there, {tuple(latents.shape)} here")
        info.latents = latents

    @contextmanager
    def _one_batch(self, dataset, keys):
        """The dataset for the time of one batch: a single bucket that holds these pictures."""
        buckets, indices = dataset.bucket_manager.buckets, dataset.buckets_indices
        dataset.bucket_manager.buckets = [keys]
        dataset.buckets_indices = [self.train_util.BucketBatchIndex(0, len(keys), 0)]
        try:
            yield
        finally:
            dataset.bucket_manager.buckets, dataset.buckets_indices = buckets, indices


class Watch:
    """Losses as sd-scripts records them, and when: by the clock, and in seconds of the processor."""

    def __init__(self):
        self.losses, self.times, self.processor_times = [], [], []

    def install(self, trainer_class, train_util):
        """Once, for the rest of the process."""
        process, add = trainer_class.process_batch, train_util.LossRecorder.add

        def process_watched(*arguments, **named):
            if not self.times:
                self._note_time()
            return process(*arguments, **named)

        def add_watched(recorder, *, epoch, step, loss):
            self.losses.append(loss)
            self._note_time()
            add(recorder, epoch=epoch, step=step, loss=loss)

        trainer_class.process_batch = process_watched
        train_util.LossRecorder.add = add_watched

    def _note_time(self):
        self.times.append(time.time())
        self.processor_times.append(time.process_time())


def main(job_path):
    """Train as the job says, and write its report."""
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    sys.path.insert(0, job["sd_scripts"])
    import train_network
    from library import train_util

    parser = train_network.setup_parser()
    arguments = parser.parse_args(job["options"])
    train_util.verify_command_line_training_args(arguments)
    Handed(Path(job["handed"]), train_util).install()
    watch = Watch()
    watch.install(train_network.NetworkTrainer, train_util)
    train_network.NetworkTrainer().train(arguments)
    report = {
        "losses": watch.losses,
        "times": watch.times,
        "processor_times": watch.processor_times,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "versions": {name: sys.modules[name].__version__ for name in ("torch", "transformers", "diffusers")},
    }
    Path(job["report"]).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
