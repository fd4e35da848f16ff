"""Another program's script on one job, in its own interpreter: `python theirs.py JOB.json`.

It imports nothing of this project. The job names the program's folder, the script in it, the function to time, and the
command line; a function other than `main` gets what the script's `setup_parser` makes of that. `set` replaces values of
the script's module first.
"""

import importlib.util
import inspect
import json
import runpy
import sys
from pathlib import Path

import torch

timed = runpy.run_path(str(Path(__file__).with_name("timed.py")))["timed"]


def load(folder, script):
    """The script as a module, which finds its neighbours as when it is started."""
    path = folder / script
    sys.path[:0] = [str(path.parent), str(folder)]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def call(function, module):
    """Call it as the script's own last lines do."""
    if function.__name__ == "main":
        return function()
    module.args = options = module.setup_parser().parse_args()  # global there, and some functions read it
    if len(inspect.signature(function).parameters) == 1:
        return function(options)
    return function(**vars(options))


def main(path):
    """Run the job; times and memory go into its report."""
    job = json.loads(path.read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    module = load(Path(job["folder"]), job["script"])
    for name, value in job["set"].items():
        if not hasattr(module, name):
            raise LookupError(f"{job['script']} has no {name}")
        setattr(module, name, value)
    sys.argv = [job["script"], *job["arguments"]]
    torch.linalg.svd(torch.eye(2))  # loads what the library loads late
    report = timed(lambda: call(getattr(module, job["function"]), module))
    Path(job["report"]).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
