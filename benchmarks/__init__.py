"""Measurements of speed, memory and behaviour under stress. Each is one command:

    python -m benchmarks.engine                   the engine beside transformers' ways to generate
    python -m benchmarks.engine.products          a model's matrix products on a CPU
    python -m benchmarks.engine.trees             this tree beside another checkout
    python -m benchmarks.speculation              tokens a second with speculation and without
    python -m benchmarks.verification             time of verifying an answer, and of answering
    python -m benchmarks.loading.memory           memory while a model loads
    python -m benchmarks.loading.load_time        one load in one process, stage by stage
    python -m benchmarks.loading.startup          from `serve run` to the first token
    python -m benchmarks.images                   preparing images
    python -m benchmarks.images.memory            memory while large images pass
    python -m benchmarks.serving                  whole servers compared; --graph-cost
    python -m benchmarks.serving.ingress_cost     the ingress's own work for a request and a chunk
    python -m benchmarks.serving.chunk_cost       what a chunk costs each process, Ray included
    python -m benchmarks.serving.capacity         costs of the graph's parts, and what they allow
    python -m benchmarks.reliability.chaos        replicas die, answers do not change
    python -m benchmarks.reliability.soak         minutes of mixed load with clients that disconnect
    python -m benchmarks.reliability.overload     ten times more than a server can do
    python -m benchmarks.reliability.routing      our routing beside Ray's default one
    python -m benchmarks.reliability.fuzz         thousands of generated requests

`benchmarks.harness` is what they share: servers, clients, loads, models, processes, reports.
Results go into `benchmark-results/` (``--out``); docs/performance.md has what was found.
"""
