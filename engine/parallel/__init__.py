"""One model over several devices of a machine: each rank has a part of every layer."""
