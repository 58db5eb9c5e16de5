"""The commands ``compress`` and ``init``: from a folder of pictures to a compressed network, without a recipe."""
