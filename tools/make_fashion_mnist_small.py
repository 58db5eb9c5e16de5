"""Write the part of Fashion-MNIST that comes with the package, as lossless WebP sheets.

    python tools/make_fashion_mnist_small.py FOLDER

FOLDER holds the four published files. The sheets have 100 images in a row; the labels lie beside them, a byte each.
"""

import sys

import torch
from PIL import Image

from factor_transfer.data.sets.fashion_mnist import FILES, load_fashion_mnist
from factor_transfer.data.split import Split, stratified

TRAINING_IMAGES = 6_000


def write(name: str, split: Split) -> None:
    """Write one sheet and its labels."""
    images = split.images[:]
    rows = images.reshape(len(images) // 100, 100, 28, 28).permute(0, 2, 1, 3).reshape(-1, 2800)
    Image.fromarray(rows.numpy()).convert("RGB").save(FILES / f"{name}.webp", lossless=True, quality=100, method=6)
    (FILES / f"{name}-labels.bin").write_bytes(split.labels.to(torch.uint8).numpy().tobytes())


source = load_fashion_mnist(root=sys.argv[1])
write("train", source.train.subset(stratified(source.train.labels, TRAINING_IMAGES, seed=0)[0]))
write("test", source.test())
