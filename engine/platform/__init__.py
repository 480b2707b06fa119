"""The process and its devices: determinism, threads, memory, copies."""
