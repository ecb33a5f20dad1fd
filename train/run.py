"""A training in progress: its steps, its state on disk, and what it leaves."""

import io
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from lesionrt.runtime.bundle import ModelInfo
from lesionrt.runtime.errors import CheckpointError, DatasetError, Interrupted, OutputError
from lesionrt.runtime.files import write_atomically
from lesionrt.runtime.processor import fast_bfloat16
from lesionrt.train.cache import PreparedScan
from lesionrt.train.checkpoint import Checkpoint, read_torch_file, save_checkpoint
from lesionrt.train.history import draw_history, history_csv
from lesionrt.train.loss import Objective
from lesionrt.train.model import Network
from lesionrt.train.processes import enough_memory, ignore_signals, signals
from lesionrt.train.recipe import Recipe, learning_rate
from lesionrt.train.samples import Batches, Slabs, Windows
from lesionrt.train.validation import dice_of, validate
from lesionrt.train.weights import initialise, norms, round_weights

FORMAT = "lesionrt training state"
VERSION = 4
CHECKPOINT, STATE, BEST = "checkpoint.pt", "state.pt", "best.pt"
RUN, HISTORY, PICTURE = "run.json", "history.csv", "history.png"
LARGEST_GRADIENT = 1.0  # norm; one wild batch must not throw the network off
Say = Callable[[str], None]


@dataclass(frozen=True)
class Progress:
    """How far a training is."""

    step: int
    steps: int
    loss: float
    slices_per_second: float
    seconds_left: float


