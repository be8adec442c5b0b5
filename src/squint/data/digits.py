"""The 8x8 handwritten digits that ship inside scikit-learn: 1,797 images, no download, no files.

Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI (1998), its test part.
"""

from __future__ import annotations

import torch

from squint.data.dataset import ImageData, Splits, hold_out

TEST_IMAGES = 500
VALIDATION_IMAGES = 200


def digits(*, validation: float = VALIDATION_IMAGES, seed: int = 0) -> Splits:
    """Return the digits as uint8 (n, 1, 8, 8): 500 test images, 200 for validation, 1,097 for training.

    The set's 17 grey levels 0..16 become round(255 v / 16). The test images are the same for every seed.

    Args:
        validation: number (int) or share (float) of the 1,297 others to hold out.
        seed: chooses the validation images.
    """
    # Imported where it is used: it takes a second that most commands do not need.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    levels = torch.tensor(bunch.images)
    everything = ImageData(
        images=(levels * 255 / 16).round().to(torch.uint8)[:, None],
        labels=torch.tensor(bunch.target, dtype=torch.int64),
        class_names=tuple(str(name) for name in bunch.target_names),
        name="digits",
    )
    others, test = hold_out(everything, TEST_IMAGES, seed=0, purpose="test")
    train, held = hold_out(others, validation, seed=seed, purpose="validation")
    return Splits(train, held, test)
