"""Everything that a borrowed GPU machine without a network needs, in folders small enough to be sent one by one.

    python studies/gpu/prepare.py --sheets ../shared/data [--fashion-mnist FOLDER] [--python 3.12] [--out .gpu]

The machine has PyTorch. `OUT/wheels` gets the other packages that it lacks, in the versions of constraints.txt;
`OUT/data-1`, `data-2` and `data-3` get CIFAR-10 as lossless sheets, 35 MB each, and `fashion-mnist` its files.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The packages that a machine with PyTorch, NumPy, SciPy, scikit-learn, matplotlib and Pillow lacks.
PACKAGES = (
    *("annotated-doc", "annotated-types", "filelock", "lightning-fabric", "lightning-utilities", "pydantic"),
    *("pydantic_core", "rich", "safetensors", "shellingham", "typer", "typing-inspection"),
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
PARTS = (
    ("data_batch_1.webp", "data_batch_2.webp", "labels.bin"),
    ("data_batch_3.webp", "data_batch_4.webp"),
    ("data_batch_5.webp", "test_batch.webp"),
)


def main() -> None:
    """Fill the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sheets", type=Path, required=True, help="the folder of unpack_cifar10.py and cifar10/")
    parser.add_argument("--fashion-mnist", type=Path, metavar="FOLDER", help="needed by the study of unlabelled images")
    parser.add_argument("--python", default="3.12", help="the machine's Python  [default: 3.12]")
    parser.add_argument("--out", type=Path, default=ROOT / ".gpu", help="[default: .gpu]")
    given = parser.parse_args()
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *platforms]
    download += ["--python-version", given.python, "--implementation", "cp", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*download, "-d", str(given.out / "wheels"), *PACKAGES], check=True)
    for number, names in enumerate(PARTS, start=1):
        folder = given.out / f"data-{number}"
        (folder / "cifar10").mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copyfile(given.sheets / "cifar10" / name, folder / "cifar10" / name)
        shutil.copyfile(given.sheets / "unpack_cifar10.py", folder / "unpack_cifar10.py")
    if given.fashion_mnist is not None:
        shutil.copytree(given.fashion_mnist, given.out / "fashion-mnist", dirs_exist_ok=True)
    for folder in sorted(given.out.iterdir()):
        size = sum(path.stat().st_size for path in folder.rglob("*"))
        print(f"{folder}  {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
