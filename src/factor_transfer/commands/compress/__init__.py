"""From a folder of pictures to a compressed network, without a recipe."""