class Run:
    """A training in progress: what its state file holds, and what happens to it."""

    def __init__(self, recipe: Recipe, out: Path, rank: int, world: int, device: torch.device) -> None:
        self.recipe, self.out, self.rank, self.world, self.device = recipe, out, rank, world, device
        torch.manual_seed(recipe.seed)
        self.network = Network(recipe.network)
        initialise(self.network, recipe.attention_gain)
        # Channels last is faster in half precision on a GPU, and a third slower on a CPU.
        layout = torch.channels_last if device.type == "cuda" else torch.preserve_format
        self.network.to(device, memory_format=layout)
        if recipe.average:  # statistics of few slabs vary much
            for norm in norms(self.network):
                norm.momentum = 1 - recipe.average
        if world > 1 and device.type == "cuda":  # one process's few slabs have poor batch statistics
            self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        self.average = (
            AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(recipe.average), use_buffers=True)
            if recipe.average
            else None
        )
        parameters = self.network.parameters()
        self.optimiser: torch.optim.Optimizer = (
            torch.optim.AdamW(parameters, recipe.learning_rate, weight_decay=recipe.weight_decay)
            if recipe.optimiser == "adamw"
            else torch.optim.SGD(parameters, recipe.learning_rate, weight_decay=recipe.weight_decay)
        )
        self.step, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []
        self.totals = _no_totals()

    @property
    def precision(self) -> str:
        """In which the network computes here."""
        if self.recipe.precision != "auto":
            return self.recipe.precision
        return "bfloat16" if has_bfloat16(self.device) else "float32"

    @property
    def result(self) -> Network:
        """The network that is validated and kept."""
        return self.network if self.average is None else self.average.module  # type: ignore[return-value]

    def describe(
        self,
        train: dict[str, list[str]],
        validation: dict[str, list[str]],
        donors: dict[str, str],
        start: str | None,
        name: str | None,
        resume: bool,
        say: Say,
    ) -> str:
        """Write what this run is, its files by their sha256; on resuming, compare. The model's name."""
        content = {
            "recipe": self.recipe.as_dict(),
            "train": train,
            "validation": validation,
            "donors": donors,
            "start": start,
        }
        path = self.out / RUN
        folder = self.out.resolve().name
        if resume:
            try:
                stored = json.loads(path.read_text(encoding="utf-8"))
                changed = [key for key in content if stored[key] != content[key]]
                # The samples follow the order of the scans.
                changed += [
                    f"order of scans in {key}"
                    for key in ("train", "validation")
                    if key not in changed and [*stored[key]] != [*content[key]]
                ]
            except (OSError, ValueError, KeyError, TypeError) as error:
                advice = "give another folder" if path.exists() else "start it without --resume"
                raise OutputError(f"{path}: no run to resume ({error}); {advice}") from error
            if changed:
                raise DatasetError(
                    f"{path}: the run to resume has another {', '.join(changed)}; give what it was started with, or another folder"
                )
            before = stored.get("where", {}).get("precision", self.precision)
            if before != self.precision:
                say(f"note: the run began in {before} and goes on in {self.precision}, which this device is faster in")
            return name or stored.get("name", folder)
        if self.rank == 0:
            versions = {name: version(name) for name in ("lesionrt", "torch", "numpy")}
            where = {
                "device": str(self.device),
                "machine": platform.machine(),
                "processes": self.world,
                "precision": self.precision,
            }
            text = json.dumps({**content, "name": name or folder, "versions": versions, "where": where}, indent=2)
            write_atomically({path: f"{text}\n".encode()})
        return name or folder

    def start_from(self, checkpoint: Checkpoint) -> None:
        """Take another network's weights; its dropout may differ, and a bundle's takes grey once instead of repeated."""
        config, wanted = checkpoint.network.config, self.recipe.network
        state = checkpoint.network.state_dict()
        if config.input_channels == 1 and wanted.input_channels > 1:
            state["first.weight"] = state["first.weight"].repeat(1, wanted.input_channels, 1, 1) / wanted.input_channels
            config = replace(config, input_channels=wanted.input_channels)
        if replace(config, dropout=wanted.dropout) != wanted:
            raise CheckpointError(f"the checkpoint to start from has network {config}; expected {wanted}")
        for network in {self.network, self.result}:
            network.load_state_dict(state)

    def fit(
        self,
        samples: Slabs | Windows,
        validation: Sequence[PreparedScan],
        say: Say,
        progress: Callable[[Progress], None],
    ) -> int:
        """All steps from the present one on; the signal that came during the last one, 0 for none.

        Raises
        ------
        DatasetError
            If the loss is not finite.
        Interrupted
            After SIGINT or SIGTERM before the last step, when the state is written.
        """
        objective: nn.Module = Objective(self.network, self.recipe)
        if self.world > 1:
            objective = DistributedDataParallel(objective)
        workers = 0 if self.device.type == "cpu" else min(8, (os.cpu_count() or 2) - 1)
        loader: DataLoader[Any] = DataLoader(
            samples,
            batch_sampler=Batches(samples, self.step, self.rank, self.world),
            num_workers=workers,
            worker_init_fn=ignore_signals,
        )
        began, first, before, signum, outputs = time.perf_counter(), self.step, self.seconds, 0, 0
        with signals() as caught:
            if self._at_end(samples) and len(self.history) < -(-self.step // samples.epoch_batches):
                # Killed while it validated: the state is of before.
                now = Progress(self.step, samples.batches, math.nan, math.nan, math.nan)
                self._end_epoch(validation, now, samples.epoch_batches, lambda _: None)
                signum = self._agreed(caught)
                if signum and self.step < samples.batches:
                    raise self._interrupted(samples, signum)
            for slices, lesions in loader:
                loss = self._advance(objective, slices, lesions, samples.batches)
                elapsed = time.perf_counter() - began
                outputs += len(lesions.flatten(0, 1)) * self.world
                left = elapsed / (self.step - first) * (samples.batches - self.step)
                now = Progress(self.step, samples.batches, loss, outputs / elapsed, left)
                progress(now)
                end = self._at_end(samples)
                self.seconds = before + time.perf_counter() - began
                if end:
                    self._end_epoch(validation, now, samples.epoch_batches, say)
                signum = self._agreed(caught)
                if signum and self.step < samples.batches:
                    if not end:
                        self._save_state()
                    raise self._interrupted(samples, signum)
        return signum

    def _interrupted(self, samples: Slabs | Windows, signum: int) -> Interrupted:
        done = f"stopped after step {self.step} of {samples.batches}"
        return Interrupted(f"{done}; {self.out / STATE} is written, continue with --resume", signum)

    def _at_end(self, samples: Slabs | Windows) -> bool:
        """Whether the last step was an epoch's last one."""
        return self.step > 0 and (self.step % samples.epoch_batches == 0 or self.step == samples.batches)

    def _advance(self, objective: nn.Module, slices: Tensor, lesions: Tensor, steps: int) -> float:
        """One step; its loss."""
        seed = np.random.SeedSequence([self.recipe.seed, self.step, self.rank]).generate_state(1, np.uint64)[0]
        torch.manual_seed(int(seed))  # dropout's, the same after resuming
        self.network.train()
        if self._frozen(steps):
            for norm in norms(self.network):
                norm.eval()
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.recipe, self.step, steps)
        slices, lesions = (part.to(self.device, non_blocking=True) for part in (slices, lesions))
        value, norm, logits = self._gradient(objective, slices, lesions)
        renormalised = 0
        if self._frozen(steps) and not math.isfinite(norm):
            # Where nothing renormalises them, products of products of unbounded maps can leave float32's range. Such a
            # batch is computed with its own statistics, and they count: the weights have left the ones that were kept.
            self.network.train()
            value, norm, logits = self._gradient(objective, slices, lesions)
            renormalised = 1
        if not (math.isfinite(value) and math.isfinite(norm)):  # the gradient is shared: every process stops here
            raise DatasetError(
                f"the loss is {value} and its gradient's norm {norm} at step {self.step + 1} of {steps}; no weights and no file "
                f"in {self.out} were changed by it. Try a lower learning rate in another folder, or look at the scans with "
                "`lesionrt data check`"
            )
        self.optimiser.step()
        if self.average is not None:
            if self._frozen(steps) and not self._frozen(steps, self.step - 1):
                self.average.module.load_state_dict(self.network.state_dict())  # from here on, of what is kept
            else:
                self.average.update_parameters(self.network)
        self.step += 1
        found = logits[:, 1] > logits[:, 0]
        self.totals += torch.tensor(
            [value, 1, (found * lesions.flatten(0, 1)).sum(), found.sum(), lesions.sum(), renormalised],
            dtype=torch.float64,
        )
        return value

    def _gradient(self, objective: nn.Module, slices: Tensor, lesions: Tensor) -> tuple[float, float, Tensor]:
        """Loss, norm of its gradient before that is clipped, and logits."""
        with enough_memory("a recipe with fewer slabs or slab_slices, or a smaller size"):
            with self._autocast():
                loss, logits = objective(slices, lesions)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
        largest = LARGEST_GRADIENT if self.recipe.optimiser == "adamw" else math.inf
        norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), largest))
        return loss.item(), norm, logits.detach()

    def _frozen(self, steps: int, step: int | None = None) -> bool:
        """Whether the norms compute with the statistics that they have by then, as at inference."""
        return (self.step if step is None else step) >= steps * (1 - self.recipe.frozen_norms)

    def _end_epoch(self, validation: Sequence[PreparedScan], now: Progress, epoch_batches: int, say: Say) -> None:
        if validation:  # which may take long, and be killed
            self._save_state()
        totals = self.totals.clone()
        if self.world > 1:
            dist.all_reduce(totals)
        row = {
            "epoch": float(-(-self.step // epoch_batches)),
            "step": float(self.step),
            "learning_rate": self.optimiser.param_groups[0]["lr"],
            "loss": float(totals[0] / totals[1]),
            "dice": dice_of(totals[2:5]),
            "renormalised": float(totals[5] / self.world),
            "slices_per_second": now.slices_per_second,
            "seconds": self.seconds,
        }
        if validation:
            row |= validate(self.result, validation, self.recipe, self.device, self._autocast())
        best = max((old.get("validation_dice", -1.0) for old in self.history), default=-1.0)
        self.history.append(row)
        self.totals = _no_totals()
        better = self.recipe.keep == "best" and row["validation_dice"] > best
        self._save_state({self.out / BEST: _saved(self.result.state_dict())} if better and self.rank == 0 else {})
        if self.rank:
            return
        self._show_history()
        held = f", validation Dice {row['validation_dice']:.4f}" if validation else ""
        again = f", {row['renormalised']:.0f} batches by their own statistics" if row["renormalised"] else ""
        say(
            f"epoch {row['epoch']:.0f}, step {now.step} of {now.steps}: loss {row['loss']:.4f}, Dice {row['dice']:.4f}{held}{again}; "
            f"{now.slices_per_second:.1f} slices/s, {now.seconds_left / 60:.0f} min left"
        )

    def _show_history(self) -> None:
        write_atomically(
            {self.out / HISTORY: history_csv(self.history), self.out / PICTURE: draw_history(self.history)}
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def _agreed(self, caught: list[int]) -> int:
        """The signal that any process got, 0 for none."""
        signum = torch.tensor(caught[0] if caught else 0)
        if self.world > 1:
            dist.all_reduce(signum, op=dist.ReduceOp.MAX)
        return int(signum)

    def _save_state(self, together: Mapping[Path, bytes] | None = None) -> None:
        """Write the state, and what belongs to the same step."""
        totals = self.totals.clone()
        if self.world > 1:
            dist.all_reduce(totals)
        if self.rank:
            return
        state = {
            "format": FORMAT,
            "version": VERSION,
            "step": self.step,
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "history": self.history,
            "totals": totals,
        }
        write_atomically({**(together or {}), self.out / STATE: _saved(state)})

    def load_state(self) -> None:
        """Continue where the state file was written."""
        path = self.out / STATE
        if not path.exists():
            return  # stopped before the first one: from the beginning
        state = read_torch_file(path)
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise CheckpointError(f"{path}: not the state of a lesionrt training; start the run again")
        if state.get("version") != VERSION:
            raise CheckpointError(
                f"{path}: of version {state.get('version')}, this lesionrt reads version {VERSION}; remove {self.out} and start again"
            )
        try:
            self.network.load_state_dict(state["network"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.seconds, self.history = int(state["step"]), float(state["seconds"]), list(state["history"])
            self.totals = state["totals"] / self.world
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path}: does not fit the run ({error}); start the run again") from error

    def finish(self, info: ModelInfo) -> Path:
        """Write the checkpoint: weights rounded to half precision once, so that every format holds the same ones."""
        path = self.out / CHECKPOINT
        if self.rank == 0:
            network = Network(self.recipe.network)
            best = self.out / BEST
            network.load_state_dict(read_torch_file(best) if self.recipe.keep == "best" else self.result.state_dict())
            round_weights(network)
            self._show_history()  # again: a kill may have come between the state and these
            save_checkpoint(Checkpoint(network.eval(), self.recipe.preparation, info), path)
        return path


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 faster than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return fast_bfloat16() and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _no_totals() -> Tensor:
    return torch.zeros(6, dtype=torch.float64)  # loss, steps, overlap, found, true, renormalised


def _saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
