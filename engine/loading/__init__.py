"""From a name to a model in memory: snapshot, files, quantization, errors."""
