"""Data sets: labelled images, split into training, validation and test."""

from factor_transfer.data.augment.crops import Augment
from factor_transfer.data.augment.mixing import Mixing
from factor_transfer.data.batches import Batch, Batches, Mixture, in_order, mix
from factor_transfer.data.dataset import DATASETS, Data, check_range, data_set, open_data
from factor_transfer.data.describe import describe
from factor_transfer.data.seeds import epoch_seed
from factor_transfer.data.split import UNLABELLED, Source, Split, stratified
from factor_transfer.data.stored import StoredImages
from factor_transfer.data.views import Views

__all__ = [
    "DATASETS",
    "UNLABELLED",
    "Augment",
    "Batch",
    "Batches",
    "Data",
    "Mixing",
    "Mixture",
    "Source",
    "Split",
    "StoredImages",
    "Views",
    "check_range",
    "data_set",
    "describe",
    "epoch_seed",
    "in_order",
    "mix",
    "open_data",
    "stratified",
]
