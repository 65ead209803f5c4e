"""Several processes with one model between them: all of them compute, the first one writes."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from scope.errors import ScopeError
from scope.harness.jobs import Job
from scope.methods.options import options_of


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun has started; of all but the first, nothing is heard.

    Raises:
        ScopeError: outside torchrun.
    """
    if "LOCAL_RANK" not in os.environ:
        raise ScopeError(
            "--tensor_parallel takes one process a GPU: torchrun --nproc_per_node N "
            "run_longgenbench.py --tensor_parallel ..."
        )
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    with ExitStack() as undo:
        if dist.get_rank() > 0:
            nowhere = undo.enter_context(Path(os.devnull).open("w"))
            undo.enter_context(redirect_stdout(nowhere))
            undo.enter_context(redirect_stderr(nowhere))
        yield
        dist.destroy_process_group()  # not after an error, when others wait and torchrun ends them


@contextmanager
def own_folder(job: Job) -> Iterator[Job]:
    """The job as this process is to run it: all but the first write to a copy that is thrown away.

    All begin with what the first one's folder holds, so that all generate the same.
    """
    with tempfile.TemporaryDirectory() as folder:
        dist.barrier()  # the first has ended the job before
        if dist.get_rank() > 0:
            copy = Path(folder, "copy")
            if job.folder.exists():
                shutil.copytree(job.folder, copy, ignore=shutil.ignore_patterns("*.lock"))
            job = replace(job, folder=copy)
        dist.barrier()
        yield job


def check_splittable(job: Job) -> None:
    """Refuse what looks at all heads of a layer, of which each process has some.

    Raises:
        ScopeError: naming it.
    """
    recipe = job.compression.recipe(job.max_new_tokens)
    looks = {
        f"the budget {recipe.budget.name}": recipe.budget.observes,
        "share_heads": recipe.heads.share_heads,
        "low_rank": recipe.storage.low_rank is not None,
        f"{recipe.strategy.name} with a threshold": recipe.strategy.drifts,
    }
    if recipe.score is not None:
        # RPC's has one set for all heads, and who draws does by the number of a head in its layer.
        draws = "seed" in options_of(type(recipe.score))
        looks[f"the score {recipe.score.name}"] = draws or recipe.score.name == "rpc"
    for what, is_so in looks.items():
        if is_so:
            raise ScopeError(
                f"--tensor_parallel: {what} looks at all heads of a layer, which are in several "
                "processes; leave --tensor_parallel out, or choose another method"
            )
    if job.batch_size == "auto":
        raise ScopeError("--tensor_parallel: give --batch_size a number, equal in all processes")
