"""How pictures look at a volume: worked out by hand."""

import nibabel as nib
import numpy as np

from lesionrt.runtime.view import View, view
from lesionrt.runtime.volume import read_flair


def look(room_mm: float = 0.0) -> View:
    """A volume of 8 slices in axes RAS, voxels 1 x 2 x 3 mm, with tissue of 2 x 3 voxels in its slices 1 to 6."""
    data = np.zeros((6, 7, 8), np.float32)
    data[1:3, 2:5, 1:7] = np.arange(1, 37).reshape(2, 3, 6)
    return view(read_flair(nib.Nifti1Image(data, np.diag([1.0, 2.0, 3.0, 1.0]))), room_mm)


def test_the_left_is_on_the_right_and_the_front_above_with_room_in_millimetres() -> None:
    seen = look()
    assert seen.image.shape == (2, 3, 8)
    # R becomes L and A becomes P: the volume's last voxels come first.
    assert seen.image[:, :, 1].tolist() == [[31, 25, 19], [13, 7, 1]]
    assert (seen.axes.tolist(), seen.spacing.tolist()) == ([0, 1, 2], [1, 2, 3])
    assert look(room_mm=2.0).image.shape == (2 + 2 + 1, 3 + 1 + 1, 8)  # but 1 voxel where the grid ends
    assert seen.tile_size(60) == (20, 60)  # 2 x 6 mm


def test_grey_reaches_from_black_to_white_and_leaves_what_is_0_black() -> None:
    seen = look(room_mm=1.0)
    slice_ = seen.grey(1)
    assert (slice_.min(), seen.grey(6).max()) == (0, 1)
    assert not slice_[seen.image[:, :, 1] == 0].any()


def test_the_fullest_slice_of_each_part_is_chosen_and_the_middles_without_lesions() -> None:
    seen = look()
    lesions = np.zeros((2, 3, 8), bool)
    lesions[0, 0, [1, 2, 3, 5]] = lesions[0, 1, 2] = lesions[1, 1, 5] = True
    assert seen.choose(lesions, 2) == [2, 5]  # of slices 1 and 2, and of 3 and 5
    assert seen.choose(lesions, 6) == [1, 2, 3, 5]
    assert seen.choose(lesions & False, 2) == [2, 5]  # of slices 1 to 3, and 4 to 6
