"""How weights can be quantized: an object for each way. Nothing here imports torch by itself."""
