"""Checksums of the published files."""

import hashlib
from pathlib import Path

from factor_transfer.errors import InputError

# Name of the file -> (number of images in the published file, hash algorithm, checksum). The authors of the data
# publish MD5 sums of the Python layout; only that of the archive is known for CIFAR-100's binary
# layout, see ``cifar``.
SUMS = {
    "data_batch_1.bin": (10_000, "sha256", "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"),
    "data_batch_2.bin": (10_000, "sha256", "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"),
    "data_batch_3.bin": (10_000, "sha256", "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"),
    "data_batch_4.bin": (10_000, "sha256", "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"),
    "data_batch_5.bin": (10_000, "sha256", "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"),
    "test_batch.bin": (10_000, "sha256", "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),
    "data_batch_1": (10_000, "md5", "c99cafc152244af753f735de768cd75f"),
    "data_batch_2": (10_000, "md5", "d4bba439e000b95fd0a9bffe97cbabec"),
    "data_batch_3": (10_000, "md5", "54ebc095f3ab1f0389bbae665268c751"),
    "data_batch_4": (10_000, "md5", "634d18415352ddfa80567beed471001a"),
    "data_batch_5": (10_000, "md5", "482c414d41f54cd18b22e5b47cb7c3cb"),
    "test_batch": (10_000, "md5", "40351d587109b95175f43aff81a1287e"),
    "train": (50_000, "md5", "16019d7e3df5f24257cddd939b257f8d"),
    "test": (10_000, "md5", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
}


def check_published(path: Path, images: int) -> None:
    """Compare the checksum of a file with that of the published one, if it has as many images.

    Args:
        path: the file.
        images: the number of images in it. A file with another number of images is not meant to be the published one.

    Raises:
        InputError: if the checksums differ.
    """
    published, kind, expected = SUMS.get(path.name, (0, "", ""))
    if images != published or not kind:
        return
    with path.open("rb") as file:
        # This detects damage, but not manipulation.
        found = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
    if found != expected:
        raise InputError(
            f"{path}: damaged, or not the published file: its {kind.upper()} is {found[:12]}…, expected "
            f"{expected[:12]}…; download it again with data.download=true into another data.root, or set "
            "data.verify=false if it is meant to differ"
        )
