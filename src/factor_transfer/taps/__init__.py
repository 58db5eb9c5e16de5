"""Features of the inner modules of any network."""

from factor_transfer.taps.extract import Seen, Taps, first_tensor, patch_maps, shapes

__all__ = ["Seen", "Taps", "first_tensor", "patch_maps", "shapes"]
