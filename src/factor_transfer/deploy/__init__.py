"""A trained student in use: loaded, asked about pictures, packed to be shared."""
