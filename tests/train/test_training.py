"""Training: it learns, it stops and goes on, and several processes do what one would."""

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

import lesionrt.train.run
from lesionrt.runtime.errors import DatasetError
from lesionrt.runtime.phantom import phantom
from lesionrt.train.augment import Augmentation
from lesionrt.train.cache import load_scan
from lesionrt.train.checkpoint import load_checkpoint, save_checkpoint
from lesionrt.train.dataset import Scan
from lesionrt.train.evaluation import evaluate_scan
from lesionrt.train.inference import CheckpointModel
from lesionrt.train.loss import loss_of
from lesionrt.train.model import Network, NetworkConfig
from lesionrt.train.recipe import Recipe, load_recipe
from lesionrt.train.run import Progress
from lesionrt.train.run import Run as TrainingRun
from lesionrt.train.samples import Batches, Slabs
from lesionrt.train.training import _samples, train
from lesionrt.train.validation import validate
from lesionrt.train.weights import initialise

Run = Callable[..., subprocess.CompletedProcess[str]]

SMALL = ["network.growth_rate=4", "network.layers=1", "network.levels=2", "network.first_channels=8"]
REVERSED = np.array([[-1, 0, 0, 47], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # the phantoms' first axis
FAST = [*SMALL, "slabs=2", "size=32", "epoch_steps=2", "steps=4", "warm_up=1", "precision=float32"]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path).network.state_dict()


def test_a_small_network_learns_two_phantoms_by_heart(scans: list[Scan], tmp_path: Path) -> None:
    settings = [
        *SMALL,
        "slabs=4",
        "size=64",
        "steps=160",
        "epoch_steps=40",
        "warm_up=10",
        "precision=float32",
        "smoothing_mm=0",
    ]
    plain = [f"augmentation.{name}=0" for name in load_recipe("default").as_dict()["augmentation"]]
    recipe = load_recipe(
        "default", [*settings, *plain, "learning_rate=0.01", "average=0.9", "network.dropout=0.0", "lesion_centred=0.7"]
    )
    said: list[str] = []
    path = train(recipe, scans, [], tmp_path / "run", say=said.append)
    assert [line.split(":")[0] for line in said] == [f"epoch {n}, step {40 * n} of 160" for n in (1, 2, 3, 4)]
    rows = (tmp_path / "run" / "history.csv").read_text().splitlines()
    assert float(rows[-1].split(",")[4]) > 0.9  # Dice of the last epoch's training slabs
    assert load_checkpoint(path).model.training_data == "patient0_1, patient1_1"
    with CheckpointModel(path) as model:  # what was kept, on whole volumes as the runtime prepares them
        assert min(evaluate_scan(scan, model).in_volume.dice for scan in scans) > 0.9
    assert (tmp_path / "run" / "history.png").read_bytes().startswith(b"\x89PNG")


def test_the_checkpoints_weights_are_half_precision_numbers(scans: list[Scan], tmp_path: Path) -> None:
    path = train(load_recipe("default", FAST), scans, [], tmp_path / "run")
    network = load_checkpoint(path).network
    assert all(torch.equal(value, value.half().float()) for value in network.parameters())


@pytest.mark.parametrize(("share", "seen"), [(0.0, 4), (0.25, 3), (0.5, 2)])
def test_the_norms_statistics_stand_still_in_the_last_share_of_the_steps(
    scans: list[Scan], tmp_path: Path, share: float, seen: int
) -> None:
    train(load_recipe("default", [*FAST, f"frozen_norms={share}"]), scans, [], tmp_path / "run")
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["network"]
    assert {int(value) for key, value in state.items() if key.endswith("num_batches_tracked")} == {seen}


def test_norms_without_statistics_are_not_frozen(scans: list[Scan], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"frozen_norms is 1.*--start"):
        train(load_recipe("default", [*FAST, "frozen_norms=1.0"]), scans, [], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_that_frozen_norms_throw_out_of_range_is_computed_with_its_own_statistics(
    scans: list[Scan], tmp_path: Path
) -> None:
    wild = load_checkpoint(train(load_recipe("default", FAST), scans, [], tmp_path / "run"))
    for module in wild.network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.zero_()
            module.weight.data.fill_(1000.0)
    with torch.inference_mode():
        assert not wild.network(torch.ones(1, 3, 32, 32)).isfinite().all()
    save_checkpoint(wild, tmp_path / "wild.pt")
    recipe = load_recipe("default", [*FAST, "frozen_norms=1.0"])
    said: list[str] = []
    path = train(recipe, scans, [], tmp_path / "on", say=said.append, start=tmp_path / "wild.pt")
    assert all(value.isfinite().all() for value in weights(path).values())
    again = [int(row["renormalised"]) for row in csv.DictReader((tmp_path / "on" / "history.csv").open())]
    assert again[0] >= 1  # the first batch of the first epoch's two at least
    assert f", {again[0]} batches by their own statistics;" in said[0]


def test_it_starts_from_a_bundle_as_from_its_checkpoint(
    run: Run, table: Path, tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    options = [*FAST, "frozen_norms=1.0", "learning_rate=1e-9", "average=0.0"]
    settings = [part for value in options for part in ("--set", value)]
    command = ("train", table, "-o", tmp_path / "run", "--start", tiny_bundle, *settings)
    run(*command)
    run(*command, "--resume")  # the bundle is known again
    known = load_checkpoint(tiny_checkpoint)
    slices = torch.rand(4, 1, 32, 32)
    with torch.inference_mode():
        found = load_checkpoint(tmp_path / "run" / "checkpoint.pt").network.forward_stack(slices)
        torch.testing.assert_close(found, known.network.forward_stack(slices), atol=1e-3, rtol=0)  # rounded to float16
    wrong = run(*command, "--set", "network.levels=1", "-o", tmp_path / "other", code=3)
    assert "the checkpoint to start from has network" in wrong.stderr


PAPER = [*SMALL, "epochs=2", "batch=8", "learning_rate=0.01"]


def test_the_papers_recipe_keeps_the_best_epoch(
    scans: list[Scan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("paper", [*PAPER, "epochs=3"])
    seen: list[torch.Tensor] = []

    def told(network: Network, *_: Any) -> dict[str, float]:
        seen.append(network.first.weight.detach().clone())
        return {"validation_loss": 1.0, "validation_dice": (0.2, 0.5, 0.3)[len(seen) - 1]}

    monkeypatch.setattr(lesionrt.train.run, "validate", told)
    path = train(recipe, scans[:1], scans[1:], tmp_path / "run")
    kept = [torch.equal(weights(path)["first.weight"], weight.half().float()) for weight in seen]
    assert kept == [False, True, False]
    assert load_checkpoint(path).preparation.normalisation == "slice-min-max"
    with pytest.raises(DatasetError, match="no scan validates"):
        train(recipe, scans, [], tmp_path / "none")


def test_what_is_found_outside_the_brain_does_not_count_in_validation(scans: list[Scan], tmp_path: Path) -> None:
    recipe = load_recipe("default", FAST)
    run = TrainingRun(recipe, tmp_path, 0, 1, torch.device("cpu"))
    with torch.no_grad():  # everything is lesion
        run.result.final.weight.zero_()
        run.result.final.bias.copy_(torch.tensor([0.0, 1.0]))
    held = load_scan(scans[0], recipe.preparation, recipe.network.size_multiple, tmp_path / "cache")
    brain, lesions = int(held.brain.sum()), int(held.lesions.sum())
    assert brain < held.brain[1:-1].size
    found = validate(run.result, [held], recipe, run.device, run._autocast())
    assert found["validation_dice"] == pytest.approx(2 * lesions / (brain + lesions))


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(
    scans: list[Scan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("default", [*FAST, "steps=30"])
    # The third step throws the weights away, the fourth has their loss; the state is of the second.
    monkeypatch.setattr(lesionrt.train.run, "learning_rate", lambda _, step, steps: 1e-3 if step < 2 else 1e30)
    state: list[bytes] = []

    def after(now: Progress) -> None:
        if now.step == 3:
            state.append((tmp_path / "run" / "state.pt").read_bytes())

    with pytest.raises(DatasetError, match=r"the loss is \S+ and its gradient's norm (nan|inf) at step 4 of 30"):
        train(recipe, scans, [], tmp_path / "run", progress=after)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
    assert (tmp_path / "run" / "state.pt").read_bytes() == state[0]


def test_the_command_names_what_is_wrong(table: Path, run: Run, tmp_path: Path) -> None:
    done = run("train", table, "-o", tmp_path / "run", "--without", "nobody", code=3)
    assert "--without: no scan of patient nobody; the data set has patient0, patient1" in done.stderr
    done = run("train", tmp_path / "none.csv", "-o", tmp_path / "run", code=3)
    assert "no such data set" in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_losss_gradient_is_that_of_its_formula() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    lesions = (torch.rand(2, 3, 3) > 0.5).double()
    # float32 inside: compared with central differences at that precision.
    loss = loss_of(logits, lesions, 0.1, 1.0)
    loss.backward()
    assert logits.grad is not None
    for index in [(0, 0, 0, 0), (1, 1, 2, 1), (0, 1, 1, 2)]:
        sides = []
        for step in (1e-2, -1e-2):
            moved = logits.detach().clone()
            moved[index] += step
            sides.append(float(loss_of(moved, lesions, 0.1, 1.0)))
        assert (sides[0] - sides[1]) / 2e-2 == pytest.approx(float(logits.grad[index]), abs=1e-4)


@pytest.mark.parametrize("how", ["--without", "--validation"])
def test_a_scan_that_is_not_trained_on_gives_no_lesions_to_paint(
    table: Path, tmp_path: Path, run: Run, how: str
) -> None:
    (tmp_path / "donors").mkdir()
    mask = nib.load(table.parent / "1_mask.nii.gz")
    if how == "--without":  # stored in another way
        mask = nib.Nifti1Image(np.asarray(mask.dataobj)[::-1] * np.float32(255), mask.affine @ REVERSED)
    nib.save(mask, tmp_path / "donors" / "mask.nii")
    options = [part for text in [*FAST, f"donors={tmp_path / 'donors'}"] for part in ("--set", text)]
    found = run("train", table, "-o", tmp_path / "run", how, "patient1", *options, code=3)
    assert "mask.nii: holds the lesions of patient1_1, which is not trained on" in found.stderr
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_donors_are_part_of_what_a_run_is(scans: list[Scan], tmp_path: Path) -> None:
    for seed in (2, 3):
        _, lesions = phantom((48, 56, 40), seed)
        nib.save(nib.Nifti1Image(lesions.astype(np.uint8), np.eye(4)), tmp_path / f"{seed}.nii")
    (tmp_path / "donors").mkdir()
    (tmp_path / "2.nii").rename(tmp_path / "donors" / "2.nii")
    recipe = load_recipe("default", [*FAST, f"donors={tmp_path / 'donors'}"])
    path = train(recipe, scans[:1], [], tmp_path / "run")
    expected = "patient0_1; donor masks: 1"
    assert load_checkpoint(path).model.training_data == expected
    (tmp_path / "3.nii").rename(tmp_path / "donors" / "3.nii")
    with pytest.raises(DatasetError, match=r"run\.json: the run to resume has another donors"):
        train(recipe, scans[:1], [], tmp_path / "run", resume=True)


def test_a_steps_slabs_come_from_as_many_patients_as_there_are(scans: list[Scan], tmp_path: Path) -> None:
    recipe = load_recipe("default", [*FAST, "slabs=4", "steps=8"])
    prepared = [load_scan(scan, recipe.preparation, 4, tmp_path) for scan in scans]
    for number, scan in enumerate(prepared):
        scan.slices[:] = number  # so that a slab tells where it is from
        scan.brain[:] = True
    plain = replace(recipe, augmentation=Augmentation(**dict.fromkeys(recipe.as_dict()["augmentation"], 0.0)))
    samples = Slabs(prepared, plain, [])
    orders = set()
    for step in range(8):
        seen = [float(samples[index][0].max()) for index in samples.batch(step)]
        assert sorted(seen) == [0, 0, 1, 1]
        for rank in (0, 1):  # and so do those of each of two processes
            part = next(iter(Batches(samples, step, rank, 2)))
            assert sorted(float(samples[index][0].max()) for index in part) == [0, 1]
        orders.add(tuple(seen))
    assert len(orders) > 1  # which of them comes first varies


def test_squeeze_and_attention_begins_as_nearly_its_squeezed_side() -> None:
    torch.manual_seed(0)
    network = Network(NetworkConfig())
    initialise(network, 0.25)
    block = network.attention_down[0].eval()
    assert [part.weight[0].item() for part in block.residual if isinstance(part, torch.nn.BatchNorm2d)] == [1.0, 0.25]
    x = torch.randn(1, 108, 8, 8)
    full = block(x)
    torch.nn.init.zeros_(block.residual[-2].weight)
    y = block(x)  # r is 0
    torch.nn.init.ones_(block.residual[-2].weight)
    torch.testing.assert_close(full - y, 0.25 * (block(x) - y))


PROCESS = """if True:
    import sys, torch, torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from lesionrt.train.recipe import load_recipe
    from lesionrt.train.loss import Objective
    from lesionrt.train.weights import initialise
    from lesionrt.train.model import Network
    recipe = load_recipe("default", sys.argv[2].split(","))
    torch.manual_seed(0)
    network = Network(recipe.network)
    initialise(network)
    network.eval()
    slices, lesions = torch.randn(4, 4, 32, 32), (torch.rand(4, 4, 32, 32) > 0.9).float()
    objective = Objective(network, recipe)
    rank, world = 0, 1
    if sys.argv[3] == "two":
        dist.init_process_group("gloo")
        rank, world = dist.get_rank(), 2
        objective = DistributedDataParallel(objective)
    loss, _ = objective(slices[rank::world], lesions[rank::world])
    loss.backward()
    if rank == 0:
        torch.save({name: value.grad for name, value in network.named_parameters()}, sys.argv[1])
    if world > 1:
        dist.destroy_process_group()
"""


def test_two_processes_average_to_the_gradient_of_one(tmp_path: Path) -> None:
    (tmp_path / "step.py").write_text(PROCESS)
    settings = ",".join([*SMALL, "network.dropout=0.0"])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for start, how in (([sys.executable], "one"), (launch, "two")):
        arguments = [tmp_path / "step.py", tmp_path / f"{how}.pt", settings, how]
        subprocess.run([*start, *map(str, arguments)], check=True, env=environment, capture_output=True, timeout=300)
    one, two = (torch.load(tmp_path / f"{how}.pt", weights_only=True) for how in ("one", "two"))
    assert max(float(value.abs().max()) for value in one.values()) > 1e-3
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=0)


def test_two_processes_train_one_checkpoint(table: Path, tmp_path: Path) -> None:
    settings = [part for text in FAST for part in ("--set", text)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    command = [*launch, Path(sys.executable).parent / "lesionrt", "train", table, "-o", tmp_path / "run", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(list(map(str, command)), check=True, env=environment, capture_output=True, timeout=300)
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt").model.trained
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == 4
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 1 + 2


def test_the_default_recipes_file_says_the_defaults() -> None:
    assert load_recipe("default") == Recipe()


def test_processes_have_as_many_slabs_each(scans: list[Scan], tmp_path: Path) -> None:
    recipe = load_recipe("default", [*FAST, "slabs=4"])
    prepared = [load_scan(scan, recipe.preparation, recipe.network.size_multiple, tmp_path) for scan in scans[:1]]
    with pytest.raises(DatasetError, match="slabs is 4; expected a multiple of 3"):
        _samples(recipe, prepared, [], [], 3, print)
