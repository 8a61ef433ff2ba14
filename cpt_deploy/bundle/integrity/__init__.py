"""That a bundle is whole and says one thing: checksums, signatures, evidence, and writing in one step."""
