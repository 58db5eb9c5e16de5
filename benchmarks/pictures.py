"""The images of a data set as PNG files in folders, which versions of this package without that data set can read.

    python benchmarks/pictures.py fashion-mnist-small DIR

The folders are ``DIR/train/CLASS`` (with the validation images) and ``DIR/test/CLASS``.
"""

import argparse
from pathlib import Path

from PIL import Image

from factor_transfer.data import Split, open_data


def main() -> None:
    """Write the images of all splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the name of the data set")
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    data = open_data(given.data)
    for split, name in ((data.train, "train"), (data.validation, "train"), (data.test(), "test")):
        write(split, given.folder / name, [label.replace("/", "-") for label in data.classes])


def write(split: Split, folder: Path, classes: list[str]) -> None:
    """Write the images of a split into a folder for each class."""
    for label in classes:
        (folder / label).mkdir(parents=True, exist_ok=True)
    begin = sum(1 for _ in folder.glob("*/*.png"))
    for index in range(len(split)):
        image, label = split.images[index], int(split.labels[index])
        pixels = image.permute(1, 2, 0).squeeze(2).numpy()
        Image.fromarray(pixels).save(folder / classes[label] / f"{begin + index:05}.png")


if __name__ == "__main__":
    main()
