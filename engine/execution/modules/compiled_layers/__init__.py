"""Decoder layers as machine code of their own: everything of a layer but products and attention."""
