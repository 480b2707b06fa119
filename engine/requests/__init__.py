"""A task on its way through the engine: prompt, request, outputs, chunks."""
