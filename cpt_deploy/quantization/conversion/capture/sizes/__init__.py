"""Sizes of tensors in a captured graph: computed once, known, or of outputs."""
