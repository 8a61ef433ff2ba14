"""Between a request and tensors: images to inputs, text to tokens, logits to predictions. Without torch."""
