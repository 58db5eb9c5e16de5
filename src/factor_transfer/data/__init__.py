"""Data sets: labelled images, split into training, validation and test."""

from factor_transfer.data.augment import Augment
from factor_transfer.data.batches import Batch, Batches, in_order
from factor_transfer.data.dataset import DATASETS, Data, open_data
from factor_transfer.data.describe import describe
from factor_transfer.data.seeds import epoch_seed
from factor_transfer.data.split import Source, Split, stratified
from factor_transfer.data.stored import StoredImages
from factor_transfer.data.views import Views

__all__ = [
    "DATASETS",
    "Augment",
    "Batch",
    "Batches",
    "Data",
    "Source",
    "Split",
    "StoredImages",
    "Views",
    "describe",
    "epoch_seed",
    "in_order",
    "open_data",
    "stratified",
]
