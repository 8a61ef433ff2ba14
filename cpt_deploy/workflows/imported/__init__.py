"""Models that other tools wrote: quantized, inspected and validated."""
