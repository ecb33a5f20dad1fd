"""The paper's own figures, to stand beside ours under the paper's name (Rondinella et al. 2023, section 4)."""

from lesionrt.runtime.metrics import MEASURES

CITATION = "Rondinella et al., Computers in Biology and Medicine 161 (2023) 107021"

# Table 2: its test folds on ISBI 2015, slices with lesions only.
FOLDS: tuple[dict[str, float], ...] = tuple(
    dict(zip(MEASURES, row, strict=True))
    for row in (
        (0.8448, 0.8601, 0.9983, 0.7314, 0.0016, 0.8301, 0.9987, 0.9971),
        (0.8900, 0.8679, 0.9987, 0.8019, 0.0012, 0.9133, 0.9980, 0.9968),
        (0.8855, 0.9071, 0.9995, 0.7946, 0.0004, 0.8650, 0.9997, 0.9992),
        (0.8101, 0.7675, 0.9997, 0.6808, 0.0002, 0.8577, 0.9995, 0.9992),
        (0.8190, 0.8442, 0.9992, 0.6936, 0.0007, 0.7953, 0.9994, 0.9987),
    )
)
# Its last row as it is printed there, mean and standard deviation.
FOLDS_MEAN: dict[str, str] = dict(
    zip(
        MEASURES,
        ["0.84±0.03", "0.84±0.05", "0.99±5e-4", "0.74±0.05", "8e-4±5e-4", "0.85±0.04", "0.99±7e-4", "0.99±1e-3"],
        strict=True,
    )
)
# Table 3: published methods on ISBI 2015, as the paper collects them: who, method, Dice, PPV, sensitivity.
METHODS: tuple[tuple[str, str, float, float | None, float | None], ...] = (
    ("Hashemi et al. 2022", "Attention U-Net", 0.80, 0.82, 0.79),
    ("Hashemi et al. 2022", "U-Net", 0.81, 0.84, 0.79),
    ("Feng et al. 2019", "3D U-Net", 0.68, 0.78, 0.64),
    ("Abolvardi et al. 2019", "3D U-Net", 0.61, None, None),
    ("Salem et al. 2019", "2D U-Net", 0.64, 0.79, 0.57),
    ("Aslani et al. 2019", "CNN", 0.76, None, None),
    ("Afzal et al. 2021", "CNN", 0.67, 0.9, 0.48),
    ("Roy et al. 2018", "CNN", 0.56, 0.6, None),
    ("Zhang et al. 2019", "FC-DenseNets", 0.64, 0.90, None),
    ("Raab et al. 2022", "2D U-Net", 0.77, None, None),
    ("Kamraoui et al. 2022", "3D U-Net", 0.67, 0.84, None),
    ("Sarica et al. 2023", "Dense-Residual U-Net", 0.66, 0.86, None),
    ("the paper, mean of its folds", "FC-DenseNet + SA + C-LSTM", 0.84, 0.85, 0.84),
    ("the paper, fold 2", "FC-DenseNet + SA + C-LSTM", 0.89, 0.91, 0.86),
)
# Table 4: Dice of each fold's model on three patients of another scanner (1.5 T).
OTHER_SCANNER: tuple[tuple[float, float, float], ...] = (
    (0.8023, 0.6944, 0.5646),
    (0.7290, 0.6248, 0.3443),
    (0.8016, 0.6097, 0.4483),
    (0.7954, 0.6869, 0.5537),
    (0.7390, 0.5765, 0.4021),
)
# Its last row as it is printed there.
OTHER_SCANNER_MEAN = ("0.7730±0.03", "0.6384±0.05", "0.4626±0.09")
# Table 5: Dice on folds 2 and 4 and their mean, by (attention, convlstm).
ABLATION: dict[tuple[bool, bool], tuple[float, float, float]] = {
    (False, False): (0.8875, 0.7989, 0.8432),
    (False, True): (0.8639, 0.7794, 0.8216),
    (True, False): (0.8939, 0.8048, 0.8493),
    (True, True): (0.8900, 0.8101, 0.8500),
}
ABLATION_FOLDS = (2, 4)


def variant_name(attention: bool, convlstm: bool) -> str:
    """As Table 5 names it.

    >>> variant_name(True, False)
    'FC-DenseNet + SA'
    """
    return "FC-DenseNet" + " + SA" * attention + " + C-LSTM" * convlstm
