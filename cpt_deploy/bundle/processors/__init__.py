"""Convert between requests and tensors: images to inputs, text to tokens, logits to predictions. Without torch."""
