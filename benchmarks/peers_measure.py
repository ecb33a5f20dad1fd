"""What :mod:`lesionrt.benchmarks.peers` runs in the peers' environment: an order in, one line of JSON out."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lesionrt.benchmarks.interleaved import interleaved, spread
from lesionrt.benchmarks.schedules import authors_schedule
from lesionrt.runtime.backends.choice import BackendChoice
from lesionrt.runtime.bundle import load_bundle
from lesionrt.train.augment import (
    DEFORMATION_KNOTS,
    DEFORMATION_PX,
    ROTATION_DEG,
    SCALE,
    Augmentation,
    cut,
    lesions_of,
)
from lesionrt.train.cache import USUAL_LESION_Z, PreparedScan
from lesionrt.train.checkpoint import load_checkpoint
from lesionrt.train.model import Network, windows_of
from lesionrt.train.recipe import load_recipe

Run = Callable[[], Any]  # gives the probabilities (n, H, W), or None where they are not of this network
Maker = Callable[[], tuple[Run, str]]  # what is run, and what it is
SLABS = 32  # of training slices, in one timed run


def monai_case(network: Network, slices: Tensor) -> tuple[Run, str]:
    """MONAI's sliding window over the height and width of each window of three slices, at the network's own size."""
    from monai.inferers import SlidingWindowInferer

    size = tuple(min(160, side) for side in slices.shape[2:])  # the paper's crop
    inferer = SlidingWindowInferer(roi_size=size, sw_batch_size=1, overlap=0.25, mode="gaussian")
    windows = windows_of(slices)

    def run() -> np.ndarray:
        return np.stack(
            [inferer(window[None], lambda batch: network(batch)[:, None])[0, 0].numpy() for window in windows]
        )

    text = (
        f"monai {version('monai')}, sliding_window_inference with this network, tiles {size[0]}x{size[1]}, overlap 0.25"
    )
    return run, text


def runtime_case(bundle: Path, slices: Tensor, threads: int) -> tuple[Run, str]:
    """What `lesionrt segment` computes with here."""
    backend = BackendChoice("auto", load_bundle(bundle), threads)
    stack = slices.numpy()
    first = backend.first.backend
    return lambda: backend.infer(stack)[0], f"this package's runtime, backend {first.name}, {first.precision}"


def nnunet_case(slices: Tensor, spacing_mm: float, brain_shape: list[int]) -> tuple[Run, str]:
    """A network of the size that nnU-Net's 2-D planner gives for such volumes, untrained, called slice by slice.

    Its predictor is not part of it: no tiles, no mirroring, no resampling.
    """
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from dynamic_network_architectures.building_blocks.helper import convert_dim_to_conv_op, get_matching_instancenorm
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    # Its 2-D planner takes the median slice, cut to what is not 0, as the patch, and halves it down to 4 pixels; 32
    # features doubled up to 512, two convolutions a stage (experiment_planners/default_experiment_planner.py).
    _, pool, kernels, patch, _ = get_pool_and_conv_props((spacing_mm, spacing_mm), brain_shape, 4, 999999)
    stages = len(pool)
    convolution = convert_dim_to_conv_op(2)
    network = PlainConvUNet(
        input_channels=1,
        n_stages=stages,
        features_per_stage=[min(512, 32 * 2**stage) for stage in range(stages)],
        conv_op=convolution,
        kernel_sizes=kernels,
        strides=pool,
        n_conv_per_stage=[2] * stages,
        num_classes=2,
        n_conv_per_stage_decoder=[2] * (stages - 1),
        conv_bias=True,
        norm_op=get_matching_instancenorm(convolution),
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    ).eval()
    centre = slices[1:-1]
    pads = [max(0, int(side) - have) for side, have in zip(patch, centre.shape[2:], strict=True)]
    padded = torch.nn.functional.pad(centre, (0, pads[1], 0, pads[0]))[..., : int(patch[0]), : int(patch[1])]

    def run() -> None:
        for one in padded:
            network(one[None])

    parameters = sum(parameter.numel() for parameter in network.parameters())
    text = (
        f"nnunetv2 {version('nnunetv2')}, PlainConvUNet of the planned 2-D size without the predictor, untrained, "
        f"{stages} stages, {parameters} parameters, one patch of {int(patch[0])}x{int(patch[1])} a slice"
    )
    return run, text


def augmentation_makers(stack: np.ndarray) -> dict[str, Maker]:
    """Slabs of training slices, varied by this package, by the kinds of it that MONAI has too, and by MONAI.

    Parameters
    ----------
    stack
        Prepared slices (n, H, W).
    """
    brain = stack > stack.min()
    lesions = brain & (stack >= np.quantile(stack[brain], 0.99))  # somewhere; only time is looked at
    scan = PreparedScan("peers", "peers", stack.astype(np.float16), brain, lesions, np.zeros(3), USUAL_LESION_Z)
    recipe = load_recipe("default", [])
    count, size = recipe.slab_slices, recipe.size
    centre = np.array(stack.shape) // 2

    def ours(augmentation: Augmentation, what: str) -> tuple[Run, str]:
        rng = np.random.default_rng(0)

        def run() -> None:
            for _ in range(SLABS):
                cut(scan, centre, count, size, augmentation, [lesions_of(scan)], rng)

        return run, f"this package's {what}"

    def monai() -> tuple[Run, str]:
        from monai import transforms

        share, both = recipe.augmentation, ["image", "label"]
        vary = transforms.Compose(
            [
                *(transforms.RandFlipd(both, prob=share.flip, spatial_axis=axis) for axis in (0, 1)),
                transforms.RandAffined(
                    both,
                    spatial_size=(size, size),
                    prob=share.rotate_scale,
                    rotate_range=np.deg2rad(ROTATION_DEG),
                    scale_range=SCALE - 1,
                    mode=("bilinear", "nearest"),
                ),
                transforms.Rand2DElasticd(
                    both,
                    spacing=(size // (DEFORMATION_KNOTS - 1),) * 2,
                    magnitude_range=(0, DEFORMATION_PX),
                    prob=share.deform,
                    mode=("bilinear", "nearest"),
                ),
                transforms.RandBiasFieldd("image", prob=share.bias),
                transforms.RandAdjustContrastd("image", prob=share.gamma, gamma=(0.75, 1.35)),
                transforms.RandScaleIntensityd("image", factors=0.35, prob=share.intensity),
                transforms.RandShiftIntensityd("image", offsets=0.3, prob=share.intensity),
                transforms.RandGaussianSmoothd("image", prob=share.sharpness / 2),
                transforms.RandGaussianSharpend("image", prob=share.sharpness / 2),
                transforms.RandGaussianNoised("image", prob=share.noise, std=0.6),
            ]
        ).set_random_state(0)
        part = slice(centre[0] - count // 2, centre[0] - count // 2 + count)
        slab = {"image": torch.from_numpy(stack[part]), "label": torch.from_numpy(lesions[part].astype(np.float32))}

        def run() -> None:
            for _ in range(SLABS):
                vary(slab)

        return run, f"monai {version('monai')}'s transforms of those kinds"

    alike = replace(recipe.augmentation, thickness=0.0, contrast=0.0, transplant=0.0)
    return {
        "alike": lambda: ours(alike, "kinds of augmentation that MONAI has too"),
        "all": lambda: ours(recipe.augmentation, "augmentation, all kinds"),
        "monai": monai,
    }


def measure(makers: Mapping[str, Maker], count: int, repeats: int) -> dict[str, Any]:
    """Seconds per slice of each case, interleaved after a warm-up; one that fails is skipped with its reason.

    What gives probabilities is compared with the first case, and so are all times.

    Parameters
    ----------
    makers
        By name; each gives what is run, and what it is. The first is what the others are compared with.
    count
        Output slices of one run.
    repeats
        Timed rounds.
    """
    found: dict[str, Any] = {}
    made: dict[str, tuple[Run, str]] = {}
    given: dict[str, np.ndarray | None] = {}

    @contextlib.contextmanager
    def told(name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # another version of theirs may have moved anything
            found[name] = {"skipped": f"{type(error).__name__}: {error}"}

    def timed(name: str) -> float | None:
        start = time.perf_counter()
        with told(name):
            made[name][0]()
            return (time.perf_counter() - start) / count
        return None

    for name, maker in makers.items():
        with told(name):
            made[name] = maker()
            given[name] = made[name][0]()  # to warm up
    rounds = {name: partial(timed, name) for name in made if name not in found}
    for name, values in interleaved(rounds, repeats).items():
        found[name] = {"what": made[name][1], "s_per_slice": asdict(spread(values))}
    first = next(iter(makers))
    right = given.get(first)
    for name, row in list(found.items()):
        if "skipped" in row:
            continue
        if "skipped" not in found[first]:
            row["times_faster"] = found[first]["s_per_slice"]["median"] / row["s_per_slice"]["median"]
        output = given.get(name)
        if right is not None and output is not None:
            with told(name):  # it may have another shape
                row["maximum_difference"] = float(np.abs(output - right).max())
    return found


def main() -> None:
    """Measure what the order asks for."""
    order = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not stand in the answer
    torch.set_num_threads(order["threads"])
    network = load_checkpoint(Path(order["checkpoint"])).network
    slices = torch.from_numpy(np.load(order["slices"]))
    makers: dict[str, Maker] = {
        "authors": lambda: (lambda: authors_schedule(network, slices.numpy()), "authors' schedule, PyTorch float32"),
        "one-pass": lambda: (
            lambda: network.forward_stack(slices).numpy(),
            "one pass, PyTorch float32, all slices at once",
        ),
        "runtime": lambda: runtime_case(Path(order["bundle"]), slices, order["threads"]),
    }
    peers: dict[str, Maker] = {
        "monai": lambda: monai_case(network, slices),
        "nnunet": lambda: nnunet_case(slices, order["spacing_mm"], order["brain_shape"]),
    }
    with torch.inference_mode():
        found = measure(makers | {name: peers[name] for name in order["peers"]}, len(slices) - 2, order["repeats"])
    varied = augmentation_makers(slices[:, 0].numpy())
    if "monai" not in order["peers"]:
        del varied["monai"]
    torch.set_num_threads(1)  # as a loader's process has
    augmentation = measure(varied, SLABS * load_recipe("default", []).slab_slices, order["repeats"])
    print(json.dumps({"cases": found, "augmentation": augmentation}), file=answers)


if __name__ == "__main__":
    main()
