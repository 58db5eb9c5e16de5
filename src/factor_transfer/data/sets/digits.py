"""scikit-learn's handwritten digits: real images that need no download."""

import numpy as np
import torch

from factor_transfer.data.split import Origin, Source, Split


def load_digits() -> Source:
    """1,797 handwritten digits of 8×8 pixels with one channel, in 10 classes (Alpaydin, Kaynak 1998; UCI).

    The first 898 images are for training and the last 899 for testing, as in scikit-learn's classification example.
    The two halves have different writers, so the test measures generalisation to new writers.
    """
    from sklearn.datasets import load_digits as read  # slow to import

    bunch = read()
    # The values 0..16 are scaled to the range of uint8, like those of other images.
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    train = Split(images[:898], labels[:898])
    test = Split(images[898:], labels[898:])
    return Source(tuple(str(digit) for digit in range(10)), train, lambda: test, origin=Origin(test_size=len(test)))
