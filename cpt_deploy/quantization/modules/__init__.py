"""The modules of a quantized network: layers, activation quantizers, LSTM, attention and BatchNorm."""
