"""The fused training step: what is one integer operation when served is one operation of autograd here."""
