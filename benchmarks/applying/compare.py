"""One comparison, in the WebUI's interpreter; its figures go to standard output as one line of JSON.

Arguments: the WebUI's folder, and a JSON object of `Case`'s fields.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from benchmarks.applying.builtin import BuiltinLora
from benchmarks.applying.cases import Case
from benchmarks.applying.subjects import full_size, write_networks
from lora_ext.apply.active import ActiveNetworks
from lora_ext.apply.tags import LoraTag
from lora_ext.checkpoint.module_names import checkpoint_weights
from lora_ext.networks.library import NetworkLibrary

Wanted = Sequence[tuple[str, float]]
SIX = 6


def main(webui: str, case_text: str) -> None:
    """Measure both sides and print."""
    case = Case(**json.loads(case_text))
    if case.threads:
        torch.set_num_threads(case.threads)
    with tempfile.TemporaryDirectory(prefix="lora-workshop-bench-") as name:
        folder = Path(name)
        tell("loading the WebUI's code")
        builtin = BuiltinLora(Path(webui), folder, case.device)
        tell("making weights and networks")
        checkpoint = full_size(case.kind, getattr(torch, case.dtype), case.device, case.with_text)
        names, touched = write_networks(folder, checkpoint, SIX, case.rank, case.with_convolutions)
        builtin.take(checkpoint)
        active = ActiveNetworks(checkpoint, checkpoint.ledger, NetworkLibrary([folder]))

        tell("measuring ours")

        def ours(wanted: Wanted) -> None:
            messages = active.activate([LoraTag(name, weight) for name, weight in wanted])
            if messages:
                raise RuntimeError(str(messages))

        some = [view.detach() for view in list(checkpoint_weights(checkpoint).values())[::50]]
        untouched = [weight.clone() for weight in some]
        figures: dict[str, Any] = {"touched_gb": touched / 2**30, "ours": measure(ours, names, touched, case)}
        ours([(names[0], 0.7)])
        expected = [weight.clone() for weight in some]
        active.deactivate()
        if not all(torch.equal(weight, before) for weight, before in zip(some, untouched, strict=True)):
            raise RuntimeError("the weights are not what they were")
        tell("measuring the built-in")
        figures["built-in"] = measure(builtin.activate, names, touched, case)
        builtin.activate([(names[0], 0.7)])
        figures["difference"] = largest_difference(some, expected, untouched)
        builtin.activate([])
    print(json.dumps(figures))


def tell(what: str) -> None:
    """Say where it is."""
    print(f"{time.strftime('%X')} {what} …", file=sys.stderr, flush=True)


def measure(activate: Callable[[Wanted], None], names: Sequence[str], touched: int, case: Case) -> dict[str, float]:
    """Seconds (medians, see `timed`) of each kind of change, and the memory that the first application takes."""
    with Peak(case.device) as peak:
        first = timed(lambda: activate([(names[0], 1.0)]), case.device)
    each: dict[str, list[float]] = {"weight changed": [], "another of five": [], "a sixth added": []}
    for round in range(case.rounds):
        wanted = [(names[0], 0.5 + round / 100)]
        each["weight changed"].append(timed(lambda wanted=wanted: activate(wanted), case.device))
    for round in range(2 * case.rounds + 1):
        wanted = [(names[(round + 1) % 5], 1.0)]
        each["another of five"].append(timed(lambda wanted=wanted: activate(wanted), case.device))
    for round in range(case.rounds):
        five = [(name, 0.3 + round / 100) for name in names[:5]]
        activate(five)
        each["a sixth added"].append(timed(lambda five=five: activate([*five, (names[5], 0.3)]), case.device))
    activate([])
    medians = {what: statistics.median(seconds) for what, seconds in each.items()}
    return {"first applied": first, **medians, "extra memory / touched": peak.extra / touched}


class Peak:
    """The most memory that the process (or the GPU) takes within a block, beyond what it took before."""

    def __init__(self, device: str) -> None:
        self.extra = 0
        self._read = torch.cuda.memory_allocated if device == "cuda" else lambda: psutil.Process().memory_info().rss
        self._ended = threading.Event()

    def __enter__(self) -> Peak:
        self._before = self._read()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            self.extra = max(self.extra, self._read() - self._before)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.extra = max(self.extra, self._read() - self._before)


def timed(action: Callable[[], None], device: str) -> float:
    """Seconds of the processor that a call takes, of all its cores; on a GPU those until its work is done.

    Other programs on the machine make the first longer by what they take of caches and memory alone.
    """
    if device == "cuda":
        torch.cuda.synchronize()
    clock = time.process_time if device == "cpu" else time.perf_counter
    begun = clock()
    action()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - begun


def largest_difference(weights: Sequence[Tensor], expected: Sequence[Tensor], before: Sequence[Tensor]) -> float:
    """‖W − W′‖ / ‖W′ − W₀‖ at most, over some weights that changed."""
    found = [
        ((weight.float() - want.float()).norm() / (want.float() - old.float()).norm()).item()
        for weight, want, old in zip(weights, expected, before, strict=True)
        if not torch.equal(want, old)
    ]
    return max(found)


if __name__ == "__main__":
    main(*sys.argv[1:])
