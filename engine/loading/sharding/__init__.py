"""How a model is cut over several devices, by layers or by tensors."""
