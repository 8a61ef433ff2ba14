"""What a quantized model knows of its precision: configuration, current bits, and how they reach the layers."""
